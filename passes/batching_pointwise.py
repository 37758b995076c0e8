"""Batching rules for pointwise calls and copies."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fxsolve import prims
from fxsolve.passes.batcher import Batcher
from fxsolve.passes.batching import FOLD, LEAD, Call, Form, Index, Value, aten, index_rule, parameters, rule

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
