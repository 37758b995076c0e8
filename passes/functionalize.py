"""Functionalize, and forward writes to reads.

    x[:, t] = v; ...; y = x[:, t]        -->   x' = write(x, v, region t); ...; y = v
    x[:, t] = v; ...; y = x[:, t - 3]    -->   x' = write(x, v, region t); ...; y = what was written there

Every in-place call becomes its functional twin. The new content of a whole storage is a `write` of the region into the
storage's last content; who reads a region gets the value that was written there, or a read of the storage as it was
before the writes that do not touch the region. In a recorded program all regions are concrete, so an owner map (element ->
number of the last write) decides. In-place code such as `y[:, t] = a * y[:, t-1] + b * y[:, t-2]` turns into dataflow
between values, and writes that nobody reads are dead.

    x[:, i][:, j]                        -->   read(x, region i, j)

A view of a view becomes one read, with one number: a loop over rows and columns then reads alike at every place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from fxsolve import prims
from fxsolve.errors import CaptureError
from fxsolve.ir import TensorType
from fxsolve.passes.layouts import dense, relaid
from fxsolve.tape import Leaf, Mark, Output, Symbol, Tape, fill

aten = torch.ops.aten
NAME = "functionalize"
SMALL = 1 << 16  # elements
REGIONS = (aten.select.int, aten.slice.Tensor, prims.read)


def functionalize(tape: Tape) -> Tape:
    """The same program without in-place calls. Errors: CaptureError for writes that have no functional twin."""
    return without_handles(tape) if is_functional(tape) else Functionalizer(tape).run()


def is_functional(tape: Tape) -> bool:
    """Whether there is nothing to do: no storage is written, and no view is taken of a view."""
    if any(cell.written for cell in tape.cells) or not all(symbol.outputs for symbol in tape.symbols.items):
        return False
    views = [symbol.target in REGIONS for symbol in tape.symbols.items]
    rows = [row for row, symbol in enumerate(tape.symbol) if views[symbol]]
    producers = [tape.value_row[tape.inputs[row][0]] for row in rows]
    return not any(views[tape.symbol[row]] for row in producers if row >= 0)


def without_handles(tape: Tape) -> Tape:
    """The tape of a functional program as it is."""
    return replace(tape, outputs=told_by_cells(tape), cells=[], place={})


def told_by_cells(tape: Tape) -> list[Output]:
    """The results; those that share a storage have the same cell. A constant is not the user's: results copy it."""
    found = []
    for out in tape.outputs:
        constant = out.leaf >= 0 and tape.leaves[out.leaf].kind == "constant"
        leaf, region = (-1, None) if constant else (out.leaf, out.region)
        found.append(Output(out.value, leaf, region, tape.place.get(out.value, (out.cell, 0))[0]))
    return found


@dataclass
class Content:
    """What a written storage holds: its value now and after each write, and who wrote each element last."""

    start: int  # where it begins in the storage
    type: TensorType
    type_id: int
    history: list[int]
    owner: np.ndarray | None = None  # None: `floor` everywhere
    floor: int = 0  # the last write of the whole
    known: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # (offset, type) -> (value, write count)
    last: tuple[int, int] | None = None  # the region of the last write
    base: int = 0  # the content before it, and before those of the same region right before it

    @property
    def writes(self) -> int:
        return len(self.history) - 1


@dataclass(frozen=True)
class Twin:
    """An in-place call as a functional one: the input that it mutates, and what it hands to its twin (None: a copy)."""

    target: int
    op: Any
    elementwise: bool  # eager itself refuses to read one element and write it as another
    pointwise: bool = False  # its result's type does not hang on numbers
    strided: bool = False  # it needs operands with eager's strides
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    tensors: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()


