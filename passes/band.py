"""Band: the part of a network pass that may still change, once the first rows of its buffer are final.

    y = conv(pad(x))          -->    y[low':] = conv(cat([kept rows of pad(x), pad(x)[low'':]]))

Along one axis of the buffer the rows before `low` are final. What a value makes of them alone is final as well: of each
value only the rows from some `first` on are computed again. A convolution also reads rows before those, a *halo*; it comes
in as an argument, kept from an earlier pass. So a PixelCNN's passes get shorter as the image fills, row by row, and a
WaveNet's as the sound goes on (Ramachandran et al. 2017, arXiv 1704.06001, write such caches by hand).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxsolve import prims
from fxsolve.ir import CARRY, TensorType, placeholders, results

aten = torch.ops.aten
NAME = "band"


class NotBanded(Exception):
    """Why a network has no bands."""


@dataclass(frozen=True)
class Rows:
    """Rows of a value of the whole network: from `first` on along `dim`, before `stop` where that is given."""

    name: str
    dim: int
    first: int
    stop: int = -1


@dataclass(frozen=True)
class Band:
    """(buffer, invariants.., halos..) -> (the network's results.., kept values..), of which the rows change."""

    graph: fx.Graph
    halos: tuple[Rows, ...]
    results: tuple[Rows | None, ...]  # None: does not hang on the buffer
    kept: tuple[Rows, ...]


@dataclass(frozen=True)
class Part:
    """The rows of a value that are computed: a node of the band's graph."""

    node: fx.Node
    dim: int
    first: int


def band(network: fx.Graph, axis: int, low: int, keep: Iterable[str] = ()) -> Band:
    """The band of a network of one buffer, whose rows before `low` along `axis` are final.

    `keep` names values to return besides, as far back as they are known. Raises NotBanded.
    """
    names, far = tuple(keep), {}
    while True:
        try:
            return Bander(network, axis, low, far).run(names)
        except Farther:
            continue


class Farther(Exception):
    """A halo has to reach back farther than was known."""


class Bander:
    """One rewriting. `parts` maps values that vary to their rows, `env` the others to themselves."""

    def __init__(self, network: fx.Graph, axis: int, low: int, far: dict[fx.Node, int]) -> None:
        self.network, self.axis, self.low = network, axis, low
        self.far = far  # the first row of halos that are read from several places on
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.parts: dict[fx.Node, Part] = {}
        self.longer: dict[fx.Node, fx.Node] = {}  # values with their halos before them
        self.halos: dict[fx.Node, Rows] = {}

    def run(self, keep: Iterable[str]) -> Band:
        for node in placeholders(self.network):
            self.env[node] = self.graph.create_node("placeholder", node.name, name=node.name)
        self.last = next(reversed(self.env.values()))
        for node in placeholders(self.network, CARRY):
            whole = self.env.pop(node)
            self.parts[node] = Part(self.sliced(whole, self.axis, self.low), self.axis, self.low)
        for node in self.network.nodes:
            if node.op == "call_function":
                self.call(node)
        found = results(self.network)
        parts = [self.parts.get(n) for n in found]
        shown = [self.env[n] if p is None else p.node for n, p in zip(found, parts, strict=True)]
        where = [None if p is None else Rows(n.name, p.dim, p.first) for n, p in zip(found, parts, strict=True)]
        names = {node.name: node for node in self.network.nodes}
        kept, known = [], []
        for node in (names[name] for name in keep):
            part = self.parts[node]
            first = self.halos[node].first if node in self.halos else part.first
            kept.append(self.rows(node, first))
            known.append(Rows(node.name, part.dim, first))
        self.graph.output((*shown, *kept))
        return Band(self.graph, tuple(self.halos.values()), tuple(where), tuple(known))

    def call(self, node: fx.Node) -> None:
        if not any(n in self.parts for n in node.all_input_nodes):
            self.env[node] = self.graph.node_copy(node, lambda n: self.env[n])
            return
        rule = RULES.get(node.target)
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = pointwise
        if rule is None:
            raise NotBanded(f"no rule for {node.target}")
        self.parts[node] = rule(self, node)

    # -- what rules ask for -----------------------------------------------------------------------

    def new(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)

    def sliced(self, node: fx.Node, dim: int, first: int, stop: int | None = None) -> fx.Node:
        return node if first == 0 and stop is None else self.new(aten.slice.Tensor, node, dim, first, stop or 2**63 - 1)

    def rows(self, node: fx.Node, first: int) -> fx.Node:
        """The rows of a value from `first` on; those that are not computed any more are a halo."""
        part = self.parts[node]
        if first >= part.first:
            return self.sliced(part.node, part.dim, first - part.first)
        if node not in self.halos:
            begin = min(first, self.far.get(node, first))
            self.halos[node] = Rows(node.name, part.dim, begin, part.first)
            with self.graph.inserting_after(self.last):
                self.last = self.graph.create_node("placeholder", f"h_{node.name}")
            self.longer[node] = self.new(aten.cat.default, [self.last, part.node], part.dim)
        begin = self.halos[node].first
        if first < begin:
            self.far[node] = first
            raise Farther
        return self.sliced(self.longer[node], part.dim, first - begin)

    def along(self, node: fx.Node, dim: int, first: int, size: int) -> fx.Node:
        """The rows from `first` on of an operand, counted along its own `dim`; an operand of one row or none is as it is."""
        if node in self.parts:
            if self.parts[node].dim != dim or shape_of(node)[dim] != size:
                raise NotBanded(f"{node} is broadcast along its rows")
            return self.rows(node, first)
        spans = dim >= 0 and shape_of(node)[dim] == size > 1
        return self.sliced(self.env[node], dim, first) if spans else self.env[node]

    def over(self, node: fx.Node, part: Part, dim: int | None = None) -> Part:
        """The call of a node on the rows that there are, which are rows of its result as well."""
        args = fx.map_arg(node.args, lambda n: part.node if n in self.parts else self.env[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: self.env[n])
        return Part(self.new(node.target, *args, **kwargs), part.dim if dim is None else dim, part.first)  # type: ignore[arg-type]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    kind = node.meta["type"]
    return (kind[0] if isinstance(kind, tuple) else kind).shape


def argument(node: fx.Node, place: int, default: Any) -> Any:
    """An argument of a call, wherever it has a default."""
    return node.args[place] if len(node.args) > place else default


def pointwise(b: Bander, node: fx.Node) -> Part:
    """Elementwise, with broadcasting: from the first row on that changes in any operand."""
    varying = [n for n in node.all_input_nodes if n in b.parts]
    count, first = len(shape_of(node)), min(b.parts[n].first for n in varying)
    dims = {b.parts[n].dim - len(shape_of(n)) for n in varying}
    if len(dims) > 1:
        raise NotBanded(f"{node} joins rows and columns")
    (dim,) = dims
    size = shape_of(node)[dim]

    def operand(n: fx.Node) -> fx.Node:
        return b.along(n, len(shape_of(n)) + dim, first, size)

    args, kwargs = fx.map_arg(node.args, operand), fx.map_arg(node.kwargs, operand)
    return Part(b.new(node.target, *args, **kwargs), count + dim, first)  # type: ignore[arg-type]


def cat(b: Bander, node: fx.Node) -> Part:
    """Joined along another dimension than the rows."""
    tensors: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]
    parts = [b.parts[n] for n in tensors if n in b.parts]
    joined, dim, first = argument(node, 1, 0) % len(shape_of(node)), parts[0].dim, min(p.first for p in parts)
    if joined == dim:
        raise NotBanded(f"{node} joins along the rows")
    size = shape_of(node)[dim]
    return Part(b.new(aten.cat.default, [b.along(n, dim, first, size) for n in tensors], joined), dim, first)


def split(b: Bander, node: fx.Node) -> Part:
    """Into parts along another dimension."""
    (x,) = node.all_input_nodes
    if argument(node, 2, 0) % len(shape_of(x)) == b.parts[x].dim:
        raise NotBanded(f"{node} splits the rows")
    return b.over(node, b.parts[x])


def item(b: Bander, node: fx.Node) -> Part:
    return b.over(node, b.parts[node.args[0]])  # type: ignore[index]


def same(b: Bander, node: fx.Node) -> Part:
    (x,) = node.all_input_nodes
    return b.over(node, b.parts[x])


def slices(b: Bander, x: fx.Node, dim: int, begin: int, size: int) -> Part:
    """`size` rows of x from `begin` on, or of another dimension."""
    part = b.parts[x]
    if (begin, size) == (0, shape_of(x)[dim]):
        return part
    if dim != part.dim:
        return Part(b.sliced(part.node, dim, begin, begin + size), part.dim, part.first)
    first = min(max(part.first - begin, 0), size - 1)
    return Part(b.sliced(b.rows(x, first + begin), dim, 0, size - first), dim, first)


def slice_(b: Bander, node: fx.Node) -> Part:
    x: fx.Node = node.args[0]  # type: ignore[assignment]
    dim = argument(node, 1, 0) % len(shape_of(x))
    size = shape_of(x)[dim]
    begin, _, step = slice(argument(node, 2, None), argument(node, 3, None), argument(node, 4, 1)).indices(size)
    if step != 1:
        if dim == b.parts[x].dim:
            raise NotBanded(f"{node} takes every {step}-th row")
        return same(b, node)
    return slices(b, x, dim, begin, shape_of(node)[dim])


def read(b: Bander, node: fx.Node) -> Part:
    """A strided region that is a box: its slices, dimension by dimension."""
    x, size, stride, offset = node.args
    kind: TensorType = x.meta["type"]  # type: ignore[union-attr]
    if not isinstance(offset, int) or tuple(stride) != kind.stride:  # type: ignore[arg-type]
        raise NotBanded(f"{node} reads a region that is no box")
    begins = {}
    for dim in sorted(range(len(kind.shape)), key=lambda d: (-kind.stride[d], -kind.shape[d])):
        begins[dim], offset = divmod(offset, kind.stride[dim])
    if offset or any(begins[d] + n > kind.shape[d] for d, n in enumerate(size)):  # type: ignore[arg-type]
        raise NotBanded(f"{node} reads a region that is no box")
    rows = b.parts[x].dim  # type: ignore[index]
    part = slices(b, x, rows, begins[rows], size[rows])  # type: ignore[arg-type, index]
    for dim, n in enumerate(size):  # type: ignore[arg-type]
        if dim != rows and n != kind.shape[dim]:
            part = Part(b.sliced(part.node, dim, begins[dim], begins[dim] + n), rows, part.first)
    return part


def pad(b: Bander, node: fx.Node) -> Part:
    """Padding: what comes before the rows is final."""
    x: fx.Node = node.args[0]  # type: ignore[assignment]
    part, amounts = b.parts[x], list(node.args[1])  # type: ignore[arg-type]
    place = 2 * (len(shape_of(x)) - 1 - part.dim)
    before, after = (amounts[place : place + 2] + [0, 0])[:2]
    if min(before, after) < 0:
        raise NotBanded(f"{node} crops the rows")
    first = part.first + before if part.first else 0
    if first and place < len(amounts):
        amounts[place] = 0
    return Part(b.new(aten.constant_pad_nd.default, part.node, amounts, *node.args[2:]), part.dim, first)


def convolution(b: Bander, node: fx.Node) -> Part:
    """out[i] reads in[i * stride - padding + j * dilation], j = 0 .. k-1; transposed, in[i] adds to out of that place."""
    x, weight, bias, *geometry = node.args
    part = b.parts[x]  # type: ignore[index]
    if any(n in b.parts for n in (weight, bias)) or part.dim == 1:
        raise NotBanded(f"{node} has weights that vary, or rows of channels")
    if part.dim == 0:
        return b.over(node, part)
    count, d = len(shape_of(node)) - 2, part.dim - 2
    stride, padding, dilation = (list(v) * (count // len(v)) for v in geometry[:3])  # type: ignore[arg-type]
    step, before, reach = stride[d], padding[d], (shape_of(weight)[part.dim] - 1) * dilation[d]  # type: ignore[arg-type]
    rows = shape_of(node)[part.dim]
    weights = [None if n is None else b.env[n] for n in (weight, bias)]  # type: ignore[index]
    if geometry[3]:
        first = min(max(part.first * step - before, 0), rows - 1)
        begin = max(0, -((reach - before - first) // step))
        out = b.new(node.target, b.rows(x, begin), *weights, *geometry)  # type: ignore[arg-type]
        if first < begin * step:
            raise NotBanded(f"{node} pads by more than its kernel")
        return Part(b.sliced(out, part.dim, first - begin * step), part.dim, first)
    first = min(max(-((reach - before - part.first) // step), 0), rows - 1)
    begin = first * step - before
    if part.first == 0 or first == 0 or begin < 0:
        return Part(b.new(node.target, b.rows(x, 0), *weights, *geometry), part.dim, 0)  # type: ignore[arg-type]
    seen = b.rows(x, begin)  # type: ignore[arg-type]
    if before:
        seen = b.new(aten.constant_pad_nd.default, seen, [0, 0] * (count - 1 - d) + [0, before])
        padding[d] = 0
    return Part(b.new(node.target, seen, *weights, stride, padding, dilation, *geometry[3:]), part.dim, first)  # type: ignore[arg-type]


def permute(b: Bander, node: fx.Node) -> Part:
    x, dims = node.args
    part = b.parts[x]  # type: ignore[index]
    count = len(shape_of(node))
    return b.over(node, part, [d % count for d in dims].index(part.dim))  # type: ignore[union-attr]


def transpose(b: Bander, node: fx.Node) -> Part:
    x, *dims = node.args
    part, count = b.parts[x], len(shape_of(node))  # type: ignore[index]
    a, c = (d % count for d in dims)  # type: ignore[operator]
    return b.over(node, part, c if part.dim == a else a if part.dim == c else part.dim)  # type: ignore[arg-type]


def unsqueeze(b: Bander, node: fx.Node) -> Part:
    x, at = node.args
    part = b.parts[x]  # type: ignore[index]
    return b.over(node, part, part.dim + (at % len(shape_of(node)) <= part.dim))  # type: ignore[operator]


def view(b: Bander, node: fx.Node) -> Part:
    """Another shape, in which the rows stay a dimension of their own."""
    x: fx.Node = node.args[0]  # type: ignore[assignment]
    part, old, new = b.parts[x], shape_of(x), shape_of(node)
    ahead, rows = torch.Size(old[: part.dim]).numel(), old[part.dim]
    for dim, size in enumerate(new):
        if size == rows and torch.Size(new[:dim]).numel() == ahead:
            shape = [*new[:dim], rows - part.first, *new[dim + 1 :]]
            return Part(b.new(aten.reshape.default, part.node, shape), dim, part.first)
    raise NotBanded(f"{node} merges the rows with something else")


RULES: dict[Any, Callable[[Bander, fx.Node], Part]] = {
    aten.cat.default: cat,
    aten.slice.Tensor: slice_,
    aten.constant_pad_nd.default: pad,
    aten.convolution.default: convolution,
    aten.permute.default: permute,
    aten.transpose.int: transpose,
    aten.unsqueeze.default: unsqueeze,
    operator.getitem: item,
    prims.read: read,
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.unsafe_split.Tensor), split),
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default, aten.reshape.default), view),
    **dict.fromkeys((aten.alias.default, aten.detach.default, aten.clone.default, aten._to_copy.default), same),
    **dict.fromkeys((aten.ones_like.default, aten.zeros_like.default), same),
}
