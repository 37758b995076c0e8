"""The step graph of one loop: what build makes of a loop's rows."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxsolve.ir import CARRY, CONST, INDEX, STACKED, Recurrence, TensorType
from fxsolve.passes.clean import is_random_target
from fxsolve.passes.layouts import fresh, reordered, typed_call
from fxsolve.passes.numbers import TENSOR_TWINS, Number, is_scalar, scalar_dtype, vary
from fxsolve.passes.roll import Column, Loop
from fxsolve.tape import Symbol, Tape, fill

aten = torch.ops.aten


@dataclass(frozen=True)
class Carry:
    """The value of `position` from `distance` iterations ago; `values` are those of iterations -distance .. -1."""

    position: int
    distance: int
    values: tuple[int, ...]

    def next(self) -> Carry:
        """What holds the same value one iteration earlier."""
        return Carry(self.position, self.distance - 1, self.values[1:])


@dataclass(frozen=True)
class Inputs:
    """What goes into a block, as values of the tape."""

    initial: tuple[int, ...]
    stacked: tuple[tuple[int, ...], ...]
    scalars: tuple[tuple[tuple[Number, ...], TensorType], ...]  # numbers that vary, as stacked scalars
    table: tuple[tuple[int, ...], ...]  # numbers that vary, as index constants
    consts: tuple[int, ...]


class StepBuilder:
    """Builds the step of one loop. `used`: which positions are used after the loop, and in which iterations."""

    def __init__(self, tape: Tape, loop: Loop, used: Mapping[int, set[int]]) -> None:
        self.tape, self.loop = tape, loop
        self.graph = fx.Graph()
        self.source: str = tape.sources.items[tape.source[loop.start]]
        self.rows = range(loop.start, loop.start + loop.period)
        first = tape.first[loop.start]
        self.carry_keys = self.find_carries()
        self.carry_types = [tape.type_of(first + key.position) for key in self.carry_keys]
        final = {key.position for key in self.carry_keys if key.distance == 1}
        only_last = {loop.count - 1}
        self.output_positions = sorted(p for p, where in used.items() if not (p in final and where == only_last))
        self.output_types = [tape.type_of(first + p) for p in self.output_positions]
        self.varying = self.find_varying()

    def symbol(self, row: int) -> Symbol:
        return self.tape.symbols.items[self.tape.symbol[row]]

    def find_carries(self) -> list[Carry]:
        keys: dict[Carry, None] = {}
        for column in self.loop.columns:
            if column.kind == "carried":
                for distance in range(1, column.distance + 1):
                    keys[Carry(column.position, distance, column.values[-distance:])] = None
        return list(keys)

    def find_varying(self) -> dict[tuple[int, int], tuple[tuple[Number, ...], TensorType | None]]:
        """(row, k) -> the numbers of each iteration, and the type of the stacked scalar (None: an index constant)."""
        found = {}
        holes = [(row, k) for row in self.rows for k in range(len(self.tape.numbers[row]))]
        for column, (row, k) in zip(self.loop.numbers.T, holes, strict=True):
            numbers = tuple(column.tolist())
            if vary(numbers):
                symbol = self.symbol(row)
                found[(row, k)] = (numbers, self.scalar_type(symbol, k) if is_scalar(symbol, k) else None)
        return found

    def scalar_type(self, symbol: Symbol, k: int) -> TensorType:
        types = self.tape.types.items
        out: TensorType = types[symbol.outputs[0]]
        dtype = scalar_dtype(symbol, k, [types[t] for t in symbol.inputs], out)
        return TensorType((), (), dtype, out.device)

    def inputs(self) -> Inputs:
        columns = self.loop.columns
        varying = list(dict.fromkeys(self.varying.values()))
        return Inputs(
            tuple(key.values[0] for key in self.carry_keys),
            tuple(dict.fromkeys(c.values for c in columns if c.kind == "stacked")),
            tuple((numbers, kind) for numbers, kind in varying if kind is not None),
            tuple(numbers for numbers, kind in varying if kind is None),  # type: ignore[misc]
            tuple(dict.fromkeys(c.value for c in columns if c.kind == "invariant")),
        )

    # -- the graph --------------------------------------------------------------------------------

    def run(self, name: str, given: Inputs, stacked_types: Sequence[TensorType]) -> Recurrence:
        """The block. `stacked_types` are those of one row of each stacked input."""
        types = self.tape.type_of
        carries = {key: self.placeholder(CARRY, i, self.carry_types[i]) for i, key in enumerate(self.carry_keys)}
        stacked = [self.placeholder(STACKED, i, kind) for i, kind in enumerate(stacked_types)]
        indices = [self.placeholder(INDEX, i, None) for i in range(len(given.table))]
        consts = {v: self.placeholder(CONST, i, types(v)) for i, v in enumerate(given.consts)}
        pairs = zip(given.stacked, stacked, strict=False)
        stacks = {values: reordered(self.graph, node, types(values[0])) for values, node in pairs}
        numbers: dict[Any, fx.Node] = dict(zip(given.scalars, stacked[len(given.stacked) :], strict=True))
        numbers |= {(column, None): node for column, node in zip(given.table, indices, strict=True)}
        locals_ = self.body(carries, stacks, consts, numbers)
        new = [locals_[k.position] if k.distance == 1 else carries[k.next()] for k in self.carry_keys]
        outputs = [locals_[p] for p in self.output_positions]
        self.graph.output(tuple(new + outputs))
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op != "call_function" or is_random_target(n.target))
        sizes = (len(new), len(stacked), len(consts), len(outputs))
        return Recurrence(name, self.loop.count, self.graph, *sizes, given.table, self.source)

    def placeholder(self, prefix: str, number: int, kind: TensorType | None) -> fx.Node:
        name = f"{prefix}{number}"
        node = self.graph.create_node("placeholder", name, name=name)
        node.meta.update(type=kind, source="")
        return node

    def body(
        self,
        carries: Mapping[Carry, fx.Node],
        stacks: Mapping[tuple[int, ...], fx.Node],
        consts: Mapping[int, fx.Node],
        numbers: Mapping[Any, fx.Node],
    ) -> list[fx.Node]:
        """The nodes of the step's values."""
        locals_: list[fx.Node] = []

        def node_of(column: Column) -> fx.Node:
            if column.kind == "local":
                return locals_[column.position]
            if column.kind == "carried":
                return carries[Carry(column.position, column.distance, column.values)]
            return stacks[column.values] if column.kind == "stacked" else consts[column.value]

        columns = iter(self.loop.columns)
        for row in self.rows:
            inputs = [node_of(next(columns)) for _ in self.tape.inputs[row]]
            given: list[Any] = list(self.tape.numbers[row])
            scalars = {k: self.varying[(row, k)] for k in range(len(given)) if (row, k) in self.varying}
            for k, key in scalars.items():
                given[k] = numbers[key]
            twin = any(kind is not None for _, kind in scalars.values())
            locals_ += row_nodes(self.graph, self.tape, row, inputs, given, twin)
        return locals_


