"""Batching rules for the backward calls of layers that treat each row or image alone, for their input's gradient.

Gradients of parameters sum over the rows of one element; they are left to the default.
"""

from __future__ import annotations

from typing import Any

from fxsolve.passes.batcher import Batcher
from fxsolve.passes.batching import FOLD, LEAD, Call, aten, rule

PARAMETERS = ("weight", "bias", "gamma", "running_mean", "running_var", "save_mean", "save_invstd")


@rule(
    aten.native_layer_norm_backward.default,
    aten._fused_rms_norm_backward.default,
    aten.native_group_norm_backward.default,
    aten.native_batch_norm_backward.default,
    aten.convolution_backward.default,
    aten.max_pool2d_with_indices_backward.default,
    aten.avg_pool2d_backward.default,
    aten._adaptive_avg_pool2d_backward.default,
    aten.upsample_nearest1d_backward.default,
    aten.upsample_nearest2d_backward.default,
    aten.upsample_bilinear2d_backward.default,
    aten.reflection_pad1d_backward.default,
    aten.reflection_pad2d_backward.default,
    aten.replication_pad1d_backward.default,
    aten.replication_pad2d_backward.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
)
def input_gradient(b: Batcher, call: Call) -> Any:
    """`count` times the rows, where the layer's parameters are the same for all n."""
    parameters = [v for name, v in call.values.items() if name in PARAMETERS]
    wants_more = any(call["output_mask"][1:]) if "output_mask" in call.args else False
    if wants_more or any(not v.fixed for v in parameters) or call.args.get("train") or call.args.get("attn_mask"):
        return None
    types = call.type if isinstance(call.type, tuple) else (call.type,)
    rows = {name: v for name, v in call.values.items() if name not in PARAMETERS}
    # An element that is normalised as a whole has no rows to fold.
    whole = len(call.args.get("normalized_shape", ())) == len(types[0].shape)
    form = LEAD if whole else FOLD
    # Tiled, not expanded: layer norm's backward reads its statistics as if they were contiguous (torch 2.13).
    changed: dict[str, Any] = {name: b.tiled(v, form) if v.fixed else b.to(form, v) for name, v in rows.items()}
    if "N" in call.args:
        changed["N"] = b.count * call["N"]
    if "input_size" in call.args:
        changed["input_size"] = list(b.shape_in(FOLD, tuple(call["input_size"])))
    return b.finish(b.emit_as(call, **changed), call.type, form)