class Functionalizer:
    def __init__(self, tape: Tape) -> None:
        self.old = tape
        self.new = Tape(types=tape.types, sources=tape.sources)
        self.value: dict[int, int] = {}
        self.content: dict[int, Content] = {}
        self.twins: dict[int, Twin] = {}
        self.same_symbol: dict[int, int] = {}
        self.strided: dict[int, bool] = {}  # symbol -> whether its call needs operands with eager's strides
        self.detached: set[int] = set()  # handles that show a written storage to which autograd does not follow
        self.viewed: dict[int, tuple[int, int]] = {}  # new value of a view -> what it is a view of, and where that begins
        self.known_types: dict[Any, tuple[int, ...]] = {}
        self.known_twins: dict[Any, int] = {}  # (in-place symbol, types, numbers) -> its functional twin's symbol
        self.writable: dict[int, bool] = {}  # type -> whether no two of its indices show the same element
        self.row = 0

    def run(self) -> Tape:
        old, new = self.old, self.new
        for leaf in old.leaves:
            value = new.new_value(old.value_type[leaf.value])
            new.leaves.append(Leaf(value, leaf.kind, leaf.name, leaf.tensor, leaf.position))
            self.define(leaf.value, value)
        for self.row in range(len(old)):
            symbol: Symbol = old.symbols.items[old.symbol[self.row]]
            if symbol.outputs:
                self.copy_row(symbol)
            else:
                self.write_row(symbol)
        new.guards = [(self.read(value), expected) for value, expected in old.guards]
        self.finish()
        return new

    def copy_row(self, symbol: Symbol) -> None:
        old, new, row = self.old, self.new, self.row
        if symbol.target is aten.detach.default or any(v in self.detached for v in old.inputs[row]):
            self.detached.update(v for v in (old.first[row],) if old.place.get(v, (-1, 0))[0] in self.content)
        if len(symbol.outputs) == 1 and (old.first[row] in self.detached or self.shows_a_part(old.first[row])):
            return  # who uses it reads the region as it is then
        inputs = tuple([self.read(v) for v in old.inputs[row]])
        strided = self.strided.get(old.symbol[row])
        if strided is None:
            strided = self.strided[old.symbol[row]] = rounds_by_layout(symbol.target)
        if strided:
            inputs = tuple([self.laid_out(v, handle) for v, handle in zip(inputs, old.inputs[row], strict=True)])
        types = tuple([new.value_type[v] for v in inputs])
        if types == symbol.inputs:
            number = self.same_symbol.get(old.symbol[row])
            if number is None:
                number = self.same_symbol[old.symbol[row]] = new.symbols(symbol)
            if symbol.target in REGIONS and self.merge_views(inputs[0]):
                return
        else:
            target = aten.reshape.default if symbol.target is aten.view.default else symbol.target
            outputs = self.result_types(target, symbol.args, symbol.kwargs, types, old.numbers[row])
            number = new.intern(target, symbol.args, symbol.kwargs, types, outputs, symbol.listed)
        values = new.append(number, inputs, old.numbers[row], old.source[row])
        for i, value in enumerate(values):
            self.define(old.first[row] + i, value)

    def merge_views(self, shown: int) -> bool:
        """View of a view --> read. Notes what a view of a whole tensor shows."""
        old, row = self.old, self.row
        handle = old.first[row]
        cell, start = old.place.get(handle, (-1, 0))
        if cell < 0 or old.cells[cell].written:
            return False
        base, begin = self.viewed.get(shown, (-1, 0))
        if base < 0 and contiguous(self.new.type_of(shown).shape) != self.new.type_of(shown).stride:
            return False
        if base < 0:
            self.viewed[self.next_value()] = (shown, old.place[old.inputs[row][0]][1])
            return False
        kind = old.type_of(handle)
        args = (Mark.TENSOR, kind.shape, kind.stride, Mark.INT)
        value = self.new.call(prims.read, args, old.value_type[handle], (base,), (start - begin,), old.source[row])
        self.viewed[value] = (base, begin)
        self.define(handle, value)
        return True

    def next_value(self) -> int:
        return len(self.new.value_type)

    def shows_a_part(self, old_value: int) -> bool:
        """Whether a result is a view of a part of a written storage."""
        cell = self.old.place.get(old_value, (-1, 0))[0]
        content = self.content.get(cell)
        return content is not None and self.old.type_of(old_value).numel < content.type.numel

    def define(self, old_value: int, value: int) -> None:
        self.value[old_value] = value
        place = self.old.place.get(old_value)
        if place is None or not self.old.cells[place[0]].written:
            return
        type_id = self.old.value_type[old_value]
        content = self.content.get(place[0])
        if content is None:
            kind = self.old.type_of(old_value)
            if not dense(kind):
                raise CaptureError(f"in-place writes to a tensor with strides {kind.stride} (gaps or overlaps): {self.where()}")
            whole = relaid(self.new, value, type_id, self.old.source[self.row])
            content = self.content[place[0]] = Content(place[1], kind, type_id, [whole])
        if self.old.type_of(old_value).dtype != content.type.dtype:
            raise CaptureError(f"a storage that is written in place is seen with two dtypes: {self.where()}")
        content.known[(place[1] - content.start, type_id)] = (value, content.writes)

    # -- reads ------------------------------------------------------------------------------------

    def read(self, old_value: int) -> int:
        """The value that a handle shows now."""
        place = self.old.place.get(old_value)
        content = None if place is None else self.content.get(place[0])
        if place is None or content is None:
            return self.value[old_value]
        offset, type_id = place[1] - content.start, self.old.value_type[old_value]
        value = self.held(content, offset, type_id)
        if value < 0:
            value = self.read_region(content, offset, type_id, self.last_write(content, offset, type_id))
            content.known[(offset, type_id)] = (value, content.writes)
        if old_value in self.detached:
            kind = self.new.value_type[value]
            return self.new.call(aten.detach.default, (Mark.TENSOR,), kind, (value,), (), self.old.source[self.row])
        return value

    def laid_out(self, value: int, handle: int) -> int:
        """The value, copied to where eager finds it, if that has gaps: `h = gates[:, :8]; h.add_(x).sigmoid_()`."""
        kind, have = self.old.type_of(handle), self.new.type_of(value)
        if have is kind or dense(kind) or have.stride == kind.stride or 0 in kind.stride or have.shape != kind.shape:
            return value
        type_id = self.old.value_type[handle]
        source = self.old.source[self.row]
        return self.new.call(prims.laid_out, (Mark.TENSOR, kind.stride), type_id, (value,), (), source)

    def held(self, content: Content, offset: int, type_id: int) -> int:
        """The value that is known to stand in a region now; -1 for none."""
        value, count = content.known.get((offset, type_id), (-1, -1))
        if value < 0 or count == content.writes:
            return value
        if self.last_write(content, offset, type_id) > count:
            return -1
        content.known[(offset, type_id)] = (value, content.writes)
        return value

    def last_write(self, content: Content, offset: int, type_id: int) -> int:
        """The number of the last write that touched a region: 0 for none."""
        if content.owner is None:
            return content.floor
        return int(self.owners(content, offset, type_id).max(initial=0))

    def owners(self, content: Content, offset: int, type_id: int) -> np.ndarray:
        assert content.owner is not None
        kind = self.old.types.items[type_id]
        strides = [s * content.owner.itemsize for s in kind.stride]
        return np.ndarray(kind.shape, content.owner.dtype, content.owner, offset * content.owner.itemsize, strides)

    def read_region(self, content: Content, start: int, type_id: int, last: int) -> int:
        base = content.history[last]
        kind = self.old.types.items[type_id]
        if type_id == content.type_id and start == 0:
            return base
        args = (Mark.TENSOR, kind.shape, kind.stride, Mark.INT)
        return self.new.call(prims.read, args, type_id, (base,), (start,), self.old.source[self.row])

    # -- writes -----------------------------------------------------------------------------------

    def write_row(self, symbol: Symbol) -> None:
        """In-place call --> functional call, then a write of the region that it mutates."""
        number = self.old.symbol[self.row]
        twin = self.twins.get(number)
        if twin is None:
            twin = self.twins[number] = self.twin_of(symbol)
        handle = self.old.inputs[self.row][twin.target]
        if not twin.elementwise and self.reads_what_it_writes(handle, twin.target):
            raise CaptureError(f"{symbol.name} reads the memory that it writes: {self.where()}")
        self.store(handle, self.functional_value(symbol, twin, self.old.type_of(handle)))

    def reads_what_it_writes(self, handle: int, target: int) -> bool:
        """Whether another input of an in-place call shares elements with what it writes."""
        cell, start = self.old.place[handle]
        written = self.old.type_of(handle)
        for i, other in enumerate(self.old.inputs[self.row]):
            place = self.old.place.get(other, (-1, 0))
            if i != target and place[0] == cell:
                shown = addresses(self.old.type_of(other), place[1])
                if np.intersect1d(addresses(written, start), shown).size:
                    return True
        return False

    def twin_of(self, symbol: Symbol) -> Twin:
        template = bind(symbol)
        targets = mutated_arguments(symbol)
        if len(targets) != 1 or template[targets[0]] is not Mark.TENSOR:
            raise CaptureError(f"{symbol.name} writes a list of tensors, or several: {self.where()}")
        before = list(template).index(targets[0])
        target = sum(count(t, Mark.TENSOR) for t in list(template.values())[:before])
        base = symbol.name.split(".")[0]
        if base in ("copy_", "fill_", "zero_"):
            return Twin(target, None, True)
        op = functional_twin(symbol.target)
        if op is None:
            raise CaptureError(f"{symbol.name} has no functional twin: {self.where()}")
        kept = {a.name for a in op._schema.arguments}
        args, kwargs, tensors, numbers = [], [], [], []
        tensor, number = 0, 0
        for name, shape in template.items():
            has, counts = count(shape, Mark.TENSOR), count(shape, Mark.INT) + count(shape, Mark.FLOAT)
            if name in kept:
                tensors += range(tensor, tensor + has)
                numbers += range(number, number + counts)
                if name in keyword_only(op):
                    kwargs.append((name, shape))
                else:
                    args.append(shape)
            tensor, number = tensor + has, number + counts
        given = {a.name: a.default_value for a in symbol.target._schema.arguments if a.has_default_value()}  # type: ignore[attr-defined]
        for argument in op._schema.arguments[len(args) :]:
            if argument.name in template or argument.kwarg_only or argument.has_default_value():
                break
            args.append(given[argument.name])  # left out in the in-place call, which has a default for it
        random = torch.Tag.nondeterministic_seeded in op.tags
        pointwise = torch.Tag.pointwise in op.tags and not random
        elementwise = torch.Tag.pointwise in op.tags or base.startswith("masked_fill_")
        strided = pointwise and rounds_by_layout(op)
        return Twin(target, op, elementwise, pointwise, strided, tuple(args), tuple(kwargs), tuple(tensors), tuple(numbers))

    def functional_value(self, symbol: Symbol, twin: Twin, kind: TensorType) -> int:
        """What the call writes, computed by its functional twin, in the type of the region."""
        old, new, row = self.old, self.new, self.row
        if twin.op is None:
            inputs = old.inputs[row]
            if len(inputs) > 1:
                return self.converted(self.read(inputs[1]), kind)
            return self.filled(symbol, kind)
        used = tuple([self.read(old.inputs[row][i]) for i in twin.tensors])
        if twin.strided:
            used = tuple([self.laid_out(v, old.inputs[row][i]) for v, i in zip(used, twin.tensors, strict=True)])
        given = old.numbers[row]
        numbers = tuple([given[i] for i in twin.numbers])
        types = tuple([new.value_type[v] for v in used])
        key = (old.symbol[row], types, () if twin.pointwise else (numbers, kind))
        number = self.known_twins.get(key)
        if number is None:
            if torch.Tag.nondeterministic_seeded in twin.op.tags:
                out = new.types(kind)  # a draw takes from the generator what its own shape and strides ask for
            else:
                (out,) = self.result_types(twin.op, twin.args, twin.kwargs, types, numbers)
            number = self.known_twins[key] = new.intern(twin.op, twin.args, twin.kwargs, types, (out,), False)
        (value,) = new.append(number, used, numbers, old.source[row])
        return self.converted(value, kind)

    def result_types(
        self, target: Any, args: tuple[Any, ...], kwargs: tuple[Any, ...], types: tuple[int, ...], numbers: tuple[Any, ...]
    ) -> tuple[int, ...]:
        """The types that a call gives for inputs whose strides or dtype are not those that were recorded."""
        pointwise = torch.Tag.pointwise in getattr(target, "tags", ())
        key = (target, args, kwargs, types, () if pointwise or target is aten.select.int else numbers)
        known = self.known_types.get(key)
        if known is None:
            kinds = [self.new.types.items[t] for t in types]
            # Made for real where that is cheap: meta kernels may give other strides, and import torch's compiler.
            random = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
            real = not random and (pointwise or sum(t.numel for t in kinds) <= SMALL)
            made = iter([t.empty().zero_() if real else t.empty("meta") for t in kinds])
            constants = iter(numbers)
            filled = [fill(a, made, constants) for a in args]
            named = {k: fill(a, made, constants) for k, a in kwargs}
            with torch.no_grad():
                out = target(*filled, **named)
            device = kinds[0].device
            known = tuple(
                self.new.types(TensorType(tuple(o.shape), tuple(o.stride()), o.dtype, device))
                for o in (out if isinstance(out, (tuple, list)) else [out])
            )
            self.known_types[key] = known
        return known

    def filled(self, symbol: Symbol, kind: TensorType) -> int:
        numbers = self.old.numbers[self.row]
        mark = Mark.FLOAT if numbers and isinstance(numbers[0], float) else Mark.INT
        number = numbers[0] if numbers else 0
        if symbol.name.startswith("fill_") and not numbers:
            mark = number = symbol.args[1]  # a boolean is part of the symbol
        out = self.new.types(TensorType(kind.shape, contiguous(kind.shape), kind.dtype, kind.device))
        named = (("dtype", kind.dtype), ("device", kind.device))
        given = (number,) if isinstance(mark, Mark) else ()
        return self.new.call(aten.full.default, (kind.shape, mark), out, (), given, self.old.source[self.row], named)

    def converted(self, value: int, kind: TensorType) -> int:
        """The value in the dtype, device and shape of the region that it is written to."""
        have = self.new.type_of(value)
        if have is kind:
            return value
        source = self.old.source[self.row]
        if (have.dtype, have.device) != (kind.dtype, kind.device):
            stride = have.stride if dense(have) else strides_in_order(have)
            have = TensorType(have.shape, stride, kind.dtype, kind.device)
            named = (("dtype", kind.dtype), ("device", kind.device))
            value = self.new.call(aten._to_copy.default, (Mark.TENSOR,), self.new.types(have), (value,), (), source, named)
        if have.shape != kind.shape:
            shown = torch.empty_strided(have.shape, have.stride, device="meta").expand(kind.shape)
            out = self.new.types(TensorType(kind.shape, tuple(shown.stride()), kind.dtype, kind.device))
            value = self.new.call(aten.expand.default, (Mark.TENSOR, kind.shape), out, (value,), (), source)
        return value

    def store(self, handle: int, value: int) -> None:
        """Makes `value` the content of the region that `handle` shows."""
        place = self.old.place[handle]
        content = self.content[place[0]]
        type_id = self.old.value_type[handle]
        kind = self.old.types.items[type_id]
        if type_id not in self.writable:
            self.writable[type_id] = injective(kind)
        if not self.writable[type_id]:
            raise CaptureError(f"an in-place write to an expanded tensor: {self.where()}")
        start = place[1] - content.start
        if kind.numel == 0 or self.held(content, start, type_id) == value:
            return  # `x[:, t] += v` writes twice
        number = content.writes + 1
        if content.last != (start, type_id):
            content.last, content.base = (start, type_id), content.history[-1]
        if kind.numel == content.type.numel:
            same_layout = type_id == content.type_id == self.new.value_type[value]
            value_whole = value if same_layout else self.write_call(content, value, kind, start)
            content.owner, content.floor = None, number
            content.history.append(value_whole)
        else:
            if content.owner is None:
                content.owner = np.full(content.type.numel, content.floor, dtype=np.int32)
            self.owners(content, start, type_id)[...] = number
            content.history.append(self.write_call(content, value, kind, start))
            content.known[(0, content.type_id)] = (content.history[-1], number)
        content.known[(start, type_id)] = (value, number)

    def write_call(self, content: Content, value: int, kind: TensorType, start: int) -> int:
        args = (Mark.TENSOR, Mark.TENSOR, kind.shape, kind.stride, Mark.INT)
        return self.new.call(prims.write, args, content.type_id, (content.base, value), (start,), self.old.source[self.row])

    # -- ends -------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Final contents of outside storages, and results; results that share a storage stay views of one value."""
        new = self.new
        new.mutations = [(leaf, self.read(value)) for leaf, value in self.old.mutations]
        for cell_number, content in self.content.items():
            cell = self.old.cells[cell_number]
            outside = cell.leaf >= 0 and self.old.leaves[cell.leaf].kind != "constant"
            if outside and content.writes:
                new.mutations.append((cell.leaf, content.history[-1]))
        new.outputs = [replace(out, value=self.read(out.value)) for out in told_by_cells(self.old)]

    def where(self) -> str:
        return self.old.sources.items[self.old.source[self.row]]


