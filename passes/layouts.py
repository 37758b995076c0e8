"""Types of what a stack holds, and calls that put a value's strides into a given order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxsolve import prims
from fxsolve.ir import TensorType, calls, contiguous_stride
from fxsolve.tape import Mark, Tape

aten = torch.ops.aten


def fresh(shape: tuple[int, ...], like: TensorType) -> TensorType:
    """A row-major type of the given shape."""
    return TensorType(shape, contiguous_stride(shape), like.dtype, like.device)


def typed_call(graph: fx.Graph, target: Any, args: tuple[Any, ...], kind: TensorType, source: str) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta.update(type=kind, source=source)
    return node


def row_type(stack: fx.Node) -> TensorType:
    """The type of one row of a stack."""
    kind: TensorType = stack.meta["type"]
    return TensorType(kind.shape[1:], kind.stride[1:], kind.dtype, kind.device)


def permuted(kind: TensorType, order: Sequence[int]) -> TensorType:
    shape, stride = tuple(kind.shape[d] for d in order), tuple(kind.stride[d] for d in order)
    return TensorType(shape, stride, kind.dtype, kind.device)


def dense(kind: TensorType) -> bool:
    """Whether the elements fill a block of memory without gaps or overlaps, in some order of the dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(kind.stride, kind.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def without_gaps(graph: fx.Graph) -> fx.Graph:
    """A copy of the graph that takes dense values where eager's have gaps: other last bits, fewer copies."""
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    for node in calls(new):
        if node.target is prims.laid_out:
            node.replace_all_uses_with(node.all_input_nodes[0])
            new.erase_node(node)
    return new


def memory_order(kind: TensorType) -> list[int]:
    """The dimensions from the largest stride to the smallest; those of size 1 stay where they are."""
    wide = [d for d, size in enumerate(kind.shape) if size != 1]
    order = list(range(len(kind.shape)))
    for d, moved in zip(wide, sorted(wide, key=lambda d: -kind.stride[d]), strict=True):
        order[d] = moved
    return order


def reordered(graph: fx.Graph, node: fx.Node, kind: TensorType) -> fx.Node:
    """The node, copied if its strides are in another order than those of `kind`."""
    order = memory_order(kind)
    if memory_order(node.meta["type"]) == order:
        return node
    source = node.meta["source"]
    back, moved = [order.index(d) for d in range(len(order))], order != list(range(len(order)))
    if moved:
        node = typed_call(graph, aten.permute.default, (node, order), permuted(node.meta["type"], order), source)
    shown = node.meta["type"]
    node = typed_call(graph, aten.clone.default, (node,), fresh(shown.shape, shown), source)
    node.kwargs = {"memory_format": torch.contiguous_format}
    if moved:
        node = typed_call(graph, aten.permute.default, (node, back), permuted(node.meta["type"], back), source)
    return node


def relaid(tape: Tape, value: int, type_id: int, source: int) -> int:
    """A value of a tape in the strides of another type of the same shape: itself, or a dense copy."""
    if tape.value_type[value] == type_id:
        return value
    order = memory_order(tape.types.items[type_id])
    for dims, final in ((order, False), ([order.index(d) for d in range(len(order))], True)):
        if dims != list(range(len(order))):
            shown = permuted(tape.type_of(value), dims)
            value = tape.call(aten.permute.default, (Mark.TENSOR, tuple(dims)), tape.types(shown), (value,), (), source)
        if not final:
            kind = tape.type_of(value)
            named = (("memory_format", torch.contiguous_format),)
            value = tape.call(
                aten.clone.default, (Mark.TENSOR,), tape.types(fresh(kind.shape, kind)), (value,), (), source, named
            )
    return value
