"""Batching rules for calls that work along dimensions of one tensor: slices, reductions, softmax, sorting, ..."""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem
from typing import Any

from torch import fx

from fxsolve.ir import TensorType
from fxsolve.passes.batcher import Batcher
from fxsolve.passes.batching import FOLD, LEAD, Call, Form, Value, aten, rule

# Calls on one tensor along dimensions, and the names of the arguments that say which.
ALONG: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            aten.select.int,
            aten.slice.Tensor,
            aten.split.Tensor,
            aten.split_with_sizes.default,
            aten.unsafe_split.Tensor,
            aten.unbind.int,
            aten.index_select.default,
            aten._softmax.default,
            aten._log_softmax.default,
            aten._safe_softmax.default,
            aten.cumsum.default,
            aten.cumprod.default,
            aten.logcumsumexp.default,
            aten.cummax.default,
            aten.cummin.default,
            aten.sum.dim_IntList,
            aten.nansum.default,
            aten.mean.dim,
            aten.amax.default,
            aten.amin.default,
            aten.argmax.default,
            aten.argmin.default,
            aten.var.correction,
            aten.std.correction,
            aten.var_mean.correction,
            aten.std_mean.correction,
            aten.logsumexp.default,
            aten.all.dim,
            aten.any.dim,
            aten.all.dims,
            aten.any.dims,
            aten.max.dim,
            aten.min.dim,
            aten.prod.dim_int,
            aten.median.dim,
            aten.mode.default,
            aten.kthvalue.default,
            aten.topk.default,
            aten.sort.default,
            aten.sort.stable,
            aten.argsort.default,
            aten.argsort.stable,
            aten.glu.default,
            aten.linalg_vector_norm.default,
            aten.norm.ScalarOpt_dim,
            aten.norm.ScalarOpt_dim_dtype,
            aten._fft_c2c.default,
            aten._fft_r2c.default,
            aten._fft_c2r.default,
            aten.count_nonzero.dim_IntList,
            aten.count_nonzero.default,
        ),
        ("dim",),
    ),
    aten.transpose.int: ("dim0", "dim1"),
    aten.flip.default: ("dims",),
    aten.roll.default: ("dims",),
    aten.unfold.default: ("dimension",),
    aten.diagonal.default: ("dim1", "dim2"),
}

# Reductions of the whole tensor, and the same along one dimension.
WHOLE: dict[Any, Any] = {
    aten.sum.default: aten.sum.dim_IntList,
    aten.mean.default: aten.mean.dim,
    aten.prod.default: aten.prod.dim_int,
    aten.max.default: aten.amax.default,
    aten.min.default: aten.amin.default,
    aten.all.default: aten.all.dim,
    aten.any.default: aten.any.dim,
    aten.norm.Scalar: aten.norm.ScalarOpt_dim,
}


@rule(*ALONG)
def along(b: Batcher, call: Call) -> Any:
    """`op(x, dim)` is `op(x, dim)` on a folded x when dim > 0, else `op(x, dim + 1)` behind the lead."""
    x: Value = call[call.main]
    names = ALONG[call.target]
    if any(not v.fixed for v in call.values.values() if v is not x):
        return None
    dims = {name: call[name] for name in names}
    if None in dims.values() or [] in dims.values() or x.rank == 0:
        return None if len(dims) > 1 else _along_all(b, call, call.target, names[0])
    keeps_rows = 0 not in (d % x.rank for dim in dims.values() for d in (dim if isinstance(dim, Sequence) else [dim]))
    form = FOLD if x.form is FOLD and keeps_rows else LEAD
    inner = {name: _behind(form, dim, x.rank) for name, dim in dims.items()}
    return b.finish(b.emit_as(call, **{call.main: b.to(form, x)}, **inner), call.type, form)


def _behind(form: Form, dim: int | Sequence[int], rank: int) -> int | list[int]:
    """Where a dimension, or each of several, of a value of the given rank is in its batched form."""
    if isinstance(dim, Sequence):
        return [d % rank + (form is LEAD) for d in dim]
    return dim % rank + (form is LEAD)


@rule(*WHOLE)
def whole(b: Batcher, call: Call) -> Any:
    return _along_all(b, call, WHOLE[call.target], "dim")


def _along_all(b: Batcher, call: Call, target: Any, name: str) -> Any:
    """A call along all dimensions of x: along dimension 1 of x flattened to (count, numel)."""
    x: Value = call[call.main]
    if target is aten.flip.default:
        return x
    takes_list = "List" in next(str(a.type) for a in target._schema.arguments if a.name == name)
    flat = b.reshaped(x, (b.count, x.type.numel))
    node = b.emit_as(call, target, **{call.main: flat, name: [1] if takes_list else 1})
    if not isinstance(call.type, tuple):
        return _reshape_result(b, node, call.type)
    return tuple(_reshape_result(b, b.emit(getitem, node, i), type) for i, type in enumerate(call.type))


def _reshape_result(b: Batcher, node: fx.Node, type: TensorType) -> Value:
    got: TensorType = node.meta["type"]
    inner = TensorType(got.shape[1:], got.stride[1:], got.dtype, got.device)
    return b.reshape(Value(node, inner, LEAD), type)
