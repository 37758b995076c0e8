"""The tape: what a recorded run did, one row an op, compact enough for hundreds of thousands of ops.

A row has a *symbol* (what ran, on which types: equal for equal work), the values that went in, the numbers among its
arguments (an index, a step size: they may differ from one loop iteration to the next), and the user's source line. Rows of
equal loop iterations have equal symbols, which is how loops are found. fx graphs are built once loops are rolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from fxsolve.ir import TensorType


class Mark(Enum):
    """Holes of a symbol's argument template."""

    TENSOR = "tensor"
    INT = "int"
    FLOAT = "float"

    __hash__ = object.__hash__  # Enum hashes names, in Python

    def __repr__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Symbol:
    """`target(*args, **kwargs)` with holes for tensors and numbers, and the types of what goes in and comes out."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    listed: bool  # whether the call returns a tuple or list

    @property
    def name(self) -> str:
        return getattr(self.target, "__name__", str(self.target))


@dataclass(frozen=True)
class Leaf:
    """A tensor that came in from outside: an argument, a parameter or other tensor that the function holds, a constant."""

    value: int
    kind: str  # "argument", "attribute" or "constant"
    name: str
    tensor: torch.Tensor
    position: int = -1  # among the flat arguments


@dataclass
class Interner:
    """Numbers things by equality, in order of first sight."""

    items: list[Any] = field(default_factory=list)
    index: dict[Any, int] = field(default_factory=dict)

    def __call__(self, item: Any) -> int:
        number = self.index.get(item)
        if number is None:
            number = self.index[item] = len(self.items)
            self.items.append(item)
        return number


@dataclass(frozen=True)
class Output:
    """One result: a value, or a region of an input or of another result's storage (then `leaf` / `base` says of which)."""

    value: int
    leaf: int = -1  # index into Tape.leaves: the result is, or is a view of, this leaf
    region: tuple[tuple[int, ...], tuple[int, ...], int] | None = None
    cell: int = -1  # results with the same cell share their storage


@dataclass(slots=True)
class Cell:
    """One storage: the first value on it, that value's offset, and the leaf that it belongs to (-1: made by the program)."""

    root: int
    offset: int
    leaf: int
    written: bool = False


@dataclass
class Tape:
    """Rows in order, and the values (numbered from 0: leaves when first used, then results of rows)."""

    symbols: Interner = field(default_factory=Interner)
    types: Interner = field(default_factory=Interner)
    sources: Interner = field(default_factory=Interner)
    symbol: list[int] = field(default_factory=list)
    inputs: list[tuple[int, ...]] = field(default_factory=list)
    numbers: list[tuple[float | int, ...]] = field(default_factory=list)
    first: list[int] = field(default_factory=list)  # the row's first result value
    source: list[int] = field(default_factory=list)
    value_type: list[int] = field(default_factory=list)
    value_row: list[int] = field(default_factory=list)  # -1: a leaf
    leaves: list[Leaf] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    mutations: list[tuple[int, int]] = field(default_factory=list)  # (leaf index, value that it holds at the end)
    guards: list[tuple[int, bool]] = field(default_factory=list)  # (value, what it must be)
    cells: list[Cell] = field(default_factory=list)
    place: dict[int, tuple[int, int]] = field(default_factory=dict)  # value -> (cell, offset in its storage)

    def intern(self, target: Callable[..., Any], *rest: Any) -> int:
        """The number of a symbol, given by the fields of `Symbol`; quick where it was seen before."""
        key = (id(target), *rest)  # operators hash in Python; the symbol keeps its target alive
        number = self.symbols.index.get(key)
        if number is None:
            number = self.symbols.index[key] = self.symbols(Symbol(target, *rest))
        return number

    def new_value(self, type_id: int, row: int = -1) -> int:
        self.value_type.append(type_id)
        self.value_row.append(row)
        return len(self.value_type) - 1

    def append(self, symbol: int, inputs: tuple[int, ...], numbers: tuple[float | int, ...], source: int) -> tuple[int, ...]:
        """Adds a row and returns its result values."""
        row = len(self.symbol)
        self.symbol.append(symbol)
        self.inputs.append(inputs)
        self.numbers.append(numbers)
        self.source.append(source)
        first = len(self.value_type)
        self.first.append(first)
        outputs = self.symbols.items[symbol].outputs
        if len(outputs) == 1:
            self.value_type.append(outputs[0])
            self.value_row.append(row)
            return (first,)
        self.value_type.extend(outputs)
        self.value_row.extend([row] * len(outputs))
        return tuple(range(first, first + len(outputs)))

    def call(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        output: int,
        inputs: tuple[int, ...],
        numbers: tuple[float | int, ...],
        source: int,
        kwargs: tuple[tuple[str, Any], ...] = (),
    ) -> int:
        """Adds a row with one result of type `output` and returns its value."""
        types = tuple(self.value_type[v] for v in inputs)
        symbol = self.intern(target, args, kwargs, types, (output,), False)
        return self.append(symbol, inputs, numbers, source)[0]

    def type_of(self, value: int) -> TensorType:
        return self.types.items[self.value_type[value]]

    def __len__(self) -> int:
        return len(self.symbol)

    def text(self) -> str:
        """The tape as text, a row a line: for goldens and for people."""
        rows = [f"%{leaf.value}: {self.type_of(leaf.value)} = {leaf.kind} {leaf.name}" for leaf in self.leaves]
        for row, number in enumerate(self.symbol):
            symbol: Symbol = self.symbols.items[number]
            tensors, numbers = iter(self.inputs[row]), iter(self.numbers[row])
            args = [show(a, tensors, numbers) for a in symbol.args]
            args += [f"{k}={show(a, tensors, numbers)}" for k, a in symbol.kwargs]
            values = range(self.first[row], self.first[row] + len(symbol.outputs))
            left = ", ".join(f"%{v}: {self.type_of(v)}" for v in values)
            rows.append(f"{left} = {symbol.name}({', '.join(args)})")
        for leaf, value in self.mutations:
            rows.append(f"{self.leaves[leaf].name} := %{value}")
        rows.append("return " + ", ".join(f"%{o.value}" for o in self.outputs))
        return "\n".join(rows)


def show(template: Any, tensors: Iterable[int], numbers: Iterable[float]) -> str:
    """One argument of a row as text, its holes filled in order."""
    return str(fill(template, (Shown(v) for v in tensors), iter(numbers)))


class Shown(int):
    def __repr__(self) -> str:
        return f"%{int(self)}"

    __str__ = __repr__


def fill(template: Any, tensors: Any, numbers: Any) -> Any:
    """The argument that a template stands for, its holes taken from two iterators."""
    if template is Mark.TENSOR:
        return next(iter(tensors))
    if template is Mark.INT or template is Mark.FLOAT:
        return next(iter(numbers))
    if type(template) is tuple and any(isinstance(t, (Mark, tuple)) for t in template):
        return [fill(t, tensors, numbers) for t in template]
    return list(template) if type(template) is tuple else template