# kernels that give the same bits whether an element is computed in a vector or by itself
ARITHMETIC = frozenset(
    ("add", "sub", "rsub", "mul", "div", "neg", "abs", "relu", "clamp", "clamp_min", "clamp_max", "maximum", "minimum")
    + ("where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "bitwise_and")
    + ("bitwise_or", "bitwise_not", "sqrt", "floor", "ceil", "round", "trunc", "sign", "_to_copy", "clone", "threshold")
)


def rounds_by_layout(op: Any) -> bool:
    """Whether an operator is elementwise and may round by the layout of its operands.

    Kernels take whole vectors along rows without gaps, and what is left over one by one, by another formula: the last bit
    of a sigmoid hangs on the strides.
    """
    elementwise = torch.Tag.pointwise in getattr(op, "tags", ())
    return elementwise and op._schema.name.split("::")[-1] not in ARITHMETIC


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(torch.empty(shape, device="meta").stride())


def strides_in_order(kind: TensorType) -> tuple[int, ...]:
    """The strides of a fresh copy of a tensor with gaps or overlaps: dense, the dimensions in the same order."""
    like = torch.empty_strided(kind.shape, kind.stride, dtype=torch.uint8)
    return tuple(torch.empty_like(like).stride())


def injective(kind: TensorType) -> bool:
    """Whether no two indices show the same element (judged by strides: sound, and exact for views that slicing makes)."""
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(kind.stride, kind.shape, strict=True) if n != 1):
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


