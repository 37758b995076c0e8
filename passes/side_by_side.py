"""The graph of a horizontal fusion as it is built: values side by side in one tensor, and the parts that they are.

What was cut from one tensor is not copied to lie side by side again: the tensor it was cut from is taken.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import fx, ops

from fxsolve.ir import is_getitem, placeholders
from fxsolve.passes.batcher import Batcher
from fxsolve.passes.graphs import placeholder_like

aten = ops.aten
COPYING: dict[object, Callable[..., object]] = {  # parts have gaps
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}


class SideBySide:
    """The fused graph, and which of its nodes stands for which one of the old graph."""

    def __init__(self, old: fx.Graph) -> None:
        inputs = placeholders(old)
        device = inputs[0].meta["type"].device if inputs else torch.device("cpu")
        self.builder = Batcher(fx.Graph(), 1, device)
        self.env = {node: placeholder_like(self.builder.graph, node, node.name) for node in inputs}
        self.cut_from: dict[fx.Node, tuple[fx.Node, int, int]] = {}  # part -> what it was cut from, where, along which dim
        self.order: dict[fx.Node, int] = {}  # of what was cut
        self.wide: dict[fx.Node, fx.Node] = {}  # value -> the same with what zeros have become behind it
        self.norms: set[fx.Node] = set()  # fused ones, whose value is a tensor, no tuple any more

    def copy(self, node: fx.Node) -> None:
        """A call that stays alone."""
        if is_getitem(node) and node.args[0] in self.norms:
            self.env[node] = self.env[node.args[0]]  # type: ignore[index]
            return
        self.env[node] = new = self.builder.graph.node_copy(node, lambda n: self.env[n])
        new.target = COPYING.get(new.target, new.target)  # type: ignore[arg-type]

    def finished(self, returned: Iterable[fx.Node]) -> fx.Graph:
        self.builder.graph.output(tuple(self.env[n] for n in returned))
        self.builder.graph.eliminate_dead_code()
        return self.builder.graph

    def column(self, group: Iterable[fx.Node], place: int) -> list[fx.Node]:
        """One argument of each call of a group."""
        return [self.env[n.args[place]] for n in group]  # type: ignore[index]

    def place(self, node: fx.Node) -> tuple[int, int]:
        """Where the first operand of a call was cut from: in that order operands are side by side already."""
        for operand in node.all_input_nodes:
            value = self.env[operand]
            if (value := self.wide.get(value, value)) in self.cut_from:
                whole, start, _ = self.cut_from[value]
                return self.order[whole], start
        return -1, 0

    def joined(self, parts: Sequence[fx.Node], dim: int) -> fx.Node:
        """The parts side by side: what they were cut from, if that is all of it."""
        whole, _, along = self.cut_from.get(parts[0], (None, 0, 0))
        if whole is not None and along == dim:
            starts = [sum(shape(p)[dim] for p in parts[:n]) for n in range(len(parts) + 1)]
            cut = [self.cut_from.get(part) for part in parts]
            if cut == [(whole, start, dim) for start in starts[:-1]] and starts[-1] == shape(whole)[dim]:
                return whole
        return self.builder.emit(aten.cat.default, list(parts), dim)

    def cut(self, whole: fx.Node, sizes: Sequence[int], dim: int) -> list[fx.Node]:
        """The inverse of `joined`."""
        split = self.builder.emit(aten.split_with_sizes.default, whole, list(sizes), dim)
        parts = [self.builder.emit(operator.getitem, split, k) for k in range(len(sizes))]
        self.order[whole] = len(self.order)
        self.cut_from |= {part: (whole, sum(sizes[:k]), dim) for k, part in enumerate(parts)}
        return parts

    def filled(self, value: fx.Node, sizes: dict[int, int]) -> fx.Node:
        """A value with zeros, or what has become of zeros, behind it up to those sizes of dimensions."""
        wide = self.wide.get(value, value)
        if all(shape(wide)[dim] == size for dim, size in sizes.items()):
            return wide
        pad = [0] * 2 * len(shape(value))
        for dim, size in sizes.items():
            pad[2 * (len(shape(value)) - 1 - dim) + 1] = size - shape(value)[dim]
        return self.builder.emit(aten.constant_pad_nd.default, value, pad)

    def narrowed(self, parts: Sequence[fx.Node], sizes: Sequence[int], dim: int) -> list[fx.Node]:
        """The parts without what is behind them."""
        return [self.narrow(part, size, dim) for part, size in zip(parts, sizes, strict=True)]

    def narrow(self, part: fx.Node, size: int, dim: int) -> fx.Node:
        if shape(part)[dim] == size:
            return part
        value = self.builder.emit(aten.slice.Tensor, part, dim, 0, size)
        self.wide[value] = part
        return value


def shape(node: fx.Node) -> tuple[int, ...]:
    return node.meta["type"].shape
