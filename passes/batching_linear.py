"""Batching rules for matrix products, attention, convolutions, pooling and normalisations."""

from __future__ import annotations

from typing import Any

from fxsolve.ir import TensorType, contiguous_stride
from fxsolve.passes.batcher import Batcher
from fxsolve.passes.batching import FIXED, FOLD, LEAD, Call, Value, aten, rule


@rule(aten.mm.default)
def mm(b: Batcher, call: Call) -> Value:
    """`x[n] @ w`: all rows in one GEMM. With a w for each n: `bmm`."""
    x, w = call["self"], call["mat2"]
    if w.fixed:
        return b.value(b.emit(aten.mm.default, b.fold(x), w.node), call.type, FOLD)
    return b.value(b.emit(aten.bmm.default, b.lead(x), b.lead(w)), call.type, LEAD)


@rule(aten.addmm.default)
def addmm(b: Batcher, call: Call) -> Value:
    """`c + x[n] @ w`: all rows in one GEMM where c does not hinder it. With a w for each n: `baddbmm`."""
    c, x, w = call["self"], call["mat1"], call["mat2"]
    if w.fixed and _has_rows(c, call.type):
        node = b.emit_as(call, self=c.node if c.fixed else b.fold(c), mat1=b.fold(x))
        return b.value(node, call.type, FOLD)
    if w.fixed and call["beta"] == call["alpha"] == 1:
        product = b.apply(aten.mm.default, call.type, x, w)
        return b.apply(aten.add.Tensor, call.type, product, c)
    return _baddbmm(b, call, c, b.lead(x), b.lead(w))


def _has_rows(c: Value, type: TensorType) -> bool:
    """Whether an addend fits the folded product: one row for all, or a row for each."""
    if c.fixed:
        return c.rank < 2 or c.shape[0] == 1
    return c.shape == type.shape


def _baddbmm(b: Batcher, call: Call, c: Value, x: Any, w: Any) -> Value:
    node = b.emit(aten.baddbmm.default, b.aligned(c, 2), x, w, beta=call["beta"], alpha=call["alpha"])
    return b.value(node, call.type, LEAD)


@rule(aten.bmm.default)
def bmm(b: Batcher, call: Call) -> Value:
    """`x[n][g] @ w[n][g]`: one `bmm` over (n, g); with a w for all n, the rows of all n go into group g's product."""
    x, w = call["self"], call["mat2"]
    if not w.fixed:
        return b.value(b.emit(aten.bmm.default, b.fold(x), b.fold(w)), call.type, FOLD)
    groups, rows, inner = x.shape
    by_group = b.emit(aten.transpose.int, b.lead(x), 0, 1)
    product = b.emit(aten.bmm.default, b.emit(aten.reshape.default, by_group, [groups, b.count * rows, inner]), w.node)
    split = b.emit(aten.reshape.default, product, [groups, b.count, rows, w.shape[2]])
    return b.value(b.emit(aten.transpose.int, split, 0, 1), call.type, LEAD)


@rule(aten.baddbmm.default)
def baddbmm(b: Batcher, call: Call) -> Any:
    c, x, w = call["self"], call["batch1"], call["batch2"]
    row_for_all = c.fixed and (c.rank < 3 or c.shape[0] == 1)
    if row_for_all or c.shape == call.type.shape:
        node = b.emit_as(call, self=c.node if row_for_all else b.fold(c), batch1=b.fold(x), batch2=b.fold(w))
        return b.value(node, call.type, FOLD)
    if call["beta"] == call["alpha"] == 1:
        return b.apply(aten.add.Tensor, call.type, b.apply(aten.bmm.default, call.type, x, w), c)
    return None


@rule(aten.mv.default)
def mv(b: Batcher, call: Call) -> Value:
    """`w @ v[n]` is row n of `v @ w.T`."""
    w, v = call["self"], call["vec"]
    if v.fixed:
        return b.value(b.emit(aten.mv.default, b.fold(w), v.node), call.type, FOLD)
    if w.fixed:
        return b.value(b.emit(aten.mm.default, b.lead(v), b.emit(aten.t.default, w.node)), call.type, LEAD)
    return b.value(_matvec(b, w, v), call.type, LEAD)


