"""Networks and heads for the tests of the causality proof, traced from plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxsolve.ir import Slots, TensorType


def traced(function: Callable[..., Any], tensors: Mapping[str, Tensor]) -> fx.Graph:
    """The ATen graph of `function(*tensors)` in fxsolve's form, its placeholders named as the mapping's keys.

    Steps take Python ints as index constants: bind them in `function` (see `stepped`).
    """
    with torch.no_grad():
        made = make_fx(function, decomposition_table={}, tracing_mode="real")(*tensors.values())
    graph, constants = fx.Graph(), {}
    env: dict[fx.Node, fx.Node] = {}
    inputs = [node for node in made.graph.nodes if node.op == "placeholder"]
    for node, name in zip(inputs, tensors, strict=True):
        env[node] = graph.placeholder(name)
        env[node].meta["type"] = TensorType.of(tensors[name])
    for node in made.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        env[node] = graph.node_copy(node, env.__getitem__)
        env[node].meta = {"type": _type(node), "source": ""}
        if node.op == "get_attr":
            constants[node.target] = getattr(made, node.target)
    (out,) = [node for node in made.graph.nodes if node.op == "output"]
    values = out.args[0] if isinstance(out.args[0], (tuple, list)) else (out.args[0],)
    graph.output(tuple(env[value] for value in values))
    graph.owning_module = fx.GraphModule(constants, fx.Graph())
    return graph


def _type(node: fx.Node) -> Any:
    value = node.meta.get("val", node.meta.get("tensor_meta"))
    if isinstance(value, (tuple, list)):
        return tuple(TensorType.of(each) if isinstance(each, Tensor) else None for each in value)
    return TensorType.of(value) if isinstance(value, Tensor) else None


def column_slots(shape: tuple[int, ...], stride: tuple[int, ...], order: list[int]) -> Slots:
    """Slots of a (batch, D) buffer: step t writes column order[t] of all rows."""
    return Slots((shape[0],), (stride[0],), tuple(stride[1] * column for column in order))
