"""Batching rules for pointwise calls, views, and calls that work along some dimensions (reductions, softmax, ...)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxsolve import prims
from fxsolve.ir import TensorType
from fxsolve.passes.batching import FOLD, LEAD, Batcher, Call, Form, Index, Value, aten, index_rule, parameters, rule

# Pointwise, though torch does not tag them so.
POINTWISE = (
    aten.rsub.Tensor,
    aten.floor_divide.default,
    aten.masked_fill.Tensor,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten._prelu_kernel.default,
    aten.hardswish.default,
    aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default,
    aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default,
    aten.elu_backward.default,
    aten.softplus_backward.default,
    aten.mish_backward.default,
    aten.log_sigmoid_backward.default,
    aten.log_sigmoid_forward.default,
    aten.complex.default,
    aten.polar.default,
    aten._conj.default,
    aten._neg_view.default,
)
# One operand, and the same shape or layout work whatever the shape is.
ANY_FORM = (
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten.view_as_real.default,
    prims.guard,
)


@rule(torch.Tag.pointwise, *POINTWISE)
@index_rule(torch.Tag.pointwise, *POINTWISE)
def pointwise(b: Batcher, call: Call) -> Any:
    """`op(x[n], y[n], ..)`: stays folded where every operand keeps its rows, else broadcasts after the lead."""
    type = call.type[0] if isinstance(call.type, tuple) else call.type
    if not isinstance(getattr(type, "shape", None), tuple):
        return None
    operands = {name: a for name, a in call.args.items() if isinstance(a, Value | Index)}
    target = _with_tensors(call, operands)
    if target is None:
        return None
    form = FOLD if _keeps_rows(operands.values(), type.shape) else LEAD
    placed = {name: _placed(b, v, form, len(type.shape)) for name, v in operands.items()}
    dtype = _common_dtype(operands.values())
    for name, operand in operands.items():
        if dtype is not None and _changes_promotion(operand, dtype):
            placed[name] = b.emit(aten._to_copy.default, placed[name], dtype=dtype)
    return b.finish(b.emit_as(call, target, **placed), call.type, form)


def _with_tensors(call: Call, operands: dict[str, Value | Index]) -> Any:
    """The overload that takes tensors where the call has indices (`mul.Tensor` for `mul.Scalar`), or None."""
    indices = [name for name, operand in operands.items() if isinstance(operand, Index)]
    overload = getattr(call.target, "_overloadname", "")
    target = call.target
    if indices and overload.count("Scalar"):
        target = getattr(call.target.overloadpacket, overload.replace("Scalar", "Tensor"), None)
    if target is None:
        return None
    tensors = {p.name for p in parameters(target) if p.is_tensor}
    return target if tensors.issuperset(indices) else None


def _keeps_rows(operands: Iterable[Value | Index], shape: tuple[int, ...]) -> bool:
    """Whether a pointwise call with this result can work on folded operands, and one of them is folded now.

    A result of one row takes operands of any rank: row n is element n.
    """
    if not any(isinstance(v, Value) and v.form is FOLD for v in operands) or not shape:
        return False
    return all(
        (isinstance(v, Value) and v.fixed and (v.rank < len(shape) or v.shape[0] == 1))
        or (isinstance(v, Value) and not v.fixed and v.rank == len(shape) and v.shape[0] == shape[0])
        or (shape[0] == 1 and not (isinstance(v, Value) and v.fixed))
        for v in operands
    )


def _placed(b: Batcher, operand: Value | Index, form: Form, rank: int) -> Any:
    """The operand so that it broadcasts against a result of the given rank in the given form."""
    if isinstance(operand, Value) and form is FOLD and operand.rank == rank and not operand.fixed:
        return b.fold(operand)
    behind = rank if form is LEAD else rank - 1
    if isinstance(operand, Value):
        return b.aligned(operand, behind)
    return b.emit(aten.reshape.default, operand.node, [b.count, *(1,) * behind]) if behind else operand.node


def _common_dtype(operands: Iterable[Value | Index]) -> torch.dtype | None:
    """The dtype in which the single step computes, if batching would change it: else None.

    A tensor without dimensions, and more so a Python number, yields to one with dimensions of the same category;
    batched, it has a dimension itself and would not yield.
    """
    operands = list(operands)
    if len({v.dtype for v in operands if isinstance(v, Value)}) < 2 and all(isinstance(v, Value) for v in operands):
        return None
    before = _promoted([(v.rank if isinstance(v, Value) else -1, _dtype_of(v)) for v in operands])
    after = _promoted([(v.rank if isinstance(v, Value) and v.fixed else 1, _dtype_of(v)) for v in operands])
    return before if before is not after else None


def _dtype_of(operand: Value | Index) -> torch.dtype:
    return operand.dtype if isinstance(operand, Value) else torch.int64


def _promoted(operands: Sequence[tuple[int, torch.dtype]]) -> torch.dtype:
    """The common dtype of operands given as (rank, dtype); rank -1 is a Python int."""
    samples: list[torch.Tensor] = []
    for lowest, shape in ((0, ()), (1, (1,))):
        group = [dtype for rank, dtype in operands if min(rank, 1) == lowest]
        if group:
            samples.append(torch.empty(shape, dtype=functools.reduce(torch.promote_types, group), device="meta"))
    dtype = torch.result_type(samples[0], samples[-1])
    ints = any(rank < 0 for rank, _ in operands)
    return torch.result_type(torch.empty((1,), dtype=dtype, device="meta"), 1) if ints else dtype


def _changes_promotion(operand: Value | Index, dtype: torch.dtype) -> bool:
    if isinstance(operand, Index):
        return dtype is not torch.int64
    return operand.rank == 0 and not operand.fixed and operand.dtype not in (dtype, torch.bool)


@rule(*ANY_FORM)
def any_form(b: Batcher, call: Call) -> Any:
    x = call[call.main]
    return b.finish(b.emit_as(call), call.type, x.form)


@rule(aten.clone.default, aten._to_copy.default)
def clone(b: Batcher, call: Call) -> Any:
    """As `any_form`, but a channels-last layout is one of the shape without the lead."""
    x = call["self"]
    if call["memory_format"] in (torch.channels_last, torch.channels_last_3d):
        return b.value(b.emit_as(call, self=b.fold(x)), call.type, FOLD)
    return any_form(b, call)


@rule(aten.view_as_complex.default)
def view_as_complex(b: Batcher, call: Call) -> Value:
    """Takes the last dimension away, which must not be that of a folded x."""
    x = call["self"]
    form = x.form if x.rank > 1 else LEAD
    return b.value(b.emit_as(call, self=b.to(form, x)), call.type, form)


@rule(aten.copy.default)
def copy(b: Batcher, call: Call) -> Any:
    """`self.copy_(src)` as a function: the source with the shape and dtype of self."""
    src: Value = call["src"]
    if src.fixed:
        return Value(b.emit_as(call, self=b.lead(call["self"])), call.type, LEAD)
    node, form = (src.node, src.form) if src.shape == call.type.shape else (b.aligned(src, len(call.type.shape)), LEAD)
    if src.dtype is not call.type.dtype:
        node = b.emit(aten._to_copy.default, node, dtype=call.type.dtype)
    if src.shape != call.type.shape:
        node = b.emit(aten.expand.default, node, list(b.shape_in(LEAD, call.type.shape)))
    return b.value(node, call.type, form)


@rule(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.view_copy.default,
    aten._reshape_alias.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
def reshape(b: Batcher, call: Call) -> Value:
    """Row-major reshapes, of which no call is left where the batched shape stays the same."""
    return b.reshape(call["self"], call.type)


@rule(aten.expand.default)
def expand(b: Batcher, call: Call) -> Value:
    x, shape = call["self"], call.type.shape
    if x.form is FOLD and x.rank == len(shape) and x.shape[0] == shape[0]:
        return b.value(b.emit_as(call, size=list(b.shape_in(FOLD, shape))), call.type, FOLD)
    size = list(b.shape_in(LEAD, shape))
    return b.value(b.emit_as(call, self=b.aligned(x, len(shape)), size=size), call.type, LEAD)


@rule(aten.repeat.default)
def repeat(b: Batcher, call: Call) -> Value:
    x, repeats = call["self"], list(call["repeats"])
    if x.form is FOLD and x.rank == len(repeats) and repeats[0] == 1:
        return b.value(b.emit_as(call), call.type, FOLD)
    return b.value(b.emit_as(call, self=b.aligned(x, len(repeats)), repeats=[1, *repeats]), call.type, LEAD)


@rule(aten.t.default)
def t(b: Batcher, call: Call) -> Value:
    x = call["self"]
    if x.rank < 2:
        return x
    return b.value(b.emit(aten.transpose.int, b.lead(x), 1, 2), call.type, LEAD)


@rule(aten.permute.default)
def permute(b: Batcher, call: Call) -> Value:
    """`x.permute(d)` keeps the rows of a folded x when d[0] == 0, else is `x.permute(0, d + 1)`."""
    x = call["self"]
    dims = [d % x.rank for d in call["dims"]]
    if x.form is FOLD and dims[0] == 0:
        return b.value(b.emit_as(call, dims=dims), call.type, FOLD)
    return b.value(b.emit_as(call, self=b.lead(x), dims=[0, *(d + 1 for d in dims)]), call.type, LEAD)


@rule(aten.cat.default, aten.stack.default)
def join(b: Batcher, call: Call) -> Value:
    """`cat` and `stack`, where operands that are the same for every n are copied for each."""
    type = call.type
    # cat skips tensors of shape (0,) whatever the rank of the others is.
    tensors = [v for v in call["tensors"] if call.target is aten.stack.default or v.shape != (0,) or type.shape == (0,)]
    dim = call["dim"] % max(len(type.shape), 1)
    form = FOLD if dim > 0 and all(v.fixed or v.form is FOLD for v in tensors) else LEAD
    parts = [b.to(form, v) for v in tensors]
    return b.value(b.emit(call.target, parts, dim + (form is LEAD)), type, form)


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
