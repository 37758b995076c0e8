"""Dependence rules of lookups by index tensors: embedding, gather, index_select, scatter; see `dependence.py`.

With a concrete index tensor a lookup moves elements. With one that depends on the state a result element depends on
that index and, whatever it says, on everything that it could pick.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxsolve.passes.dependence import (
    Call,
    Concrete,
    Dependence,
    index_of,
    largest,
    maximum,
    none,
    rule,
    shape_of,
    signed,
)
from fxsolve.passes.dependence_moves import move


@rule("embedding")
def embedding(call: Call, weight: Any, indices: Any, *_: Any, **__: Any) -> Any:
    """weight[indices]"""
    if isinstance(indices, Concrete):
        picked = call.mask(indices)
        return move(call, lambda w: w[picked], weight)
    rows = largest(index_of(weight), (0,))
    return Dependence(maximum(call.shape, index_of(indices).unsqueeze(-1), rows), signed=signed(weight))


@rule("index_select", "index_select_copy", moves=True)
def index_select(call: Call, x: Any, dim: int, indices: Any) -> Any:
    """x.index_select(dim, indices)"""
    if isinstance(indices, Concrete):
        picked = call.mask(indices)
        return move(call, lambda each: each.index_select(dim, picked), x)
    along = index_of(indices).reshape([-1 if d == dim % len(call.shape) else 1 for d in range(len(call.shape))])
    return Dependence(maximum(call.shape, largest(index_of(x), (dim,), keepdim=True), along), signed=signed(x))


@rule("gather", moves=True)
def gather(call: Call, x: Any, dim: int, indices: Any, **_: Any) -> Any:
    """out[i] = x[.., indices[i], ..] along dim."""
    if isinstance(indices, Concrete):
        picked = call.mask(indices)
        return move(call, lambda each: each.gather(dim, picked), x)
    lines = largest(_cut(index_of(x), call.shape, dim), (dim,), keepdim=True)
    return Dependence(maximum(call.shape, lines, index_of(indices)), signed=signed(x))


@rule("take_along_dim")
def take_along_dim(call: Call, x: Any, indices: Any, dim: int | None = None) -> Any:
    return None if dim is None else gather(call, x, dim, indices)


def _cut(tensor: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """The leading part of a tensor that a gather along `dim` can reach."""
    for d, size in enumerate(shape):
        if d != dim % len(shape):
            tensor = tensor.narrow(d, 0, size)
    return tensor


@rule("index", moves=True)
def index(call: Call, x: Any, indices: Any) -> Any:
    """x[indices]: with concrete index tensors a move; one tensor over the first dimension may depend on the state."""
    if all(each is None or isinstance(each, Concrete) for each in indices):
        picked = tuple(slice(None) if each is None else call.mask(each) for each in indices)
        return move(call, lambda each: each[picked], x)
    if len(indices) != 1 or call.node.args[1][0].meta["type"].dtype == torch.bool:  # type: ignore[index]
        return None
    rows = index_of(indices[0]).reshape(*shape_of(indices[0]), *[1] * (len(shape_of(x)) - 1))
    return Dependence(maximum(call.shape, rows, largest(index_of(x), (0,))), signed=signed(x))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call, x: Any, dim: int, indices: Any, source: Any, *reduction: Any, **named: Any) -> Any:
    """A copy of x with elements replaced: each depends on x, and on what may be written along its line."""
    inner = index_of(source)
    # A scatter reads the leading part of its source; a number is written everywhere.
    inner = inner[tuple(map(slice, shape_of(indices)))] if inner.dim() else inner.expand(shape_of(indices))
    if isinstance(indices, Concrete):
        places = call.mask(indices)
        replaces = call.node.target._schema.name == "aten::scatter" and not (reduction or named)  # type: ignore[union-attr]
        found = index_of(x).scatter(dim, places, -1.0) if replaces else index_of(x)
        return Dependence(found.scatter_reduce(dim, places, inner, "amax"), signed=signed(x, source))
    if _cut(none(call.shape), shape_of(indices), dim).shape != none(call.shape).shape:
        return None
    written = largest(torch.maximum(index_of(indices), inner), (dim,), keepdim=True)
    return Dependence(maximum(call.shape, index_of(x), written), signed=signed(x, source))


@rule("index_put")
def index_put(call: Call, x: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """x with values written at concrete places: each element depends on x and on what is written there."""
    if not all(each is None or isinstance(each, Concrete) for each in indices):
        return None
    places = tuple(slice(None) if each is None else call.mask(each) for each in indices)
    written = torch.full(call.shape, -1.0)
    written[places] = index_of(values)
    if bool((written[places] != index_of(values)).any()):
        return None  # several different writes to one place
    before = index_of(x).clone(memory_format=torch.contiguous_format)
    if not accumulate:
        before[places] = -1.0
    return Dependence(maximum(call.shape, before, written), signed=signed(x, values))


@rule("index_add", "index_copy")
def index_add(call: Call, x: Any, dim: int, indices: Any, source: Any, **_: Any) -> Any:
    """The same along one dimension."""
    if not isinstance(indices, Concrete):
        return None
    found = index_of(x).clone(memory_format=torch.contiguous_format)
    added = index_of(source)
    along = [-1 if d == dim % max(1, found.dim()) else 1 for d in range(found.dim())]
    found.scatter_reduce_(dim, call.mask(indices).long().reshape(along).expand(added.shape), added, "amax")
    return Dependence(found, signed=signed(x, source))


@rule("bucketize", "searchsorted")
def bucketize(call: Call, a: Any, b: Any, **_: Any) -> Any:
    """Which bucket each value falls into: element by element where the boundaries are concrete."""
    values, borders = (a, b) if "bucketize" in str(call.node.target) else (b, a)
    if isinstance(borders, Dependence) or not isinstance(values, Dependence):
        return None
    return Dependence(values.index)


@rule("one_hot")
def one_hot(call: Call, x: Any, *_: Any) -> Any:
    return Dependence(x.index.unsqueeze(-1).expand(call.shape))
