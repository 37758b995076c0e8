"""Build: from a tape and its loops to a program: an fx graph that calls equation blocks.

    h = f(h, x[0]); ys += [h]; h = f(h, x[1]); ys += [h]; ...; return stack(ys)
        -->   (h_T, ys) = block((h,), (x stacked,), (weights,)); return ys

Every loop becomes a Recurrence. Lists of a loop's values that are stacked or concatenated afterwards become its stacked
outputs; values that differ from step to step become stacked inputs.

Where what is left over of a loop is a value of its last iteration only, and no state, that iteration is left out of the
loop: nothing need be stacked for it, and the loop's result is its state.

Types are kept true: where a value is now a part of a stack, and its strides are in another order than those that were
recorded, it is copied into that order. (Gaps between rows do not count: no op of a program sees them.)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxsolve import prims
from fxsolve.ir import Program, Recurrence, TensorType
from fxsolve.passes.build_step import StepBuilder, row_nodes
from fxsolve.passes.clean import is_random_target
from fxsolve.passes.layouts import fresh, permuted, reordered, row_type, typed_call
from fxsolve.passes.roll import MIN_ITERATIONS, Loop
from fxsolve.tape import Symbol, Tape

aten = torch.ops.aten
NAME = "build"


def build(tape: Tape, loops: Sequence[Loop]) -> Program:
    """The program of a tape whose loops were found."""
    return Builder(tape, loops).run()


@dataclass(frozen=True)
class Where:
    """A loop's value: which loop, which position of the step, which iteration."""

    loop: int
    position: int
    iteration: int


def without_last(loop: Loop) -> Loop:
    """The loop but for its last iteration."""
    columns = [replace(c, values=c.values[:-1]) if c.kind == "stacked" else c for c in loop.columns]
    return replace(loop, count=loop.count - 1, columns=tuple(columns), numbers=loop.numbers[:-1])


