"""Networks and heads for the tests of the causality proof, traced from plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxsolve.ir import CONST, Slots, TensorType, contiguous_stride


def traced(function: Callable[..., Any], tensors: Mapping[str, Tensor]) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The ATen graph of `function(*tensors)` in fxsolve's form, its placeholders named as the mapping's keys, and the
    values of its invariants: those in `tensors`, and any constants inside `function`, which become invariants too."""
    made = make_fx(function, decomposition_table={}, tracing_mode="real")(*tensors.values())
    graph = fx.Graph()
    values = {name: tensor for name, tensor in tensors.items() if name.startswith(CONST)}
    env: dict[fx.Node, fx.Node] = {}
    inputs = [node for node in made.graph.nodes if node.op == "placeholder"]
    for node, name in zip(inputs, tensors, strict=True):
        env[node] = placeholder(graph, name, tensors[name])
    for node in made.graph.nodes:
        if node.op == "get_attr":
            name = f"{CONST}{len(values)}"
            values[name] = getattr(made, node.target)
            env[node] = placeholder(graph, name, values[name])
    for number, node in enumerate(made.graph.nodes):
        if node.op == "call_function":
            env[node] = graph.node_copy(node, env.__getitem__)
            env[node].meta = {"type": types_of(node.meta.get("val")), "source": f"net.py:{number}"}
    (out,) = [node for node in made.graph.nodes if node.op == "output"]
    returned = out.args[0] if isinstance(out.args[0], (tuple, list)) else (out.args[0],)
    graph.output(tuple(env[value] for value in returned))
    return graph, values


def placeholder(graph: fx.Graph, name: str, tensor: Tensor | None = None) -> fx.Node:
    node = graph.placeholder(name)
    node.meta.update(type=types_of(tensor), source="")
    return node


def types_of(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(types_of, value))
    return TensorType.of(value) if isinstance(value, Tensor) else None


def column_slots(shape: tuple[int, ...], order: list[int]) -> Slots:
    """Slots of a contiguous (batch, ..) buffer: step t writes element order[t] of each row."""
    stride = contiguous_stride(shape)[0]
    return Slots((shape[0],), (stride,), tuple(order))


def picking_head(features: Tensor, order: list[int]) -> tuple[fx.Graph, tuple[tuple[int, ...], ...]]:
    """A head that reads element order[t] of each row of (batch, channels, D) and adds noise to their sum; its table."""
    graph = fx.Graph()
    given = placeholder(graph, "f0", features)
    noise = placeholder(graph, "x0", features[:, 0, 0])
    index = placeholder(graph, "i0")
    picked = call(graph, torch.ops.aten.select.int, (given, 2, index), features[:, :, 0], "head.py:1")
    total = call(graph, torch.ops.aten.sum.dim_IntList, (picked, [1]), features[:, 0, 0], "head.py:2")
    value = call(graph, torch.ops.aten.add.Tensor, (total, noise), features[:, 0, 0], "head.py:3")
    graph.output((value,))
    return graph, (tuple(order),)


def call(graph: fx.Graph, target: Any, args: tuple[Any, ...], like: Tensor, source: str) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta.update(type=TensorType.of(like.contiguous()), source=source)
    return node
