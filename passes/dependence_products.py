"""Dependence rules of contractions: matrix products, convolutions, attention; see `dependence.py`.

All of them are one max-plus product: with x the indices of one factor and w the other factor,

    out[m, o] = max over k with w[o, k] != 0 of x[m, k].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxsolve.ir import TensorType
from fxsolve.passes.dependence import (
    Call,
    Concrete,
    Dependence,
    compress,
    index_of,
    largest,
    largest_index,
    maximum,
    none,
    rule,
    shape_of,
    signed,
    thin,
)

# How many elements a masked maximum holds at a time.
_CHUNK = 1 << 22
# For fewer rows it does not pay to look for outputs with the same pattern.
_FEW = 8


def contract(x: Tensor, pattern: Tensor | None) -> Tensor:
    """out[b, m, o] = max over k with pattern[b, o, k] of x[b, m, k]; a missing pattern is true everywhere, for any o.

    x: (B, M, K); pattern: (B or 1, O, K); result: (B, M, O), or (B, M, 1) without a pattern.
    """
    if pattern is None:
        return largest(x, (2,), keepdim=True)
    batch, rows, width = x.shape
    outs = pattern.shape[1]
    if width == 0:
        return none((batch, rows, outs))
    x, pattern = thin(compress(x)), thin(compress(pattern))  # slices that are alike count once
    if x.shape[2] == 1:
        found = torch.where(pattern.any(2)[:, None, :], x, -1.0)
        return found.expand(batch, rows, outs)
    if pattern.shape[2] == 1:
        found = torch.where(pattern[..., 0][:, None, :], x.amax(2, keepdim=True), -1.0)
        return found.expand(batch, rows, outs)
    if pattern.shape[0] > 1:
        parts = [_masked_max(each, p) for each, p in zip(x.expand(pattern.shape[0], -1, -1), pattern, strict=True)]
        return torch.stack(parts).expand(batch, rows, outs)
    if x.shape[0] * x.shape[1] < _FEW:
        return _masked_max(x.reshape(-1, width), pattern[0]).reshape(*x.shape[:2], -1).expand(batch, rows, outs)
    distinct, which = torch.unique(pattern[0], dim=0, return_inverse=True)
    found = _masked_max(x.reshape(-1, width), distinct)[:, which].reshape(x.shape[0], x.shape[1], -1)
    return found.expand(batch, rows, outs)


def _masked_max(x: Tensor, pattern: Tensor) -> Tensor:
    """(M, K), (O, K) -> (M, O), in chunks of rows."""
    step = max(1, _CHUNK // max(1, pattern.numel()))
    return torch.cat([torch.where(pattern, each[:, None, :], -1.0).amax(2) for each in x.split(step)])


# ---------------------------------------------------------------- matrix products


def matrices(call: Call, a: Any, b: Any) -> Dependence:
    """a @ b for (B, M, K) and (B, K, O): a product with an exact zero in either factor depends on neither."""
    left, right = index_of(a), index_of(b).transpose(1, 2)
    nonzero_a, nonzero_b = _nonzero(call.masked(a)), _nonzero(call.masked(b))
    shape = (left.shape[0], left.shape[1], right.shape[1])
    parts = [none(shape)]
    if isinstance(a, Dependence):
        parts.append(contract(left, None if nonzero_b is None else nonzero_b.transpose(1, 2)).expand(shape))
    if isinstance(b, Dependence):
        parts.append(contract(right, nonzero_a).transpose(1, 2).expand(shape))
    return Dependence(maximum(shape, *parts), signed=signed(a, b) or _without_terms(nonzero_a, nonzero_b))


def _without_terms(nonzero_a: Tensor | None, nonzero_b: Tensor | None) -> bool:
    """Whether some result may be a sum of masked terms only, a zero of either sign (one live term decides it)."""
    if nonzero_a is not None and nonzero_b is not None:
        return True
    lines = [pattern.any(dim) for pattern, dim in ((nonzero_a, 2), (nonzero_b, 1)) if pattern is not None]
    return not all(bool(line.all()) for line in lines)


def _nonzero(zeros: Tensor | None) -> Tensor | None:
    return None if zeros is None else ~zeros


def reshaped(fact: Any, function: Any) -> Any:
    """An operand seen in another shape."""
    if isinstance(fact, Concrete):
        return Concrete(function(fact.value), fact.names, fact.zeros, fact.exact)
    return Dependence(function(fact.index), None if fact.known is None else function(fact.known), fact.signed)


@rule("bmm")
def bmm(call: Call, a: Any, b: Any, *_: Any) -> Any:
    return matrices(call, a, b)


@rule("mm")
def mm(call: Call, a: Any, b: Any, *_: Any) -> Any:
    found = matrices(call, reshaped(a, lambda x: x[None]), reshaped(b, lambda x: x[None]))
    return Dependence(found.index[0], signed=found.signed)


@rule("mv")
def mv(call: Call, a: Any, b: Any) -> Any:
    found = matrices(call, reshaped(a, lambda x: x[None]), reshaped(b, lambda x: x[None, :, None]))
    return Dependence(found.index[0, :, 0], signed=found.signed)


@rule("dot", "vdot")
def dot(call: Call, a: Any, b: Any) -> Any:
    found = matrices(call, reshaped(a, lambda x: x[None, None]), reshaped(b, lambda x: x[None, :, None]))
    return Dependence(found.index[0, 0, 0], signed=found.signed)


@rule("addmm", "_addmm_activation", "baddbmm", "addmv")
def addmm(call: Call, bias: Any, a: Any, b: Any, **_: Any) -> Any:
    """beta * bias + alpha * a @ b."""
    by_rank = {(2, 2): mm, (3, 3): bmm, (2, 1): mv}
    found = by_rank[len(shape_of(a)), len(shape_of(b))](call, a, b)
    return Dependence(maximum(call.shape, found.index, index_of(bias)), signed=found.signed or signed(bias))


@rule("linear")
def linear(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    """x @ weight^T + bias over the last dimension."""
    flat = reshaped(x, lambda each: each.reshape(1, -1, each.shape[-1]))
    found = matrices(call, flat, reshaped(weight, lambda each: each.reshape(-1, each.shape[-1]).t()[None]))
    index = found.index.reshape(call.shape)
    return Dependence(maximum(call.shape, index, index_of(bias)), signed=found.signed or signed(bias))


@rule("matmul")
def matmul(call: Call, a: Any, b: Any) -> Any:
    """Matrix product with batch dimensions broadcast; vectors as one row or column."""
    left, right = len(shape_of(a)), len(shape_of(b))
    a = reshaped(a, lambda x: x[None]) if left == 1 else a
    b = reshaped(b, lambda x: x[:, None]) if right == 1 else b
    batch = torch.broadcast_shapes(shape_of(a)[:-2], shape_of(b)[:-2])
    a, b = (reshaped(fact, lambda x: x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])) for fact in (a, b))
    found = matrices(call, a, b)
    return Dependence(found.index.reshape(call.shape), signed=found.signed)


# ---------------------------------------------------------------- attention


@rule("scaled_dot_product_attention", "_scaled_dot_product_attention_math", "_scaled_dot_product_efficient_attention")
@rule("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu")
@rule("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable")
def attention(call: Call, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
    """softmax(q k^T / sqrt(E) + mask) v: query l takes key and value s where the mask allows it."""
    mask = call.argument("attn_mask", call.argument("attn_bias"))
    length, source = shape_of(q)[-2], shape_of(k)[-2]
    allowed = _allowed(call, mask, length, source)
    batch = shape_of(q)[:-2]
    queries = largest(index_of(q), (-1,), keepdim=True)
    keys = _per_head(largest(index_of(k), (-1,), keepdim=True), batch)
    values = _per_head(index_of(v), batch)
    shape = (*batch, length, values.shape[-1])

    pairs = torch.maximum(thin(keys), thin(values)).expand(*batch, source, values.shape[-1])
    flat = pairs.reshape(-1, source, values.shape[-1]).transpose(1, 2)
    pattern = None if allowed is None else _pattern(allowed, batch)
    taken = contract(flat, pattern).expand(len(flat), flat.shape[1], length).transpose(1, 2).reshape(shape)
    scores = contract(keys.expand(*batch, source, 1).reshape(-1, 1, source), pattern).expand(-1, -1, length)
    scores = maximum((*batch, length, 1), queries, scores.reshape(*batch, length, 1), torch.tensor(largest_index(mask)))
    if allowed is not None:  # a query that attends to nothing is NaN, or whatever the kernel makes of it
        scores = torch.where(allowed.any(-1, keepdim=True), scores, call.analysis.top)
    out = Dependence(maximum(shape, taken, scores), signed=allowed is not None or signed(q, k, v))
    return _with_statistics(call, out, scores)


def _allowed(call: Call, mask: Any, length: int, source: int) -> Tensor | None:
    """Which keys a query may take: not those at -inf or False in the mask, nor later ones if it is causal."""
    barred = call.neginfs(mask) if mask is not None else None
    if isinstance(mask, Concrete) and mask.value.dtype == torch.bool:
        barred = ~call.mask(mask)
    allowed = None if barred is None else ~barred
    if call.argument("is_causal") and length == source:  # else kernels disagree on which corner the triangle starts in
        causal = torch.ones(length, source, dtype=torch.bool).tril()
        allowed = causal if allowed is None else allowed & causal
    return None if allowed is None else allowed.expand(*allowed.shape[:-2], length, source)


def _per_head(index: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Keys and values of grouped heads, one for each query head."""
    heads = batch[-1] // index.shape[-3] if len(batch) > 1 and index.shape[-3] not in (1, batch[-1]) else 1
    return (index.repeat_interleave(heads, -3) if heads > 1 else index).expand(*batch, *index.shape[-2:])


def _pattern(allowed: Tensor, batch: tuple[int, ...]) -> Tensor:
    if allowed.dim() == 2:
        return allowed[None]
    return allowed.expand(*batch, *allowed.shape[-2:]).reshape(-1, *allowed.shape[-2:])


def _with_statistics(call: Call, out: Dependence, scores: Tensor) -> Any:
    """The kernels return the log of the softmax's sum too, and seeds that depend on nothing."""
    if not isinstance(call.type, tuple):
        return out
    found: list[Any] = [out]
    for kind in call.type[1:]:
        if not isinstance(kind, TensorType):
            found.append(None)
        elif kind.dtype.is_floating_point and kind.numel:
            found.append(Dependence(torch.tensor(float(scores.max())).expand(kind.shape)))
        else:
            found.append(Dependence(none(kind.shape)))
    return tuple(found)
