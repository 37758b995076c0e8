"""Dependence rules of what mixes along dimensions: reductions, scans, softmax, norms, sorting; see `dependence.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxsolve.ir import TensorType
from fxsolve.passes.dependence import (
    NEGINF,
    ZERO,
    Call,
    Concrete,
    Dependence,
    index_of,
    largest,
    maximum,
    none,
    pointwise,
    rule,
    shape_of,
    signed,
)

_REDUCTIONS = """
    all amax amin aminmax any argmax argmin count_nonzero kthvalue linalg_vector_norm logsumexp max mean median min mode
    nanmean nanmedian nansum norm prod std std_mean sum var var_mean
"""
# Their results are not zero, or a zero of one sign only.
_UNSIGNED = "all any argmax argmin count_nonzero linalg_vector_norm norm std std_mean var var_mean"


@rule(*_REDUCTIONS.split())
def reduced(call: Call, x: Any, *args: Any, **__: Any) -> Any:
    """The maximum over the dimensions that the op takes together; all of them where it names none."""
    if args and isinstance(args[0], (Dependence, Concrete)):  # max(a, b)
        return Dependence(maximum(call.shape, index_of(x), index_of(args[0])), signed=signed(x, args[0]))
    rank = len(shape_of(x))
    dims = call.argument("dim", call.argument("dims"))
    dims = list(range(rank)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    index = largest(x.index, dims, bool(call.argument("keepdim", False))) if rank else x.index
    name = call.node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    found = Dependence(index, signed=x.signed and name not in _UNSIGNED.split() and not _live(x, dims))
    return (found,) * len(call.type) if isinstance(call.type, tuple) else found


def _live(x: Dependence, dims: list[int]) -> bool:
    """Whether each line along `dims` has an element that is not masked: that decides the sign of a sum's zero."""
    return x.known is not None and bool((x.known != ZERO).any(dims).all())


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
def running(call: Call, x: Any, dim: int, **_: Any) -> Any:
    """The running maximum."""
    index = x.index.cummax(dim).values if x.index.dim() else x.index
    found = Dependence(index, signed=x.signed)
    return (found, found) if isinstance(call.type, tuple) else found


@rule("sort", "topk", "argsort", "msort")
def ordered(call: Call, x: Any, *_: Any, **__: Any) -> Any:
    """Each result depends on everything along the dimension."""
    dim = call.argument("dim", 0 if "msort" in str(call.node.target) else -1)
    index = largest(x.index, (dim,), keepdim=True).expand(call.shape)
    found = Dependence(index, signed=x.signed)
    return (found, Dependence(index)) if isinstance(call.type, tuple) else found


@rule("_softmax", "softmax", "_safe_softmax", "special_softmax")
def softmax(call: Call, x: Any, dim: int, *_: Any, **__: Any) -> Any:
    """The maximum over the dimension, but for elements at -inf: those are exactly zero and weigh in nothing."""
    row = largest(x.index, (dim,), keepdim=True).expand(call.shape)
    if x.known is None:
        return Dependence(row)
    barred = x.known == NEGINF
    empty = barred.all(dim, keepdim=True).expand(call.shape)
    index = pointwise(lambda r, b: torch.where(b, -1.0, r), row, barred, shape=call.shape)
    known = pointwise(lambda b: b.to(torch.int8) * ZERO, barred, shape=call.shape)
    # A row of nothing but -inf is NaN (zero in the safe softmax): no finite value to reason about.
    index = torch.where(empty, call.analysis.top, index)
    return Dependence(index, torch.where(empty, 0, known).to(torch.int8))


@rule("_log_softmax", "log_softmax", "special_log_softmax")
def log_softmax(call: Call, x: Any, dim: int, *_: Any, **__: Any) -> Any:
    found = softmax(call, x, dim)
    return Dependence(found.index, None if found.known is None else (found.known == ZERO).to(torch.int8) * NEGINF)


# ---------------------------------------------------------------- norms


@rule("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call, x: Any, shape: Any, weight: Any = None, bias: Any = None, *_: Any, **__: Any) -> Any:
    """The maximum over the last dimensions; scale and shift element by element."""
    dims = tuple(range(-len(shape), 0))
    row = largest(index_of(x), dims, keepdim=True)
    parts = [index_of(each) for each in (weight, bias) if isinstance(each, Dependence)]
    out = Dependence(maximum(call.shape, row, *parts), signed=signed(x, weight, bias))
    return (out, *(_statistic(kind, row) for kind in call.type[1:])) if isinstance(call.type, tuple) else out


def _statistic(kind: Any, index: Tensor) -> Dependence:
    return Dependence(index if tuple(kind.shape) == tuple(index.shape) else torch.tensor(_top(index)).expand(kind.shape))


def _top(index: Tensor) -> float:
    return float(index.amax()) if index.numel() else -1.0


@rule("native_group_norm")
def group_norm(call: Call, x: Any, weight: Any, bias: Any, *sizes: int) -> Any:
    """The maximum over each group of channels and all positions of a sample."""
    samples, channels, _, groups, _ = sizes
    group = largest(index_of(x).reshape(samples, groups, -1), (2,), keepdim=True)
    rows = group.expand(samples, groups, channels // groups).reshape(samples, channels, *[1] * (len(call.shape) - 2))
    parts = [_by_channel(each, len(call.shape)) for each in (weight, bias)]
    out = Dependence(maximum(call.shape, rows, *parts), signed=signed(x, weight, bias))
    return out, *(_statistic(kind, group[..., 0]) for kind in call.type[1:])


def _by_channel(fact: Any, rank: int) -> Tensor:
    return index_of(fact).reshape(-1, *[1] * (rank - 2)) if isinstance(fact, Dependence) else none(())


@rule("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_functional")
@rule("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "batch_norm")
def batch_norm(call: Call, x: Any, weight: Any, bias: Any, *rest: Any, **__: Any) -> Any:
    """With running statistics element by element; with the batch's own the maximum over each channel."""
    rank = len(call.shape)
    legit = "no_training" in str(call.node.target) or "no_update" in str(call.node.target)
    statistics = [each for each in rest[:2] if isinstance(each, Dependence)]
    own = not legit and bool(call.argument("training", True))
    index = largest(index_of(x), [d for d in range(rank) if d != 1], keepdim=True) if own else index_of(x)
    parts = [_by_channel(each, rank) for each in (weight, bias, *statistics)]
    out = Dependence(maximum(call.shape, index, *parts), signed=signed(x, weight, bias))
    if not isinstance(call.type, tuple):
        return out
    return out, *(_statistic(kind, index) if isinstance(kind, TensorType) else None for kind in call.type[1:])