def _matvec(b: Batcher, w: Value, v: Value) -> Any:
    column = b.emit(aten.unsqueeze.default, b.lead(v), 2)
    return b.emit(aten.squeeze.dim, b.emit(aten.bmm.default, b.lead(w), column), 2)


@rule(aten.addmv.default)
def addmv(b: Batcher, call: Call) -> Any:
    c, w, v = call["self"], call["mat"], call["vec"]
    if w.fixed:
        transposed = b.emit(aten.t.default, w.node)
        node = b.emit(
            aten.addmm.default, b.aligned(c, 1), b.lead(v), transposed, beta=call["beta"], alpha=call["alpha"]
        )
        return b.value(node, call.type, LEAD)
    if call["beta"] == call["alpha"] == 1:
        return b.apply(aten.add.Tensor, call.type, b.apply(aten.mv.default, call.type, w, v), c)
    return None


@rule(aten.dot.default, aten.vdot.default)
def dot(b: Batcher, call: Call) -> Any:
    x, y = call.values.values()
    if x.dtype.is_complex:
        return None
    if x.fixed or y.fixed:
        fixed, batched = (x, y) if x.fixed else (y, x)
        return b.value(b.emit(aten.mv.default, b.lead(batched), fixed.node), call.type, LEAD)
    product = b.emit(aten.mul.Tensor, b.lead(x), b.lead(y))
    return b.value(b.emit(aten.sum.dim_IntList, product, [1]), call.type, LEAD)


@rule(aten.linear.default)
def linear(b: Batcher, call: Call) -> Any:
    """`x[n] @ w.T + c` along the last dimension, in any form; with a w for each n: `baddbmm`."""
    x, w, c = call["input"], call["weight"], call["bias"]
    if w.fixed and (c is None or c.fixed):
        form = x.form if x.rank > 1 else LEAD
        return b.value(b.emit_as(call, input=b.to(form, x)), call.type, form)
    if w.fixed or x.rank != 2:
        return None
    transposed = b.emit(aten.transpose.int, b.lead(w), 1, 2)
    if c is None:
        return b.value(b.emit(aten.bmm.default, b.lead(x), transposed), call.type, LEAD)
    return b.value(b.emit(aten.baddbmm.default, b.aligned(c, 2), b.lead(x), transposed), call.type, LEAD)


@rule(aten.matmul.default)
def matmul(b: Batcher, call: Call) -> Any:
    x, y = call["self"], call["other"]
    if y.fixed and y.rank <= 2:
        form = x.form if x.rank > 1 else LEAD
        return b.value(b.emit_as(call, self=b.to(form, x)), call.type, form if call.type.shape else LEAD)
    rank = max(x.rank, y.rank)
    if min(x.rank, y.rank) < 2:
        return None
    return b.value(b.emit_as(call, self=b.aligned(x, rank), other=b.aligned(y, rank)), call.type, LEAD)


@rule(
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
)
def attention(b: Batcher, call: Call) -> Any:
    """Scaled dot-product attention of (batch, heads, length, width): `count` times the batch."""
    q: Value = call["query"]
    changed = {name: b.fold(call[name]) for name in ("query", "key", "value")}
    name = "attn_bias" if "attn_bias" in call.args else "attn_mask"
    mask = call.args.get(name)
    if isinstance(mask, Value) and not (mask.fixed and (mask.rank == 2 or mask.shape[0] == 1)):
        each = (q.shape[0], *(1,) * (3 - mask.rank), *mask.shape[-min(mask.rank, 3) :])
        full = TensorType(each, contiguous_stride(each), mask.dtype, mask.type.device)
        wide = Value(b.emit(aten.expand.default, b.aligned(mask, 4), [b.count, *each]), full, LEAD)
        changed[name] = b.fold(wide)
    forms = [FOLD if t and t.shape[:1] == q.shape[:1] else FIXED for t in call.type]
    return b.values(b.emit_as(call, **changed), call.type, forms)


