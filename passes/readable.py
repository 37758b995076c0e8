"""Readable calls: ATen overloads become the torch functions and operators that people write.

    torch.ops.aten.tanh.default(torch.ops.aten.add.Tensor(a, b))   -->   torch.tanh(a + b)

The same kernels run on the same values; the generated Python reads like a program, and each call is a microsecond cheaper.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

aten = torch.ops.aten
NAME = "readable"

OPERATORS = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor: operator.truediv,
    aten.pow.Tensor_Scalar: operator.pow,
    aten.pow.Tensor_Tensor: operator.pow,
    aten.eq.Tensor: operator.eq,
    aten.eq.Scalar: operator.eq,
    aten.ne.Tensor: operator.ne,
    aten.ne.Scalar: operator.ne,
    aten.lt.Tensor: operator.lt,
    aten.lt.Scalar: operator.lt,
    aten.le.Tensor: operator.le,
    aten.le.Scalar: operator.le,
    aten.gt.Tensor: operator.gt,
    aten.gt.Scalar: operator.gt,
    aten.ge.Tensor: operator.ge,
    aten.ge.Scalar: operator.ge,
}
# Overloads whose namesake in torch takes the same arguments, in the same order.
NAMESAKES = (
    *(aten.addcmul.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default),
    *(aten.convolution.default, aten.embedding.default, aten.native_layer_norm.default, aten.native_batch_norm.default),
    *(aten.sigmoid.default, aten.tanh.default, aten.relu.default, aten.exp.default, aten.expm1.default, aten.erf.default),
    *(aten.log.default, aten.log1p.default, aten.neg.default, aten.abs.default, aten.sign.default, aten.sqrt.default),
    *(aten.rsqrt.default, aten.reciprocal.default, aten.sin.default, aten.cos.default, aten.floor.default, aten.round.default),
    *(aten.clamp.default, aten.maximum.default, aten.minimum.default, aten.rsub.Scalar, aten.where.self),
    *(aten.argmax.default, aten.argmin.default, aten.amax.default, aten.amin.default, aten.logsumexp.default),
    *(aten.sum.dim_IntList, aten.mean.dim, aten.cumsum.default, aten.flip.default),
    *(aten.gather.default, aten.index_select.default),
    *(aten.split.Tensor, aten.unsafe_split.Tensor, aten.cat.default, aten.stack.default, aten.constant_pad_nd.default),
    *(aten.select.int, aten.permute.default, aten.transpose.int, aten.t.default, aten.unsqueeze.default, aten.squeeze.dim),
    aten.reshape.default,
)
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **OPERATORS,
    **{overload: getattr(torch, overload.overloadpacket.__name__) for overload in NAMESAKES},
    aten.softplus.default: functional.softplus,
    aten.silu.default: functional.silu,
    aten.expand.default: torch.Tensor.expand,
    aten.view.default: torch.Tensor.view,
}


def readable(graph: fx.Graph) -> fx.Graph:
    """A copy of the graph for code generation; passes work on the ATen form."""
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    for node in new.nodes:
        if node.op == "call_function" and not node.kwargs and node.target in FUNCTIONS:
            node.target = FUNCTIONS[node.target]
    return new


def generated(graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a Python function (not an interpreter)."""
    return fx.GraphModule({}, readable(graph)).forward
