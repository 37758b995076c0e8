"""Sink: pick first, compute then.

    a = log(u); b = exp(s) * a; y = b[:, :, i, j]      -->      y = exp(s[:, :, i, j]) * log(u[:, :, i, j])

Samplers often work out a whole image in every step and keep one pixel of it. What is picked by the step's index constants
moves up through ops that treat the other places alike (elementwise ops, reductions over other dimensions, permutations,
views), as far as the values differ from step to step by more than the state: up to what a network says, which is the same
for all steps, and up to the noise. Dimensions that are picked keep size 1 on the way.

An op may round differently at other shapes: whoever uses the result compares it with the original (fxsolve.schedule).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import fx

from fxsolve import prims
from fxsolve.ir import CARRY, CONST, INDEX, STACKED, Recurrence, TensorType, placeholders, results
from fxsolve.passes.clean import is_random_target
from fxsolve.passes.graphs import depending_on, placeholder_like

aten = torch.ops.aten
NAME = "sink"
Column = tuple[int, ...]  # an index constant, step by step
Pick = Mapping[int, Column]  # dimension -> where the step picks in it

ELEMENTWISE = (aten._to_copy.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.zeros_like.default)
# op -> position of the dimension(s), whether those go unless keepdim (at the next position) says otherwise
REDUCTIONS: dict[Any, bool] = {
    aten.sum.dim_IntList: True, aten.mean.dim: True, aten.amax.default: True, aten.amin.default: True,
    aten.argmax.default: True, aten.argmin.default: True, aten.logsumexp.default: True, aten.max.dim: True,
    aten.min.dim: True, aten._softmax.default: False, aten._log_softmax.default: False, aten.cumsum.default: False,
    aten.sort.default: False, aten.topk.default: False,
}  # fmt: skip


def sink(block: Recurrence) -> Recurrence | None:
    """The block with its picks moved up; None if there is nothing to move."""
    found = Sinker(block)
    return found.run() if found.picks else None


class Stuck(Exception):
    """The pick cannot move through this op."""


class Sinker:
    def __init__(self, block: Recurrence) -> None:
        self.block, step = block, block.step
        self.varying = depending_on(step, placeholders(step, STACKED) + placeholders(step, INDEX))
        self.stateful = depending_on(step, placeholders(step, CARRY))
        self.indices = placeholders(step, INDEX)
        self.picks: dict[fx.Node, Pick] = {}
        computed: set[fx.Node] = set()  # from the state and by the step, by more than moving elements
        for node in step.nodes:
            mixed = node in self.varying and node in self.stateful
            if mixed and (node.target not in MOVES or any(n in computed for n in node.all_input_nodes)):
                computed.add(node)
            pick = self.pick_of(node)
            if pick and node.args[0] in computed:
                self.picks[node] = pick
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.columns: dict[Column, fx.Node] = {}
        self.advanced: set[fx.Node] = set()  # new nodes whose pick moved up past an op that computes
        self.sunk: dict[tuple[fx.Node, tuple[tuple[int, Column], ...]], fx.Node] = {}

    def pick_of(self, node: fx.Node) -> Pick | None:
        """Which dimensions of its operand a select or read picks by index constants, keeping the others whole."""
        if node.target is aten.select.int and node.args[2] in self.indices:
            x, dim, index = node.args
            return {int(dim) % len(shape_of(x)): self.column(index)}  # type: ignore[call-overload]
        if node.target is not prims.read or not isinstance(node.args[3], fx.Node) or node.args[3] not in self.indices:
            return None
        base, shape, stride, offset = node.args
        kind: TensorType = base.meta["type"]  # type: ignore[union-attr]
        kept: list[Any] = list(zip(shape, stride, strict=True))  # type: ignore[arg-type]
        picked: list[int] = []
        for dim, (size, step) in enumerate(zip(kind.shape, kind.stride, strict=True)):
            if kept and kept[0][0] == size and (size == 1 or kept[0][1] == step):
                kept.pop(0)
            else:
                picked.append(dim)
        if kept:
            return None
        rest = list(self.column(offset))
        places: dict[int, Column] = {}
        for dim in sorted(picked, key=lambda d: -kind.stride[d]):
            size, step = kind.shape[dim], kind.stride[dim]
            places[dim] = tuple(r // step if size > 1 else 0 for r in rest)
            rest = [r - i * step for r, i in zip(rest, places[dim], strict=True)]
            if max(places[dim]) >= size:
                return None
        return None if any(rest) else places

    def column(self, index: Any) -> Column:
        return self.block.table[self.indices.index(index)]

    def run(self) -> Recurrence | None:
        step, graph = self.block.step, self.graph
        for prefix in (CARRY, STACKED, INDEX):
            for node in placeholders(step, prefix):
                self.env[node] = placeholder_like(graph, node, node.name)
        self.columns = {c: self.env[n] for c, n in zip(self.block.table, self.indices, strict=True)}
        last = graph.create_node("placeholder", "end")  # where further index constants go in
        for node in placeholders(step, CONST):
            self.env[node] = placeholder_like(graph, node, node.name)
        self.first_const, moved = last, False
        for node in step.nodes:
            if node.op != "call_function":
                continue
            if node in self.picks:
                whole = self.picked(node.args[0], self.picks[node])  # type: ignore[arg-type]
                if whole in self.advanced:
                    self.env[node] = self.call(aten.squeeze.dims, (whole, sorted(self.picks[node])), node)
                    moved = True
                    continue
            self.env[node] = graph.node_copy(node, lambda n: self.env[n])
        graph.output(tuple(self.env[n] for n in results(step)))
        graph.erase_node(last)
        graph.eliminate_dead_code(is_impure_node=lambda n: n.op != "call_function" or is_random_target(n.target))
        table = tuple(self.columns)
        return replace(self.block, step=graph, table=table) if moved else None

    # -- moving a pick up -------------------------------------------------------------------------

    def picked(self, node: fx.Node, pick: Pick) -> fx.Node:
        """The value of a node where it is picked; the picked dimensions have size 1."""
        kind = node.meta["type"]
        pick = {d: c for d, c in pick.items() if isinstance(kind, tuple) or kind.shape[d] != 1}
        if not pick:
            return self.env[node]
        key = (node, tuple(sorted(pick.items())))
        if key not in self.sunk:
            self.sunk[key] = self.moved(node, pick)
        return self.sunk[key]

    def moved(self, node: fx.Node, pick: Pick) -> fx.Node:
        if node in self.varying and node.op == "call_function":
            rule = RULES.get(node.target) or (elementwise if is_elementwise(node) else None)
            if rule is not None:
                try:
                    made = rule(self, node, pick)
                    if node.target not in MOVES or any(n in self.advanced for n in made.all_input_nodes):
                        self.advanced.add(made)
                    return made
                except Stuck:
                    pass
        return self.taken(node, pick)

    def taken(self, node: fx.Node, pick: Pick) -> fx.Node:
        """The pick itself."""
        value, kind = self.env[node], node.meta["type"]
        for dim, column in pick.items():
            shape = (*kind.shape[:dim], 1, *kind.shape[dim + 1 :])
            one = TensorType(shape[:dim] + shape[dim + 1 :], drop(kind.stride, dim), kind.dtype, kind.device)
            value = self.typed(aten.select.int, (value, dim, self.index(column)), {}, one, node)
            stride = (*kind.stride[:dim], kind.stride[dim] * kind.shape[dim], *kind.stride[dim + 1 :])
            like = torch.empty_strided(one.shape, one.stride, device="meta").unsqueeze(dim)
            kind = TensorType(shape, tuple(like.stride()) if like.numel() else stride, kind.dtype, kind.device)
            value = self.typed(aten.unsqueeze.default, (value, dim), {}, kind, node)
        return value

    def index(self, column: Column) -> fx.Node:
        if column not in self.columns:
            with self.graph.inserting_before(self.first_const):
                name = f"{INDEX}{len(self.columns)}"
                self.columns[column] = node = self.graph.create_node("placeholder", name, name=name)
                node.meta.update(type=None, source="")
        return self.columns[column]

    def typed(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kind: Any, like: fx.Node) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta.update(type=kind, source=like.meta.get("source", ""))
        return node

    def call(self, target: Any, args: Sequence[Any], like: fx.Node, kwargs: Mapping[str, Any] | None = None) -> fx.Node:
        """A call whose type is found by a run on zeros."""
        given, named = fx.map_arg((tuple(args), dict(kwargs or {})), zeros_of)
        made = target(*given, **{k: torch.device("cpu") if isinstance(v, torch.device) else v for k, v in named.items()})
        many = isinstance(made, (tuple, list))
        old = like.meta["type"]
        device = (old[0] if isinstance(old, tuple) else old).device
        kinds = tuple(TensorType(tuple(m.shape), tuple(m.stride()), m.dtype, device) for m in (made if many else [made]))
        return self.typed(target, tuple(args), dict(kwargs or {}), kinds if many else kinds[0], like)


def zeros_of(node: fx.Node) -> Any:
    kind = node.meta["type"]
    if kind is None:
        return 0
    if isinstance(kind, tuple):
        return tuple(k.empty("cpu").zero_() for k in kind)
    return kind.empty("cpu").zero_()


def drop(values: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return values[:dim] + values[dim + 1 :]


def is_elementwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.target in ELEMENTWISE or (torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags)


MOVES = frozenset(
    (aten.select.int, aten.unsqueeze.default, aten.squeeze.dims, aten.slice.Tensor, aten.permute.default)
    + (aten.view.default, aten.reshape.default, aten.expand.default, aten.detach.default, prims.read)
)

# -- rules: the node where it is picked ---------------------------------------------------------------

Rule = Callable[[Sinker, fx.Node, Pick], fx.Node]


def shape_of(node: Any) -> tuple[int, ...]:
    return node.meta["type"].shape


def elementwise(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    rank = len(shape_of(node))

    def place(arg: fx.Node) -> fx.Node:
        if arg.meta["type"] is None:  # an index constant
            return sinker.env[arg]
        ahead = rank - len(shape_of(arg))
        return sinker.picked(arg, {d - ahead: c for d, c in pick.items() if d >= ahead})

    args, kwargs = fx.map_arg((node.args, node.kwargs), place)
    return sinker.call(node.target, args, node, kwargs)


def permute(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    x, dims = node.args
    rank = len(dims)  # type: ignore[arg-type]
    inner = sinker.picked(x, {dims[d] % rank: c for d, c in pick.items()})  # type: ignore[arg-type, index, operator]
    return sinker.call(node.target, (inner, dims), node)


def transpose(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    x, *given = node.args
    rank = len(shape_of(x))
    a, b = (int(d) % rank for d in (given or (0, rank - 1)))  # type: ignore[call-overload]
    swap = {a: b, b: a}
    inner = sinker.picked(x, {swap.get(d, d): c for d, c in pick.items()})  # type: ignore[arg-type]
    return sinker.call(node.target, (inner, *given), node)


def unsqueeze(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    x, dim = node.args
    at = int(dim) % len(shape_of(node))  # type: ignore[call-overload]
    inner = sinker.picked(x, {d - (d > at): c for d, c in pick.items()})  # type: ignore[arg-type]
    return sinker.call(node.target, (inner, dim), node)


def slice_(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    x, dim = node.args[0], int(node.args[1] if len(node.args) > 1 else 0)  # type: ignore[call-overload]
    if dim % len(shape_of(x)) in pick:
        raise Stuck
    return sinker.call(node.target, (sinker.picked(x, pick), *node.args[1:]), node)  # type: ignore[arg-type]


def select(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    x, dim, index = node.args
    at = int(dim) % len(shape_of(x))  # type: ignore[call-overload]
    inner = {d + (d >= at): c for d, c in pick.items()}
    if isinstance(index, fx.Node):
        inner[at], index = sinker.column(index), 0
    return sinker.call(node.target, (sinker.picked(x, inner), dim, index), node)  # type: ignore[arg-type]


def reduction(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    """Reductions and other work along dimensions that are not picked."""
    x: Any = node.args[0]
    rank = len(shape_of(x))
    position = 2 if node.target is aten.topk.default else 1
    given: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim")
    if given is None or given == []:  # over all dimensions
        raise Stuck
    dims = sorted({int(d) % rank for d in (given if isinstance(given, (list, tuple)) else [given])})
    keep = not REDUCTIONS[node.target] or bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
    left = list(range(rank)) if keep else [d for d in range(rank) if d not in dims]
    inner = {left[d]: c for d, c in pick.items()}
    if any(d in inner for d in dims):
        raise Stuck
    return sinker.call(node.target, (sinker.picked(x, inner), *node.args[1:]), node, node.kwargs)


def view(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    """A picked dimension must stand in both shapes, with as many elements before it."""
    x = node.args[0]
    before, after = shape_of(x), shape_of(node)
    inner, sizes = {}, list(after)
    for d, column in pick.items():
        same = [e for e in range(len(before)) if before[e] == after[d] and prod(before[:e]) == prod(after[:d])]
        if not same:
            raise Stuck
        inner[same[-1]] = column
        sizes[d] = 1
    return sinker.call(aten.reshape.default, (sinker.picked(x, inner), sizes), node)  # type: ignore[arg-type]


def expand(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    x = node.args[0]
    ahead = len(shape_of(node)) - len(shape_of(x))
    sizes = [1 if d in pick else size for d, size in enumerate(shape_of(node))]
    inner = sinker.picked(x, {d - ahead: c for d, c in pick.items() if d >= ahead})  # type: ignore[arg-type]
    return sinker.call(aten.expand.default, (inner, sizes), node)


def cat(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    parts: Any = node.args[0]
    dim = int(node.args[1] if len(node.args) > 1 else 0)  # type: ignore[call-overload]
    stacking = node.target is aten.stack.default
    at = dim % len(shape_of(node))
    if at in pick:
        raise Stuck
    inner = {d - (stacking and d > at): c for d, c in pick.items()}
    return sinker.call(node.target, ([sinker.picked(p, inner) for p in parts], dim), node)


def item(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    """One result of several: the call that makes them is picked."""
    whole: Any = node.args[0]
    number: Any = node.args[1]
    if whole.target not in RULES:
        raise Stuck
    made = RULES[whole.target](sinker, whole, pick)
    return sinker.typed(operator.getitem, (made, number), {}, made.meta["type"][number], node)


def split(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    x = node.args[0]
    dim = int(node.args[2] if len(node.args) > 2 else 0)  # type: ignore[call-overload]
    if dim % len(shape_of(x)) in pick:
        raise Stuck
    return sinker.call(node.target, (sinker.picked(x, pick), *node.args[1:]), node)  # type: ignore[arg-type]


def along(sinker: Sinker, node: fx.Node, pick: Pick) -> fx.Node:
    """Gather and scatter along a dimension that is not picked: all tensors are picked alike."""
    x, dim = node.args[:2]
    if int(dim) % len(shape_of(x)) in pick:  # type: ignore[call-overload]
        raise Stuck
    args = [sinker.picked(a, pick) if isinstance(a, fx.Node) else a for a in node.args]
    return sinker.call(node.target, args, node, node.kwargs)


RULES: dict[Any, Rule] = {
    aten.permute.default: permute,
    aten.transpose.int: transpose,
    aten.unsqueeze.default: unsqueeze,
    aten.slice.Tensor: slice_,
    aten.select.int: select,
    aten.view.default: view,
    aten.reshape.default: view,
    aten._unsafe_view.default: view,
    aten.expand.default: expand,
    aten.cat.default: cat,
    aten.stack.default: cat,
    aten.split.Tensor: split,
    aten.split_with_sizes.default: split,
    aten.gather.default: along,
    aten.scatter.value: along,
    aten.scatter.src: along,
    operator.getitem: item,
    **dict.fromkeys(REDUCTIONS, reduction),
}