class Builder:
    def __init__(self, tape: Tape, loops: Sequence[Loop]) -> None:
        self.tape = tape
        self.loops = list(loops)
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}  # value -> node of the program's graph
        self.blocks: dict[str, Recurrence] = {}
        self.finals: dict[tuple[int, int], fx.Node] = {}  # (loop, position) -> its value after the last iteration
        self.stacks: dict[tuple[int, int], fx.Node] = {}  # (loop, position) -> all its values
        self.find_uses()
        shorter = [without_last(loop) if self.asks_last_only(k) else loop for k, loop in enumerate(self.loops)]
        if any(a is not b for a, b in zip(shorter, self.loops)):
            self.loops = shorter
            self.find_uses()

    def find_uses(self) -> None:
        """Where the loops' values lie, and which of them are used after the loop."""
        firsts = [self.tape.first[loop.start] for loop in self.loops]
        self.ranges = [(first, self.value_stop(loop), self.step_values(loop)) for first, loop in zip(firsts, self.loops)]
        self.used_after = self.outside_uses()

    def asks_last_only(self, number: int) -> bool:
        """Whether of a loop's values only those of its last iteration are used, and one of them is no state."""
        loop = self.loops[number]
        carried = {column.position for column in loop.columns if column.kind == "carried"}
        one_back = all(column.distance == 1 for column in loop.columns if column.kind == "carried")
        uses = {p: where for (owner, p), where in self.used_after.items() if owner == number}
        last_only = all(where == {loop.count - 1} for where in uses.values())
        return one_back and bool(carried) and last_only and not carried.issuperset(uses) and loop.count > MIN_ITERATIONS

    def step_values(self, loop: Loop) -> int:
        tape = self.tape
        rows = range(loop.start, loop.start + loop.period)
        return sum(len(tape.symbols.items[tape.symbol[row]].outputs) for row in rows)

    def value_stop(self, loop: Loop) -> int:
        return self.tape.first[loop.start] + self.step_values(loop) * loop.count

    def locate(self, value: int) -> Where | None:
        for number, (low, high, size) in enumerate(self.ranges):
            if low <= value < high:
                return Where(number, (value - low) % size, (value - low) // size)
        return None

    def outside_uses(self) -> dict[tuple[int, int], set[int]]:
        """(loop, position) -> the iterations whose value is used after the loop."""
        tape = self.tape
        uses: dict[tuple[int, int], set[int]] = {}
        inside = [(loop.start, loop.stop) for loop in self.loops]
        row, plain = 0, []
        for start, stop in inside:
            plain += range(row, start)
            row = stop
        plain += range(row, len(tape))
        wanted = [v for r in plain for v in tape.inputs[r]]
        wanted += [o.value for o in tape.outputs] + [v for _, v in tape.mutations] + [v for v, _ in tape.guards]
        for loop in self.loops:
            for column in loop.columns:
                wanted += [*column.values, *([column.value] if column.value >= 0 else [])]
        for value in wanted:
            place = self.locate(value)
            if place is not None:
                uses.setdefault((place.loop, place.position), set()).add(place.iteration)
        return uses

    # -- the program's graph ----------------------------------------------------------------------

    def run(self) -> Program:
        tape = self.tape
        for number, leaf in enumerate(tape.leaves):
            node = self.graph.create_node("placeholder", f"{leaf.kind[0]}{number}", name=f"{leaf.kind[0]}{number}")
            node.meta.update(type=tape.type_of(leaf.value), source="")
            self.nodes[leaf.value] = node
        row = 0
        for number, loop in enumerate(self.loops):
            self.plain_rows(row, loop.start)
            self.block(number, loop)
            row = loop.stop
        self.plain_rows(row, len(tape))
        returned = [o.value for o in tape.outputs] + [v for _, v in tape.mutations]
        guards = self.guards()
        self.graph.output((*[self.node(v) for v in returned], *[node for node, _ in guards]))
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op != "call_function" or is_random_target(n.target))
        return Program(
            self.graph,
            self.blocks,
            tuple(tape.leaves),
            tuple(tape.outputs),
            tuple(leaf for leaf, _ in tape.mutations),
            tuple(expected for _, expected in guards),
        )

    def guards(self) -> list[tuple[fx.Node, bool]]:
        """The guarded values; those of a loop's steps as one: `all(g_1, .., g_T)`."""
        found: list[tuple[fx.Node, bool]] = []
        steps: dict[tuple[int, int], list[int]] = {}
        for value, expected in self.tape.guards:
            place = self.locate(value)
            if place is None or not expected:
                found.append((self.node(value), expected))
            else:
                steps.setdefault((place.loop, place.position), []).append(place.iteration)
        for key, iterations in steps.items():
            stack = self.stacks[key]
            rows = self.rows(stack, iterations, stack.meta["source"])
            kind = TensorType((), (), torch.bool, stack.meta["type"].device)
            found.append((self.call(aten.all.default, (rows,), kind, stack.meta["source"]), True))
        return found

    def plain_rows(self, low: int, high: int) -> None:
        for row in range(low, high):
            symbol: Symbol = self.tape.symbols.items[self.tape.symbol[row]]
            if symbol.target in (aten.stack.default, aten.cat.default) and self.is_long(self.tape.inputs[row]):
                result = self.joined(row, symbol)
            else:
                inputs = [self.node(v) for v in self.tape.inputs[row]]
                result = row_nodes(self.graph, self.tape, row, inputs, list(self.tape.numbers[row]))
            for i, node in enumerate(result):
                self.nodes[self.tape.first[row] + i] = node

    def is_long(self, values: tuple[int, ...]) -> bool:
        """Whether a list is of values that a loop, or an `unbind`, gives one by one."""
        tape = self.tape
        rows = [tape.value_row[v] for v in values]
        unbound = [row for row in rows if row >= 0 and tape.symbols.items[tape.symbol[row]].target is aten.unbind.int]
        return len(values) > 3 and bool(unbound or any(self.locate(v) is not None for v in values))

    def node(self, value: int) -> fx.Node:
        """The node that holds a value outside of the loops; a loop's value is taken from its stack."""
        known = self.nodes.get(value)
        if known is not None:
            return known
        place = self.locate(value)
        assert place is not None, f"value {value} has no node"
        key = (place.loop, place.position)
        if place.iteration == self.loops[place.loop].count - 1 and key in self.finals:
            node = self.finals[key]
        else:
            stack = self.stacks[key]
            node = self.call(aten.select.int, (stack, 0, place.iteration), row_type(stack), stack.meta["source"])
            node = reordered(self.graph, node, self.tape.type_of(value))
        self.nodes[value] = node
        return node

    def call(self, target: Any, args: tuple[Any, ...], kind: TensorType, source: str) -> fx.Node:
        return typed_call(self.graph, target, args, kind, source)

    # -- many values as one -----------------------------------------------------------------------

    def joined(self, row: int, symbol: Symbol) -> list[fx.Node]:
        """`stack` or `cat` of a long list: values of one loop are taken from its stack at once."""
        tape = self.tape
        kind = tape.types.items[symbol.outputs[0]]
        source = tape.sources.items[tape.source[row]]
        dim = (int(tape.numbers[row][0]) if tape.numbers[row] else 0) % len(kind.shape)
        stacking = symbol.target is aten.stack.default
        pieces = self.pieces(tape.inputs[row])
        if len({tape.type_of(piece[0]).shape for piece in pieces}) == 1:
            parts = [self.stacked(piece, source) for piece in pieces]
            parts = [reordered(self.graph, part, fresh(part.meta["type"].shape, part.meta["type"])) for part in parts]
            one = tape.type_of(pieces[0][0])
            whole = fresh((len(tape.inputs[row]), *one.shape), one)
            stack = parts[0] if len(parts) == 1 else self.call(aten.cat.default, (parts, 0), whole, source)
            return [reordered(self.graph, self.spread(stack, dim, stacking, source), kind)]
        parts = []
        for piece in pieces:
            one = self.node(piece[0]) if len(piece) == 1 else self.spread(self.stacked(piece, source), dim, False, source)
            parts.append(reordered(self.graph, one, fresh(one.meta["type"].shape, one.meta["type"])))
        return [self.call(aten.cat.default, (parts, dim), kind, source)]

    def pieces(self, values: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Cuts a list into stretches that one stack holds, and single values."""
        out: list[list[int]] = []
        previous: tuple[int, int] | None = None
        for value in values:
            place = self.locate(value)
            stack = None if place is None else (place.loop, place.position)
            if stack is not None and stack == previous:
                out[-1].append(value)
            else:
                out.append([value])
            previous = stack
        return [tuple(piece) for piece in out]

    def spread(self, stack: fx.Node, dim: int, stacking: bool, source: str) -> fx.Node:
        """(T, *S) --> S with T at `dim` (stack), or with S[dim] * T there (cat)."""
        kind: TensorType = stack.meta["type"]
        if dim:
            order = [*range(1, dim + 1), 0, *range(dim + 1, len(kind.shape))]
            stack = self.call(aten.permute.default, (stack, order), permuted(kind, order), source)
            kind = stack.meta["type"]
        if stacking:
            return stack
        shape = (*kind.shape[:dim], kind.shape[dim] * kind.shape[dim + 1], *kind.shape[dim + 2 :])
        return self.call(aten.reshape.default, (stack, list(shape)), fresh(shape, kind), source)

    def stacked(self, values: tuple[int, ...], source: str) -> fx.Node:
        """One tensor (T, *S) of T values: from a loop's stack or an `unbind`, or stacked here."""
        tape = self.tape
        one = tape.type_of(values[0])
        kind = fresh((len(values), *one.shape), one)
        places = [self.locate(v) for v in values]
        first = places[0]
        if len(values) == 1:
            node = self.node(values[0])
            have: TensorType = node.meta["type"]
            kind = TensorType(kind.shape, (kind.stride[0], *have.stride), have.dtype, have.device)
            return self.call(aten.unsqueeze.default, (node, 0), kind, source)
        if first is not None and all(p is not None and (p.loop, p.position) == (first.loop, first.position) for p in places):
            whole = self.stacks[(first.loop, first.position)]
            rows = [p.iteration for p in places if p is not None]
            return self.rows(whole, rows, source)
        producers = {tape.value_row[v] for v in values}
        row = producers.pop()
        if not producers and row >= 0 and tape.symbols.items[tape.symbol[row]].target is aten.unbind.int:
            whole = self.node(tape.inputs[row][0])
            dim = (int(tape.numbers[row][0]) if tape.numbers[row] else 0) % len(whole.meta["type"].shape)
            if dim:
                order = [dim, *(d for d in range(len(whole.meta["type"].shape)) if d != dim)]
                whole = self.call(aten.permute.default, (whole, order), permuted(whole.meta["type"], order), source)
            return self.rows(whole, [v - tape.first[row] for v in values], source)
        return self.call(aten.stack.default, ([self.node(v) for v in values], 0), kind, source)

    def rows(self, whole: fx.Node, rows: list[int], source: str) -> fx.Node:
        """`whole[rows]`: nothing, a slice or a flip where the rows allow it."""
        count, all_rows = len(rows), whole.meta["type"]
        size = all_rows.shape[0]
        if rows == list(range(size)):
            return whole
        kind = TensorType((count, *all_rows.shape[1:]), all_rows.stride, all_rows.dtype, all_rows.device)
        if rows == list(range(rows[0], rows[0] + count)):
            return self.call(aten.slice.Tensor, (whole, 0, rows[0], rows[0] + count), kind, source)
        if rows == list(range(rows[0], rows[0] - count, -1)):
            part = whole
            if count != size:
                part = self.call(aten.slice.Tensor, (whole, 0, rows[-1], rows[0] + 1), kind, source)
            return self.call(aten.flip.default, (part, [0]), kind, source)
        return self.call(prims.take, (whole, tuple(rows)), fresh(kind.shape, kind), source)

    # -- one loop ---------------------------------------------------------------------------------

    def block(self, number: int, loop: Loop) -> None:
        used = {p: iterations for (owner, p), iterations in self.used_after.items() if owner == number}
        step = StepBuilder(self.tape, loop, used)
        given = step.inputs()
        initial = tuple([self.node(v) for v in given.initial])
        stacked = [self.stacked(values, step.source) for values in given.stacked]
        for numbers, kind in given.scalars:
            args = (numbers, kind.dtype, kind.device)
            stacked.append(self.call(prims.constants, args, fresh((loop.count,), kind), step.source))
        consts = tuple([self.node(v) for v in given.consts])
        block = step.run(f"block{number}", given, [row_type(node) for node in stacked])
        self.blocks[block.name] = block
        call = self.graph.create_node("call_module", block.name, (initial, tuple(stacked), consts), name=block.name)
        types = [*step.carry_types, *(fresh((loop.count, *t.shape), t) for t in step.output_types)]
        call.meta.update(type=tuple(types), source=block.source)
        for i, key in enumerate(step.carry_keys):
            if key.distance == 1:
                self.finals[(number, key.position)] = self.call(operator.getitem, (call, i), types[i], block.source)
        for i, position in enumerate(step.output_positions):
            index = len(step.carry_keys) + i
            self.stacks[(number, position)] = self.call(operator.getitem, (call, index), types[index], block.source)