def row_nodes(
    graph: fx.Graph, tape: Tape, row: int, inputs: list[fx.Node], numbers: list[Any], scalar: bool = False
) -> list[fx.Node]:
    """The nodes of one row: the call, and an item of it for each result when it gives several.

    scalar: whether one of the numbers is a stacked scalar.
    """
    symbol: Symbol = tape.symbols.items[tape.symbol[row]]
    if scalar and symbol.target is aten.scalar_tensor.default:
        return numbers
    if scalar and symbol.target is aten.full.default:
        return [filled(graph, tape, row, numbers[0])]
    target = TENSOR_TWINS.get(symbol.target, symbol.target) if scalar else symbol.target
    tensors, constants = iter(inputs), iter(numbers)
    args = tuple(fill(a, tensors, constants) for a in symbol.args)
    kwargs = {k: fill(a, tensors, constants) for k, a in symbol.kwargs}
    node = graph.call_function(target, args, kwargs)
    types = tuple(tape.types.items[t] if t >= 0 else None for t in symbol.outputs)
    source = tape.sources.items[tape.source[row]]
    node.meta.update(type=types if symbol.listed else types[0], source=source)
    if not symbol.listed:
        return [node]
    items = []
    for i, kind in enumerate(types):
        item = graph.call_function(operator.getitem, (node, i))
        item.meta.update(type=kind, source=source)
        items.append(item)
    return items


def filled(graph: fx.Graph, tape: Tape, row: int, scalar: fx.Node) -> fx.Node:
    """`full` of a scalar."""
    symbol: Symbol = tape.symbols.items[tape.symbol[row]]
    kind: TensorType = tape.types.items[symbol.outputs[0]]
    source = tape.sources.items[tape.source[row]]
    shown = TensorType(kind.shape, tuple(0 for _ in kind.shape), kind.dtype, kind.device)
    wide = typed_call(graph, aten.expand.default, (scalar, list(kind.shape)), shown, source)
    node = typed_call(graph, aten.clone.default, (wide,), fresh(kind.shape, kind), source)
    node.kwargs = {"memory_format": torch.contiguous_format}
    return node