@rule(aten._native_multi_head_attention.default, aten._transformer_encoder_layer_fwd.default)
def fused_attention(b: Batcher, call: Call) -> Any:
    """The fused layers of inference work on each sequence of the batch alone, with a mask for all of them."""
    sequences = {name: v for name, v in call.values.items() if name in ("query", "key", "value", "src")}
    others = [v for name, v in call.values.items() if name not in sequences]
    mask = call["mask"]
    if any(not v.fixed for v in others) or mask is not None and mask.rank != 2:
        return None
    return b.finish(b.emit_as(call, **{name: b.fold(v) for name, v in sequences.items()}), call.type, FOLD)


@rule(
    aten.convolution.default,
    aten._convolution.default,
    aten.mkldnn_convolution.default,
    aten.cudnn_convolution.default,
)
def convolution(b: Batcher, call: Call) -> Any:
    """A convolution with one kernel for all n: `count` times the images."""
    x: Value = call[call.main]
    return _images(b, call, len(call["weight"].shape)) if not x.fixed else None


# Calls on images (batch, channels, ..) that treat each image alone, and the rank with the batch dimension.
IMAGES: dict[Any, int] = {
    aten.max_pool2d_with_indices.default: 4,
    aten.max_pool3d_with_indices.default: 5,
    aten.avg_pool1d.default: 3,
    aten.avg_pool2d.default: 4,
    aten.avg_pool3d.default: 5,
    aten._adaptive_avg_pool2d.default: 4,
    aten._adaptive_avg_pool3d.default: 5,
    aten.adaptive_max_pool2d.default: 4,
    aten.upsample_nearest1d.default: 3,
    aten.upsample_nearest2d.default: 4,
    aten.upsample_nearest2d.vec: 4,
    aten.upsample_nearest3d.default: 5,
    aten.upsample_linear1d.default: 3,
    aten.upsample_bilinear2d.default: 4,
    aten.upsample_bilinear2d.vec: 4,
    aten.upsample_bicubic2d.default: 4,
    aten.reflection_pad1d.default: 3,
    aten.reflection_pad2d.default: 4,
    aten.replication_pad1d.default: 3,
    aten.replication_pad2d.default: 4,
    aten.pixel_shuffle.default: 4,
    aten.pixel_unshuffle.default: 4,
    aten.channel_shuffle.default: 4,
    aten.im2col.default: 4,
    aten.col2im.default: 3,
}


@rule(*IMAGES)
def images(b: Batcher, call: Call) -> Any:
    return _images(b, call, IMAGES[call.target])


def _images(b: Batcher, call: Call, rank: int) -> Any:
    """A call that works image by image on its first argument; the lead serves an image without a batch dimension."""
    x: Value = call[call.main]
    if x.rank not in (rank, rank - 1) or any(not v.fixed for name, v in call.values.items() if name != call.main):
        return None
    form = FOLD if x.rank == rank else LEAD
    return b.finish(b.emit_as(call, **{call.main: b.to(form, x)}), call.type, form)


@rule(aten.native_layer_norm.default, aten._fused_rms_norm.default)
def layer_norm(b: Batcher, call: Call) -> Any:
    """Normalises over the last dimensions: rows of any form, with the weights of all."""
    x: Value = call["input"]
    if any(not v.fixed for v in call.values.values() if v is not x):
        return None
    form = x.form if len(call["normalized_shape"]) < x.rank else LEAD
    return b.values(b.emit_as(call, input=b.to(form, x)), call.type, form)


@rule(aten.native_group_norm.default)
def group_norm(b: Batcher, call: Call) -> Any:
    x: Value = call["input"]
    if any(not v.fixed for v in call.values.values() if v is not x):
        return None
    return b.values(b.emit_as(call, input=b.fold(x), N=b.count * call["N"]), call.type, FOLD)


@rule(
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit_no_training.default,
    aten._batch_norm_no_update.default,
    aten.cudnn_batch_norm.default,
)
def batch_norm(b: Batcher, call: Call) -> Any:
    """With running statistics each row stands alone; statistics of the batch would mix the elements."""
    x: Value = call["input"]
    if call.args.get("training") or any(not v.fixed for v in call.values.values() if v is not x):
        return None
    return b.values(b.emit_as(call, input=b.fold(x)), call.type, (FOLD, *(FIXED,) * (len(call.type) - 1)))
