"""Ahead: what a step computes without the state, and to the same bits for many steps at once, is computed before the steps.

    s = (s - b[t] / sqrt(1 - a[t]) * f(s)) / sqrt(a[t])   -->   u = b / sqrt(1 - a), v = sqrt(a);   s = (s - u[t] * f(s)) / v[t]

A walk in order that has eager's bits keeps them: only calls that move data, compare, or round correctly (+, -, *, / and sqrt,
IEEE 754, section 5.4) go ahead, not products or exponentials, which round as the shape has it. Calls on many numbers stay: they
gain nothing from being one call, and all steps' results would have to be held at a time.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from fxsolve import prims
from fxsolve.ir import CARRY, Recurrence, TensorType, calls, contiguous_stride, is_getitem, placeholders
from fxsolve.passes.graphs import depending_on
from fxsolve.passes.split_step import inputs_apart

aten = torch.ops.aten
NAME = "ahead"
LARGEST = 1 << 20  # numbers of a result, all steps together

VIEWS = frozenset(
    {
        aten.alias.default,
        aten.detach.default,
        aten.expand.default,
        aten.permute.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.t.default,
        aten.transpose.int,
        aten.unbind.int,
        aten.unsafe_split.Tensor,
        aten.unsqueeze.default,
        aten.view.default,
        aten._unsafe_view.default,
        prims.read,
    }
)
COPIES = frozenset(
    {
        aten.cat.default,
        aten.clone.default,
        aten.embedding.default,
        aten.flip.default,
        aten.gather.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.stack.default,
        aten._to_copy.default,  # which rounds correctly, too
    }
)
ROUND_CORRECTLY = frozenset(
    {
        aten.abs.default,
        aten.div.Scalar,
        aten.div.Tensor,
        aten.mul.Scalar,
        aten.mul.Tensor,
        aten.neg.default,
        aten.sqrt.default,
        *(getattr(getattr(aten, name), kind) for name in ("eq", "ne", "lt", "le", "gt", "ge") for kind in ("Tensor", "Scalar")),
        aten.logical_and.default,
        aten.logical_not.default,
        aten.logical_or.default,
        aten.where.self,
    }
)
SUMS = frozenset({aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Tensor, aten.rsub.Scalar})


def ahead(block: Recurrence) -> tuple[fx.Graph, Recurrence]:
    """(x.., i.., c..) -> values `u..` of a step, and the rest of the step as a block whose stacked inputs they are."""
    return inputs_apart(block, going_ahead(block).__contains__)


def going_ahead(block: Recurrence) -> set[fx.Node]:
    """The calls of a step that go ahead. What is left in the step reads values that lie in memory as eager's do."""
    step, states = block.step, placeholders(block.step, CARRY)
    found = {call for call in calls(step) if exact(call, block.length) and may_lie_anywhere(call)}
    while True:
        stay = depending_on(step, [*states, *(call for call in calls(step) if call not in found)])
        left = {call for call in found - stay if is_contiguous(call) or all(user in found for user in call.users)}
        if left == found:
            return found
        found = left


def exact(call: fx.Node, length: int) -> bool:
    """Whether it gives the same bits for `length` steps at once."""
    if is_getitem(call):
        return True  # what it is a part of decides
    kinds = call.meta.get("type")
    for kind in kinds if isinstance(kinds, tuple) else (kinds,):
        if not isinstance(kind, TensorType) or kind.dtype.is_complex or math.prod(kind.shape) * length > LARGEST:
            return False
    operands = [kind for node in call.all_input_nodes if isinstance(kind := node.meta.get("type"), TensorType)]
    if len({kind.device for kind in operands}) > 1:  # a number on the CPU beside tensors on a GPU
        return False
    if call.target in SUMS:  # x + a * y rounds once or twice, as the place in a vector has it
        return len(call.args) < 3 and call.kwargs.get("alpha", 1) in (1, 1.0)
    return call.target in VIEWS or call.target in COPIES or call.target in ROUND_CORRECTLY


def may_lie_anywhere(value: fx.Node) -> bool:
    """Whether no bits depend on where in memory a value is, as those of a product of one row do: it is copied, or read
    elementwise.
    """
    return all(
        user.op == "output"
        or user.target in COPIES
        or torch.Tag.pointwise in getattr(user.target, "tags", ())
        or ((user.target in VIEWS or is_getitem(user)) and may_lie_anywhere(user))
        for user in value.users
    )


def is_contiguous(call: fx.Node) -> bool:
    kind = call.meta.get("type")
    if not isinstance(kind, TensorType):
        return False
    strides = zip(kind.shape, kind.stride, contiguous_stride(kind.shape), strict=True)
    return all(size == 1 or stride == expected for size, stride, expected in strides)
