"""How calls of one form become one: pointwise calls, batch norms, products, convolutions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import fx, ops

from fxsolve.ir import TensorType, is_getitem
from fxsolve.passes.side_by_side import SideBySide, shape

aten = ops.aten


class Rule(Protocol):
    """How calls of one target become one."""

    def form(self, node: fx.Node) -> Hashable:
        """What such calls must have in common, besides their target and dtype; None: it stays alone."""
        ...

    def fuse(self, new: SideBySide, group: Sequence[fx.Node]) -> list[fx.Node]:
        """The values of the calls, in the fused graph."""
        ...


def rule_of(node: fx.Node) -> Rule | None:
    if node.target in RULES:
        return RULES[node.target]  # type: ignore[index]
    return POINTWISE if torch.Tag.pointwise in getattr(node.target, "tags", ()) else None


def side(kind: TensorType) -> int:
    """The dimension along which values lie side by side: that of channels."""
    return min(1, len(kind.shape) - 1)


def besides(kind: TensorType) -> tuple[Hashable, ...]:
    """The shape without the dimension along which values lie side by side."""
    return (*kind.shape[: side(kind)], None, *kind.shape[side(kind) + 1 :])


class Pointwise:
    """`op(x)` or `op(x, y)`, of operands of one shape; other arguments are numbers."""

    def form(self, node: fx.Node) -> Hashable:
        kinds = {n.meta["type"].shape for n in node.all_input_nodes}
        kind = node.meta["type"]
        others = [*(a for a in node.args if not isinstance(a, fx.Node)), *node.kwargs.values()]
        if kinds != {kind.shape} or not kind.shape or any(isinstance(a, (list, tuple, fx.Node)) for a in others):
            return None
        numbers = tuple((i, repr(a)) for i, a in enumerate(node.args) if not isinstance(a, fx.Node))
        return besides(kind), kind.dtype, numbers, repr(sorted(node.kwargs.items()))

    def fuse(self, new: SideBySide, group: Sequence[fx.Node]) -> list[fx.Node]:
        target, first, dim = group[0].target, group[0].args, side(group[0].meta["type"])
        columns = {i: new.column(group, i) for i, a in enumerate(first) if isinstance(a, fx.Node)}
        if len(columns) == 1 and finite_at_zero(group[0]):
            columns = {i: [new.wide.get(x, x) for x in column] for i, column in columns.items()}
        sizes = [shape(x)[dim] for x in next(iter(columns.values()))]
        args = [new.joined(columns[i], dim) if i in columns else a for i, a in enumerate(first)]
        whole = new.builder.emit(target, *args, **group[0].kwargs)  # type: ignore[arg-type]
        return new.narrowed(new.cut(whole, sizes, dim), [shape(n)[dim] for n in group], dim)


def finite_at_zero(node: fx.Node) -> bool:
    """Whether a call of one operand makes finite numbers of zeros."""
    zero = torch.zeros(1, dtype=node.all_input_nodes[0].meta["type"].dtype)
    args = [zero if isinstance(a, fx.Node) else a for a in node.args]
    return bool(node.target(*args, **node.kwargs).isfinite().all())  # type: ignore[operator]


class Norm:
    """Batch norm by its running figures: each channel by itself. It returns three values, of which the first is read."""

    def form(self, node: fx.Node) -> Hashable:
        _, weight, bias, mean, variance, training, *rest = node.args
        if training or None in (mean, variance) or (weight is None) != (bias is None):
            return None
        if not all(is_getitem(user) and user.args[1] == 0 for user in node.users):
            return None
        return besides(node.meta["type"][0]), weight is None, tuple(rest)

    def fuse(self, new: SideBySide, group: Sequence[fx.Node]) -> list[fx.Node]:
        figures = [None if a is None else new.joined(new.column(group, i), 0) for i, a in enumerate(group[0].args[1:5], 1)]
        norm = new.builder.emit(group[0].target, new.joined(new.column(group, 0), 1), *figures, *group[0].args[5:])  # type: ignore[arg-type]
        whole = new.builder.emit(operator.getitem, norm, 0)
        new.norms.update(group)
        return new.cut(whole, [n.meta["type"][0].shape[1] for n in group], 1)


class Product:
    """`b + x @ W` with a bias for each column, or `x @ W`."""

    def form(self, node: fx.Node) -> Hashable:
        rows, columns = shape(node)
        biased = node.target is aten.addmm.default
        if node.kwargs or (biased and shape(node.args[0]) != (columns,)):  # type: ignore[arg-type]
            return None
        return rows, biased

    def fuse(self, new: SideBySide, group: Sequence[fx.Node]) -> list[fx.Node]:
        emit, biased = new.builder.emit, group[0].target is aten.addmm.default
        inputs, weights = new.column(group, int(biased)), new.column(group, 1 + biased)
        count, rows = len(group), shape(inputs[0])[0]
        taken, given = (max(shape(w)[dim] for w in weights) for dim in (0, 1))
        row = new.joined([new.filled(x, {1: taken}) for x in inputs], 1)
        stacked = emit(aten.transpose.int, emit(aten.reshape.default, row, [rows, count, taken]), 0, 1)
        matrices = emit(aten.stack.default, [new.filled(w, {0: taken, 1: given}) for w in weights])
        if biased:
            biases = emit(aten.stack.default, [new.filled(b, {0: given}) for b in new.column(group, 0)])
            out = emit(aten.baddbmm.default, emit(aten.unsqueeze.default, biases, 1), stacked, matrices)
        else:
            out = emit(aten.bmm.default, stacked, matrices)
        whole = emit(aten.reshape.default, emit(aten.transpose.int, out, 0, 1), [rows, count * given])
        return new.narrowed(new.cut(whole, [given] * count, 1), [shape(w)[1] for w in weights], 1)


class Convolution:
    """A convolution of one group, without a bias or with one."""

    def form(self, node: fx.Node) -> Hashable:
        x, weight, bias, stride, padding, dilation, transposed, _, split = node.args
        if transposed or split != 1:
            return None
        fixed = (bias is None, *map(tuple, (stride, padding, dilation)))  # type: ignore[arg-type]
        return besides(x.meta["type"]), shape(weight)[2:], fixed  # type: ignore[union-attr, arg-type]

    def fuse(self, new: SideBySide, group: Sequence[fx.Node]) -> list[fx.Node]:
        weights, rest = new.column(group, 1), group[0].args[3:8]
        given, taken = (max(shape(w)[dim] for w in weights) for dim in (0, 1))
        row = new.joined([new.filled(x, {1: taken}) for x in new.column(group, 0)], 1)
        filters = new.joined([new.filled(w, {0: given, 1: taken}) for w in weights], 0)
        bias = None
        if group[0].args[2] is not None:
            bias = new.joined([new.filled(b, {0: given}) for b in new.column(group, 2)], 0)
        whole = new.builder.emit(aten.convolution.default, row, filters, bias, *rest, len(group))
        return new.narrowed(new.cut(whole, [given] * len(group), 1), [shape(w)[0] for w in weights], 1)


RULES: dict[Callable[..., Any], Rule] = {
    aten.native_batch_norm.default: Norm(),
    aten.addmm.default: Product(),
    aten.mm.default: Product(),
    aten.convolution.default: Convolution(),
}
POINTWISE = Pointwise()
