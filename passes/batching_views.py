"""Batching rules for views, joins and paddings."""

from __future__ import annotations

from fxsolve.passes.batcher import Batcher
from fxsolve.passes.batching import FOLD, LEAD, Call, Value, aten, rule


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


@rule(aten.view_as_complex.default)
def view_as_complex(b: Batcher, call: Call) -> Value:
    """Takes the last dimension away, which must not be that of a folded x."""
    x = call["self"]
    form = x.form if x.rank > 1 else LEAD
    return b.value(b.emit_as(call, self=b.to(form, x)), call.type, form)


@rule(aten.tril.default, aten.triu.default)
def triangle(b: Batcher, call: Call) -> Value:
    x = call["self"]
    form = x.form if x.rank > 2 else LEAD
    return b.value(b.emit_as(call, self=b.to(form, x)), call.type, form)


@rule(aten.constant_pad_nd.default)
def constant_pad(b: Batcher, call: Call) -> Value:
    x = call["self"]
    form = FOLD if x.form is FOLD and len(call["pad"]) < 2 * x.rank else LEAD
    return b.value(b.emit_as(call, self=b.to(form, x)), call.type, form)
