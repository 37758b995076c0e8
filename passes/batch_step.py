"""Pass: batch a step, so that `count` steps of a block run as one call."""

from __future__ import annotations

from collections.abc import Collection
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

import fxsolve.passes.batching_backward  # importing them registers their rules
import fxsolve.passes.batching_dims
import fxsolve.passes.batching_index
import fxsolve.passes.batching_linear
import fxsolve.passes.batching_pointwise
import fxsolve.passes.batching_views  # noqa: F401
from fxsolve.errors import FxsolveError
from fxsolve.ir import INDEX, TensorType, contiguous_stride, results
from fxsolve.passes.batcher import Batcher
from fxsolve.passes.batching import FIXED, FOLD, LEAD, Call, Index, Value, plain, rule_of
from fxsolve.passes.batching_default import default
from fxsolve.passes.noise import is_random


def batch_step(graph: fx.Graph, batched: Collection[str], count: int, *, fold: bool = False) -> fx.Graph:
    """`out[n] = step(in[n])` for n < count, as one graph.

    A placeholder in `batched` of shape S gets the shape `(count, *S)`, or with `fold`, when its rank is 1 or more,
    `(count * S[0], *S[1:])`; an index placeholder (`i..`, a Python int in the step) becomes an int64 tensor of shape
    (count,). Other placeholders stay, and what depends on them alone is computed once. Results come out as tensors
    are put in; those that are the same for every n are copied. An index must address what its read, select or slice
    addresses in the single step without being clamped to the tensor's end.

    Raises FxsolveError on a random draw: draws must be hoisted out of the step before.
    """
    batcher = Batcher(fx.Graph(graph.owning_module), count, _device_of(graph))
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        batcher.source = node.meta.get("source", "")
        if node.op == "placeholder":
            env[node] = _placeholder(batcher, node, node.name in batched, fold)
        elif node.op == "call_function":
            env[node] = _call(batcher, node, env)
        elif node.op != "output":
            env[node] = _copy(batcher, node, env)
    batcher.source = ""
    batcher.graph.output(tuple(_result(batcher, r, env, fold) for r in results(graph)))
    batcher.graph.eliminate_dead_code()
    return batcher.graph


def _device_of(graph: fx.Graph) -> torch.device:
    types = (n.meta.get("type") for n in graph.nodes)
    return next((t.device for t in types if isinstance(t, TensorType)), torch.device("cpu"))


def _placeholder(b: Batcher, node: fx.Node, batched: bool, fold: bool) -> Any:
    new = b.graph.placeholder(node.name)
    new.meta.update(node.meta)
    type: Any = node.meta.get("type")
    if not batched:
        return Value(new, type, FIXED) if isinstance(type, TensorType) else new
    if node.name.startswith(INDEX):
        new.meta["type"] = TensorType((b.count,), (1,), torch.int64, b.device)
        return Index(new)
    form = FOLD if fold and type.shape else LEAD
    shape = b.shape_in(form, type.shape)
    new.meta["type"] = TensorType(shape, contiguous_stride(shape), type.dtype, type.device)
    return Value(new, type, form)


def _call(b: Batcher, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    args: Any = fx.map_arg(node.args, lambda n: env[n])
    kwargs: Any = fx.map_arg(node.kwargs, lambda n: env[n])
    if node.target is getitem and isinstance(args[0], tuple):
        return args[0][args[1]]
    if is_random(node):
        raise FxsolveError(f"{node.format_node()} draws random numbers: hoist the draws before the step is batched")
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        raise FxsolveError(f"{node.format_node()} mutates its inputs: the step must be functional to be batched")
    leaves: list[Any] = []
    map_aggregate((args, kwargs), leaves.append)
    if not any(isinstance(a, Index) or isinstance(a, Value) and not a.fixed for a in leaves):
        return _copy(b, node, env)
    call = Call.bind(node.target, args, kwargs, node.meta["type"])  # type: ignore[arg-type]
    rule = rule_of(node.target, indexed=any(isinstance(a, Index) for a in leaves))
    try:
        found = rule(b, call) if rule else None
    except FxsolveError:
        raise
    except Exception:  # a rare call that a rule does not foresee: its nodes are dead, and the default always fits
        found = None
    return default(b, call, args, kwargs) if found is None else found


def _copy(b: Batcher, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    """A node on which nothing batched acts, as it is."""
    new = b.graph.node_copy(node, lambda n: plain(env[n]))
    type = node.meta.get("type")
    return Value(new, type, FIXED) if isinstance(type, TensorType) else new


def _result(b: Batcher, node: fx.Node, env: dict[fx.Node, Any], fold: bool) -> Any:
    value = env[node]
    if not isinstance(value, Value):
        return plain(value)
    form = FOLD if fold and value.shape else LEAD
    return b.tiled(value, form) if value.fixed else b.to(form, value)