def addresses(kind: TensorType, start: int) -> np.ndarray:
    """Where the elements of a tensor lie in its storage."""
    found = np.asarray([start], dtype=np.int64)
    for size, stride in zip(kind.shape, kind.stride, strict=True):
        found = (found[:, None] + stride * np.arange(size)).reshape(-1)
    return found


def mutated_arguments(symbol: Symbol) -> list[str]:
    arguments = symbol.target._schema.arguments  # type: ignore[attr-defined]
    return [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]


def bind(symbol: Symbol) -> dict[str, Any]:
    """The argument templates of a row by name, in the order in which their holes are filled."""
    arguments = symbol.target._schema.arguments  # type: ignore[attr-defined]
    named = {a.name: t for a, t in zip(arguments, symbol.args, strict=False)}
    return named | dict(symbol.kwargs)


def count(template: Any, mark: Mark) -> int:
    if template is mark:
        return 1
    return sum([count(t, mark) for t in template]) if type(template) is tuple else 0


@cache
def keyword_only(op: Any) -> frozenset[str]:
    return frozenset(a.name for a in op._schema.arguments if a.kwarg_only)


@cache
def functional_twin(op: Callable[..., Any]) -> Any:
    """The overload that computes what an in-place or out= overload writes: same argument names, nothing mutated."""
    schema = op._schema  # type: ignore[attr-defined]
    name = schema.name.split("::")[1]
    wanted = [a.name for a in schema.arguments if not (a.alias_info is not None and a.alias_info.is_write and a.kwarg_only)]
    packet = None
    for candidate in (name.removesuffix("_"), name.removesuffix("_") + "_functional"):
        packet = getattr(aten, candidate, None)
        for overload in packet.overloads() if packet is not None else ():
            twin = getattr(packet, overload)
            plain = not any(a.alias_info is not None and a.alias_info.is_write for a in twin._schema.arguments)
            same = [a.name for a in twin._schema.arguments] == wanted
            types = [str(a.type) for a in twin._schema.arguments] == [
                str(a.type) for a in schema.arguments if a.name in wanted
            ]
            if plain and same and types and len(twin._schema.returns) == 1:
                return twin
    return None
