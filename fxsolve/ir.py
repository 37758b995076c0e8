"""The intermediate representation: typed torch.fx graphs, equation blocks, programs, and one verifier.

Every graph that a pass sees is a `torch.fx.Graph` in which

- ops are `placeholder`, `call_function` and `output`, and in a program's own graph `call_module`: an equation block,
  called with three tuples (initial carries or buffers, stacked inputs, invariants);
- call targets are ATen overloads (`torch.ops.aten.mul.Tensor`), `operator.getitem`, or a function of `fxsolve.prims`;
- all calls are functional: nothing mutates its inputs;
- `node.meta["type"]` is a `TensorType` (or a tuple of them for calls with several results, None for a static value);
- `node.meta["source"]` is the user's `file:line`, or "".
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

if TYPE_CHECKING:
    from fxsolve.tape import Leaf, Output


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape, strides (in elements), dtype and device of a value."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(value: torch.Tensor) -> TensorType:
        return TensorType(tuple(value.shape), tuple(value.stride()), value.dtype, value.device)

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def span(self) -> int:
        """The elements of memory from the first one to the last one."""
        return 1 + sum([s * (n - 1) for s, n in zip(self.stride, self.shape, strict=True)]) if self.numel else 0

    def empty(self, device: torch.device | str | None = None) -> torch.Tensor:
        """An uninitialised tensor of this type, elsewhere if a device is given."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device or self.device)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}[{','.join(map(str, self.shape))}]"


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides of `shape`, as torch gives them to a fresh tensor."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


# The name prefix of a placeholder of a step graph says what it is.
CARRY, STACKED, INDEX, CONST = "s", "x", "i", "c"


@dataclass(frozen=True)
class Recurrence:
    """`s_t, y_t = h(s_{t-1}, x_t, i_t, c)` for t = 1..T (the semantics of `scan`).

    `step` has the placeholders, in this order: carries `s0, s1, ..`, stacked inputs `x0, ..`, index constants `i0, ..`
    (Python ints, one column of `table` each), invariants `c0, ..`; it returns one tuple `(s0', s1', .., y0, y1, ..)`.
    A carry keeps its type from step to step. With `reverse` the steps run from t = T down to 1; stacks stay in place.
    """

    name: str
    length: int
    step: fx.Graph
    carries: int
    stacked: int
    consts: int
    outputs: int
    table: tuple[tuple[int, ...], ...]
    source: str = ""
    reverse: bool = False

    kind = "Recurrence"

    @property
    def body(self) -> fx.Graph:
        """The graph of its equations."""
        return self.step


@dataclass(frozen=True)
class FixedPoint:
    """`s = G(s)`: a slot buffer that is written one slot a step, slot t from the slots before it (causal, proved).

    `network` maps (buffers.., invariants..) to what the head reads, in ONE pass for all slots; `head` maps, per slot,
    (network results.., stacked inputs.., index constants..) to the values of slot t, one for each buffer.
    `slots[b]` gives the geometry of buffer b's slots.
    """

    name: str
    length: int
    network: fx.Graph
    head: fx.Graph
    buffers: int
    consts: int
    features: int
    stacked: int
    outputs: int
    table: tuple[tuple[int, ...], ...]
    slots: tuple[Slots, ...]
    proof: str = ""
    source: str = ""

    kind = "FixedPoint"


@dataclass(frozen=True)
class Slots:
    """Where step t of a block writes a buffer: a strided region at `offsets[t]` elements from the buffer's start."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Chain:
    """`s_l = h_l(s_{<l}, c)`, l = 1..L, with layers h_l that differ and states of different shapes.

    `layers` has the placeholders `s0, s1, ..` (all states) and `c0, c1, ..` (what layers read from outside), and returns
    all states, computed: one Jacobi sweep. State l is computed from states before it only. `asked` are the states that the
    program uses; the call gives None for the others.
    """

    name: str
    length: int
    layers: fx.Graph
    consts: int
    asked: tuple[int, ...]
    source: str = ""

    kind = "Chain"

    @property
    def body(self) -> fx.Graph:
        """The graph of its equations."""
        return self.layers


EquationBlock = Recurrence | FixedPoint | Chain


@dataclass(frozen=True)
class Program:
    """A captured program: a graph over its leaves, and the equation blocks that the graph calls by name.

    The placeholders of `graph` stand for `leaves`, in order. It returns one flat tuple: the results (`outputs` says which
    are views of a leaf), then the final contents of the leaves that the program mutates, then the guarded values.
    """

    graph: fx.Graph
    blocks: Mapping[str, EquationBlock]
    leaves: tuple[Leaf, ...]
    outputs: tuple[Output, ...]
    mutated: tuple[int, ...]
    guards: tuple[bool, ...]


def calls(graph: fx.Graph) -> Iterator[fx.Node]:
    """The call nodes of a graph in order."""
    return (node for node in graph.nodes if node.op == "call_function")


def placeholders(graph: fx.Graph, *prefixes: str) -> list[fx.Node]:
    """The placeholders whose name starts with one of the prefixes, in order; all of them without a prefix."""
    return [n for n in graph.nodes if n.op == "placeholder" and n.name.startswith(prefixes or "")]


def results(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The arguments of the output node, which always is one flat tuple."""
    (out,) = [n for n in graph.nodes if n.op == "output"]
    return tuple(out.args[0])  # type: ignore[arg-type]


def is_getitem(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem


def to_text(graph: fx.Graph) -> str:
    """A graph as text, one node a line with its type: what goldens and error messages show."""
    lines = []
    for node in graph.nodes:
        if node.op == "placeholder":
            lines.append(f"{node.name}: {node.meta.get('type')}")
        elif node.op == "output":
            lines.append("return " + ", ".join(str(a) for a in node.args[0]))
        else:
            target = node.target if node.op == "get_attr" else getattr(node.target, "__name__", str(node.target))
            arguments = [str(a) for a in node.args] + [f"{k}={v}" for k, v in node.kwargs.items()]
            shown = node.meta.get("type")
            shown = "(" + ", ".join(map(str, shown)) + ")" if isinstance(shown, tuple) else str(shown)
            lines.append(f"{node.name}: {shown} = {target}({', '.join(arguments)})")
    return "\n".join(lines)
