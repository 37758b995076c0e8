"""Growth: a sequence that a loop lengthens step by step becomes a slot buffer of the final length.

    for t: x = cat([x, f(x)], 1)         -->   X = cat([x, 0]);  for t: X = write(X, f(X)[at t], slot t)

Each step has shapes of its own, so no two are alike and nothing would be rolled. Here every step gets the shapes of the
last one: its calls are those of the last step, on a buffer whose later slots are open. What a step takes from the end of
a grown dimension (`[:, -1]`) it takes from its own place. That the open slots do not matter is for the causality proof to
say; that the longer call says the same as the shorter one (up to rounding) is measured (fxsolve.passes.growth_margin).
So only discrete sequences are rewritten, tokens say, which come out equal unless two choices nearly tie.

(The layers of a DenseNet lengthen a tensor too, but each reads weights of its own: that is no loop.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from fxsolve import prims
from fxsolve.ir import TensorType
from fxsolve.passes.layouts import fresh, relaid
from fxsolve.passes.noise import takes_random
from fxsolve.tape import Leaf, Mark, Output, Symbol, Tape, fill

aten = torch.ops.aten
NAME = "growth"
STEPS = 4
# ops whose integers are sizes: in the longer call they are those of the last step
SIZED = frozenset(
    (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default, aten.arange.default)
    + (aten.arange.start, aten.arange.start_step, aten.full.default, aten.ones.default, aten.zeros.default)
    + (aten.new_ones.default, aten.new_zeros.default, aten.new_full.default, aten.empty.memory_format)
)
PLACED = frozenset((aten.select.int, aten.slice.Tensor, prims.read))


class NotPadded(Exception):
    """Why a sequence that grows is not rewritten."""


@dataclass(frozen=True)
class Padded:
    """A rewritten program, and for each step what tells the calls of the original from those of the rewritten one."""

    tape: Tape
    steps: tuple[Step, ...]
    source: str


@dataclass(frozen=True)
class Step:
    """One step: its sequence (a value of the original tape), the buffer (a value of the new one), and pairs of values.

    From these values on both programs make the same calls at the same shapes.
    """

    sequence: int
    buffer: int
    pairs: tuple[tuple[int, int], ...]


def growth(tape: Tape) -> Padded | str | None:
    """The tape with its longest grown sequence in a buffer; why that cannot be; None if no sequence grows.

    The tape must be functional (fxsolve.passes.functionalize).
    """
    cats = longest_chain(tape)
    if len(cats) < STEPS:
        return None
    where = tape.sources.items[tape.source[cats[-1]]]
    try:
        return Grower(tape, cats).run()
    except NotPadded as why:
        return (
            f"a tensor is lengthened by cat step by step at {where}, so each step has shapes of its own, and {why}; "
            f"let the loop write into a buffer of the final length (x[:, t] = ...)"
        )


def longest_chain(tape: Tape) -> list[int]:
    """The rows of the longest chain of cats, each of the one before it and something new; all steps read the same leaves."""
    # result of a cat -> how long the chain is that ends with it, its row, the result before it, what its step read
    chains: dict[int, tuple[int, int, int, frozenset[int] | None]] = {}
    for row, number in enumerate(tape.symbol):
        if tape.symbols.items[number].target is not aten.cat.default:
            continue
        before = max((v for v in tape.inputs[row] if v in chains), key=lambda v: chains[v][0], default=-1)
        count, read = 1, None
        if before >= 0:
            length, start, _, read_before = chains[before]
            read = frozenset(v for r in range(start + 1, row + 1) for v in tape.inputs[r] if tape.value_row[v] < 0)
            count, before = (length + 1, before) if read_before in (None, read) else (1, -1)
        chains[tape.first[row]] = (count, row, before, read)
    rows: list[int] = []
    value = max(chains, key=lambda v: chains[v][0], default=-1)
    while value >= 0:
        _, row, value, _ = chains[value]
        rows.append(row)
    return rows[::-1]


class Grower:
    def __init__(self, tape: Tape, cats: list[int]) -> None:
        self.old, self.cats = tape, cats
        self.kinds: list[TensorType] = tape.types.items
        self.period = cats[-1] - cats[-2]
        self.model = range(cats[-1] - self.period + 1, cats[-1] + 1)  # the rows of the last step
        self.constants = {leaf.value: leaf.tensor for leaf in tape.leaves if leaf.kind == "constant"}
        self.check_cats()

    def check_cats(self) -> None:
        tape, last = self.old, self.cats[-1]
        kind = tape.type_of(tape.first[last])
        if kind.dtype.is_floating_point or kind.dtype.is_complex:
            raise NotPadded("its elements are no integers, which would come out with other rounding")
        if any(len(tape.inputs[row]) != 2 for row in self.cats):
            raise NotPadded("a step joins more than two tensors")
        for before, row in zip(self.cats, self.cats[1:]):
            if tape.inputs[row][0] != tape.first[before]:
                raise NotPadded("what is new does not stand at the end")

    # -- which steps are alike ----------------------------------------------------------------------

    def sequence_before(self, k: int) -> int:
        """The sequence that step k reads."""
        return self.old.inputs[self.cats[k]][0]

    def first_alike(self) -> int:
        """From which step on all steps are like the last one."""
        first = len(self.cats) - 1
        while first > 0 and self.start(first - 1) >= (self.cats[first - 2] + 1 if first > 1 else 0):
            if not self.alike(first - 1):
                break
            first -= 1
        return first

    def start(self, k: int) -> int:
        return self.cats[k] - self.period + 1

    def alike(self, k: int) -> bool:
        return all(self.rows_alike(k, row, model) for row, model in zip(range(self.start(k), self.cats[k] + 1), self.model))

    def rows_alike(self, k: int, row: int, model: int) -> bool:
        """Whether two rows differ in nothing but sizes and places."""
        old = self.old
        a, b = self.symbol(row), self.symbol(model)
        sized = b.target in SIZED or b.target is prims.read
        if a.target is not b.target or a.kwargs != b.kwargs or len(a.outputs) != len(b.outputs):
            return False
        if a.args != b.args and not (sized and without_sizes(a.args) == without_sizes(b.args)):
            return False
        if old.numbers[row] != old.numbers[model] and not (sized or b.target in PLACED):
            return False
        if any((x < 0) != (y < 0) or self.kinds[x].dtype != self.kinds[y].dtype for x, y in zip(a.outputs, b.outputs)):
            return False
        base, base_model, count = old.first[self.start(k)], old.first[self.model[0]], len(self.cats) - 1
        for v, w in zip(old.inputs[row], old.inputs[model], strict=True):
            if w == self.sequence_before(count) or v == self.sequence_before(k):
                if (v, w) != (self.sequence_before(k), self.sequence_before(count)):
                    return False
            elif w >= base_model and old.value_row[w] >= 0:
                if v - base != w - base_model:
                    return False
            elif v != w:
                return False
        return True

    def symbol(self, row: int) -> Symbol:
        return self.old.symbols.items[self.old.symbol[row]]

    def is_random(self, row: int) -> bool:
        symbol, tensors, numbers = self.symbol(row), iter(self.old.inputs[row]), iter(self.old.numbers[row])
        args = [fill(a, tensors, numbers) for a in symbol.args]
        return takes_random(symbol.target, args, {k: fill(a, tensors, numbers) for k, a in symbol.kwargs})

    # -- the new tape -------------------------------------------------------------------------------

    def run(self) -> Padded:
        old, count = self.old, len(self.cats)
        first = self.first_alike()
        if count - first < STEPS:
            raise NotPadded("the steps differ in more than their sizes")
        self.new = Tape(symbols=old.symbols, types=old.types, sources=old.sources)
        self.value: dict[int, int] = {}
        for leaf in old.leaves:
            self.value[leaf.value] = self.new.new_value(old.value_type[leaf.value])
            self.new.leaves.append(Leaf(self.value[leaf.value], leaf.kind, leaf.name, leaf.tensor, leaf.position))
        self.copy(range(self.start(first)))
        buffer = self.opened(self.sequence_before(first), self.sequence_before(count - 1), self.cats[first])
        steps = []
        for k in range(first, count - 1):
            before = buffer
            pairs = self.step(k, buffer)
            buffer = self.written(k, buffer)
            steps.append(Step(self.sequence_before(k), before, pairs))
        self.value[self.sequence_before(count - 1)] = buffer
        self.copy(range(self.start(count - 1), len(old)))
        self.check_uses(first)
        new, value = self.new, self.value
        new.outputs = [Output(value[o.value], o.leaf, o.region, o.cell) for o in old.outputs]
        new.mutations = [(leaf, value[v]) for leaf, v in old.mutations]
        new.guards = [(value[v], expected) for v, expected in old.guards]
        return Padded(new, tuple(steps), old.sources.items[old.source[self.cats[-1]]])

    def copy(self, rows: Iterable[int]) -> None:
        for row in rows:
            self.append(row, self.old.symbol[row], [self.value[v] for v in self.old.inputs[row]], self.old.numbers[row])

    def append(self, row: int, symbol: int, inputs: Iterable[int], numbers: tuple[Any, ...]) -> None:
        """Adds a row that stands for an old one."""
        results = self.new.append(symbol, tuple(inputs), numbers, self.old.source[row])
        self.value.update(zip(range(self.old.first[row], self.old.first[row] + len(results)), results))

    def opened(self, sequence: int, longest: int, row: int) -> int:
        """The buffer: the sequence so far, then open slots."""
        old, new, source = self.old, self.new, self.old.source[row]
        have, kind = old.type_of(sequence), old.type_of(longest)
        dim = self.dim()
        shape = (*kind.shape[:dim], kind.shape[dim] - have.shape[dim], *kind.shape[dim + 1 :])
        named = (("dtype", kind.dtype), ("device", kind.device))
        rest = new.call(aten.zeros.default, (shape,), new.types(fresh(shape, kind)), (), (), source, named)
        joined = (self.value[sequence], rest)
        args = ((Mark.TENSOR, Mark.TENSOR), Mark.INT)
        return new.call(aten.cat.default, args, old.value_type[longest], joined, (dim,), source)

    def dim(self) -> int:
        numbers = self.old.numbers[self.cats[-1]]
        rank = len(self.old.type_of(self.old.first[self.cats[-1]]).shape)
        return (int(numbers[0]) if numbers else 0) % rank

    def step(self, k: int, buffer: int) -> tuple[tuple[int, int], ...]:
        """The calls of the last step on the buffer; returns the values where those of step k get their own shapes."""
        old = self.old
        self.value[self.sequence_before(k)] = buffer
        grown = {self.sequence_before(k)}
        pairs = []
        for row, model in zip(range(self.start(k), self.cats[k]), self.model):
            symbol = self.symbol(model)
            inputs = [self.value[v] for v in old.inputs[row]]
            if symbol.target is aten.index.Tensor and old.inputs[row][0] in grown:
                self.value[old.first[row]] = self.picked_by_list(row, model)
                pairs.append((old.first[row], self.value[old.first[row]]))
                continue
            if symbol.target in PLACED:
                template, numbers = self.placed(row, model)
                number = self.new.intern(symbol.target, template, symbol.kwargs, symbol.inputs, symbol.outputs, symbol.listed)
            else:
                number, numbers = old.symbol[model], old.numbers[model]
            self.append(row, number, inputs, numbers)
            touched = any(v in grown for v in old.inputs[row])
            random = self.is_random(row)
            for i, (a, b) in enumerate(zip(self.symbol(row).outputs, symbol.outputs)):
                value = old.first[row] + i
                if a != b and random:
                    raise NotPadded("a step draws as many random numbers as the sequence is long")
                if a != b:
                    grown.add(value)
                elif touched and a >= 0:
                    pairs.append((value, self.value[value]))
        return tuple(pairs)

    def placed(self, row: int, model: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The arguments of a select, slice or read that takes from the longer tensor what the old row took from its own."""
        old, a, b = self.old, self.symbol(row), self.symbol(model)
        have, want = self.kinds[a.inputs[0]], self.kinds[b.inputs[0]]
        numbers, others = old.numbers[row], old.numbers[model]
        same_result = self.kinds[a.outputs[0]].shape == self.kinds[b.outputs[0]].shape
        if b.target is prims.read:
            start = int(numbers[0])
            if have != want:
                start = sum(i * s for i, s in zip(position(start, have), want.stride))
            if not same_result and start != others[0]:
                raise NotPadded("a step reads a part that moves and grows")
            return (a.args if have == want and same_result else b.args), (start,)
        dim = int(numbers[0])
        if b.target is aten.select.int:
            return b.args, (dim, within(int(numbers[1]), have.shape[dim]))
        if b.args[:4] != (Mark.TENSOR, Mark.INT, Mark.INT, Mark.INT):
            if have.shape[dim] != want.shape[dim]:
                raise NotPadded("a step slices it in a way that is not followed")
            return b.args, others
        start, end = (clamped(int(n), have.shape[dim]) for n in numbers[1:3])
        if same_result:
            return b.args, (dim, start, end, *numbers[3:])
        if start != clamped(int(others[1]), want.shape[dim]):
            raise NotPadded("a step reads a part that moves and grows")
        return b.args, others

    def picked_by_list(self, row: int, model: int) -> int:
        """`x[:, [-1]]`: the part at its place."""
        old, new, symbol, source = self.old, self.new, self.symbol(model), self.old.source[row]
        x, index = old.inputs[row][:2]
        dim = len(symbol.args[1]) - 1
        places = self.constants.get(index)
        if symbol.args[1] != (None,) * dim + (Mark.TENSOR,) or places is None or places.shape != (1,):
            raise NotPadded("a step picks from it in a way that is not followed")
        have, place = new.type_of(self.value[x]), within(int(places[0]), old.type_of(x).shape[dim])
        stride = (*have.stride[:dim], have.shape[dim] * have.stride[dim], *have.stride[dim + 1 :])
        kept = replace(have, shape=(*have.shape[:dim], 1, *have.shape[dim + 1 :]), stride=stride)
        one = replace(have, shape=have.shape[:dim] + have.shape[dim + 1 :], stride=have.stride[:dim] + have.stride[dim + 1 :])
        args = (Mark.TENSOR, Mark.INT, Mark.INT)
        value = new.call(aten.select.int, args, new.types(one), (self.value[x],), (dim, place), source)
        value = new.call(aten.unsqueeze.default, args[:2], new.types(kept), (value,), (dim,), source)
        return relaid(new, value, symbol.outputs[0], source)

    def written(self, k: int, buffer: int) -> int:
        """The buffer with the slots of step k."""
        old, row = self.old, self.cats[k]
        new_slot = old.inputs[row][1]
        kind, whole = old.type_of(new_slot), self.new.type_of(buffer)
        if kind != old.type_of(old.inputs[self.cats[-1]][1]):
            raise NotPadded("steps add parts of different sizes")
        offset = old.type_of(old.inputs[row][0]).shape[self.dim()] * whole.stride[self.dim()]
        args = (Mark.TENSOR, Mark.TENSOR, kind.shape, whole.stride, Mark.INT)
        values = (buffer, self.value[new_slot])
        return self.new.call(prims.write, args, self.new.value_type[buffer], values, (offset,), old.source[row])

    def check_uses(self, first: int) -> None:
        """Nothing but what is discrete, and has its own shape, may be used outside of its step."""
        old, low, high = self.old, self.start(first), self.start(len(self.cats) - 1)
        owner = {r: k for k in range(first, len(self.cats) - 1) for r in range(self.start(k), self.cats[k] + 1)}
        uses = [(v, owner.get(r, -1)) for r in range(low, len(old)) for v in old.inputs[r]]
        returned = [o.value for o in old.outputs] + [v for _, v in old.mutations] + [v for v, _ in old.guards]
        for value, user in [*uses, *((v, -1) for v in returned)]:
            row = old.value_row[value]
            made = owner.get(row, -1)
            if not low <= row < high or made == user:
                continue
            if row == self.cats[made]:
                if user not in (made + 1, -1) or (user == -1 and made < len(self.cats) - 2):
                    raise NotPadded("a sequence is used after it was lengthened")
                continue
            kind = old.type_of(value)
            model = old.first[self.model[row - self.start(made)]]
            if kind.dtype.is_floating_point or kind.dtype.is_complex or kind.shape != old.type_of(model).shape:
                raise NotPadded("more than the sequence is taken out of the steps")


def without_sizes(template: Any) -> Any:
    """A template with integers left open."""
    if type(template) is tuple:
        return tuple([without_sizes(t) for t in template])
    return Mark.INT if type(template) is int else template


def within(index: int, size: int) -> int:
    return index + size if index < 0 else index


def clamped(index: int, size: int) -> int:
    return min(max(within(index, size), 0), size)


def position(offset: int, kind: TensorType) -> list[int]:
    """The indices of the element that lies `offset` elements behind the first one of a contiguous tensor."""
    if kind != fresh(kind.shape, kind):
        raise NotPadded("a step reads a part of a tensor that is not contiguous")
    return [offset // prod(kind.shape[d + 1 :]) % max(size, 1) for d, size in enumerate(kind.shape)]
