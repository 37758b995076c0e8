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

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor: operator.truediv,
    aten.addcmul.default: torch.addcmul,
    aten.addmm.default: torch.addmm,
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.sigmoid.default: torch.sigmoid,
    aten.tanh.default: torch.tanh,
    aten.relu.default: torch.relu,
    aten.softplus.default: functional.softplus,
    aten.exp.default: torch.exp,
    aten.log.default: torch.log,
    aten.log1p.default: torch.log1p,
    aten.neg.default: torch.neg,
    aten.abs.default: torch.abs,
    aten.sqrt.default: torch.sqrt,
    aten.sin.default: torch.sin,
    aten.cos.default: torch.cos,
    aten.split.Tensor: torch.split,
    aten.unsafe_split.Tensor: torch.unsafe_split,
    aten.cat.default: torch.cat,
    aten.stack.default: torch.stack,
    aten.select.int: torch.select,
    aten.permute.default: torch.permute,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.reshape.default: torch.reshape,
    aten.t.default: torch.t,
    aten.index_select.default: torch.index_select,
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
