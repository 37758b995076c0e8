"""Whether a step is continuous in its state: a certificate to rounding says nothing about a step that jumps."""

from __future__ import annotations

from torch import fx

from fxsolve.ir import CARRY, TensorType, placeholders

DISCONTINUOUS = (
    "maximum", "minimum", "fmax", "fmin", "amax", "amin", "cummax", "cummin",  # a running extreme holds what it met
    "angle", "atan2", "frac", "sgn", "threshold", "hardshrink", "copysign", "nextafter", "bucketize", "searchsorted",
    "fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask", "quantize_per_tensor",
    "gt", "lt", "ge", "le", "eq", "ne", "sign", "floor", "ceil", "round", "trunc", "heaviside", "argmax", "argmin",
    "topk", "sort", "argsort", "floor_divide", "fmod", "remainder", "logical_not", "logical_and", "logical_or", "isnan",
)  # fmt: skip


def continuous(core: fx.Graph, carries: int) -> bool:
    """Whether the state is all floating point and no discontinuous op stands on its path."""
    kinds = [n.meta["type"] for n in placeholders(core, CARRY)]
    if any(not k.dtype.is_floating_point for k in kinds):
        return False
    for node in core.nodes:
        if node.op == "call_function":
            name = getattr(node.target, "__name__", "").split(".")[0]
            kind = node.meta.get("type")
            whole = isinstance(kind, TensorType) and not kind.dtype.is_floating_point
            if name in DISCONTINUOUS or whole or narrows(node):
                return False
    return True


def narrows(node: fx.Node) -> bool:
    """Whether a call casts to a coarser floating point type: a step of its rounding is a discontinuity for its operand's."""
    kinds = [n.meta.get("type") for n in node.all_input_nodes]
    size = node.meta["type"].dtype.itemsize if isinstance(node.meta.get("type"), TensorType) else 0
    floats = [k.dtype.itemsize for k in kinds if isinstance(k, TensorType) and k.dtype.is_floating_point]
    return size > 0 and any(f > size for f in floats)
