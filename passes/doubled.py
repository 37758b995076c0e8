"""Doubled: a graph that computes in float64 what another one computes in a narrower type.

    y = full([2], 1.0, dtype=float32) + x   -->   y = full([2], 1.0, dtype=float64) + x

Its inputs are to be given in float64 as well; whole numbers and booleans stay what they are. What a program rounds on
purpose (`half()` inside) is then not rounded. This says how far a program's own rounding takes it from the exact result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxsolve.ir import calls

NAME = "doubled"


def doubled(graph: fx.Graph) -> fx.Graph:
    """A copy of the graph that names float64 wherever a call names a floating point type."""
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    for node in calls(new):
        node.args, node.kwargs = pytree.tree_map(widened, (node.args, node.kwargs))
    return new


def widened(value: Any) -> Any:
    """float64 for a floating point type or tensor of one; else the value itself."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value
