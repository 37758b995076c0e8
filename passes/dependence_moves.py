"""Dependence rules of ops that move elements (views, pads, gathers, strided writes); see `dependence.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxsolve import prims
from fxsolve.ir import TensorType
from fxsolve.passes.dependence import (
    MOVES,
    NEGINF,
    UNKNOWN,
    ZERO,
    Call,
    Concrete,
    Dependence,
    depends_on_all,
    index_of,
    leaves,
    none,
    prim,
    rule,
    signed,
)


def plane(call: Call, fact: Any, of: str) -> Any:
    """One plane of an operand, index or known codes, as a float tensor that any kernel takes."""
    if isinstance(fact, Dependence):
        if of == "index":
            return fact.index
        return torch.zeros(()).expand(fact.index.shape) if fact.known is None else fact.known.float()
    if isinstance(fact, Concrete):
        return none(fact.value.shape) if of == "index" else known_of_masks(call, fact)
    if isinstance(fact, (list, tuple)) and any(isinstance(each, (Dependence, Concrete)) for each in fact):
        return [plane(call, each, of) for each in fact]
    return fact


def known_of_masks(call: Call, fact: Concrete) -> Tensor:
    low = call.neginfs(fact)
    return torch.zeros(()).expand(fact.value.shape) if low is None else low.float() * NEGINF


def move(call: Call, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Each result element is an argument's element: `function` applied to the indices themselves."""
    facts = [fact for fact in leaves(args) if isinstance(fact, Dependence)]
    index = function(*(plane(call, a, "index") for a in args), **kwargs)
    known = None
    if any(fact.known is not None for fact in facts):
        known = function(*(plane(call, a, "known") for a in args), **kwargs)
    if isinstance(index, Tensor):
        return _moved(index, known, signed(*facts))
    return tuple(_moved(i, None if known is None else known[n], signed(*facts)) for n, i in enumerate(index))


def _moved(index: Tensor, known: Tensor | None, sign: bool) -> Dependence:
    return Dependence(index, None if known is None else known.to(torch.int8), sign)


_MOVES = """
    chunk diagonal diagonal_copy expand expand_as expand_copy flatten flip movedim moveaxis narrow narrow_copy numpy_T
    permute permute_copy ravel roll rot90 select select_copy slice slice_copy split split_copy split_with_sizes
    split_with_sizes_copy squeeze squeeze_copy swapaxes swapdims t t_copy tensor_split tile transpose transpose_copy
    unbind unbind_copy unflatten unfold unfold_copy unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze
    unsqueeze_copy hstack vstack dstack repeat column_stack
"""
_SPATIAL_MOVES = """
    pixel_shuffle pixel_unshuffle channel_shuffle upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
"""


@rule(*_MOVES.split(), moves=True)
def moves(call: Call, *args: Any, **kwargs: Any) -> Any:
    return move(call, call.node.target, *args, **kwargs)


@rule(*_SPATIAL_MOVES.split(), moves=True)
def spatial_moves(call: Call, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Moves within each sample: once for all samples that are alike."""

    def function(tensor: Tensor) -> Tensor:
        alike = tensor.dim() == len(call.shape) and tensor.stride(0) == 0
        out = call.node.target(tensor[:1] if alike else tensor, *args, **kwargs)  # type: ignore[operator]
        return out.expand(call.shape) if alike else out

    return move(call, function, x)


@rule("cat", "concat", "concatenate", moves=True)
def cat(call: Call, parts: Any, dim: int = 0) -> Any:
    """Concatenation; where all parts are expanded along the first dimension, so is the result."""

    def function(tensors: list[Tensor]) -> Tensor:
        # ATen skips empty tensors of one dimension
        tensors = [each for each in tensors if each.dim() == len(call.shape)]
        alike = dim % len(call.shape) != 0 and all(each.stride(0) == 0 for each in tensors)
        out = torch.cat([each[:1] for each in tensors] if alike else tensors, dim)
        return out.expand(call.shape) if alike else out

    return move(call, function, parts)


@rule("stack", moves=True)
def stack(call: Call, parts: Any, dim: int = 0) -> Any:
    return move(call, lambda tensors: torch.stack(tensors, dim), parts)


_COPIES = """
    alias alias_copy clone contiguous detach detach_copy dropout feature_dropout lift lift_fresh lift_fresh_copy
    positive resolve_conj resolve_neg
"""


@rule(*_COPIES.split(), moves=True)
def same(call: Call, x: Any, *_: Any, **__: Any) -> Any:
    """The same elements (dropout outside training: in training it is refused before)."""
    return Dependence(x.index, x.known, x.signed)


@rule("native_dropout")
def native_dropout(call: Call, x: Any, *_: Any) -> Any:
    return x, Dependence(none(call.shape))


@rule("_to_copy", "to", "type_as", "float", "half", "double", "bfloat16", moves=True)
def converted(call: Call, x: Any, *_: Any, **__: Any) -> Any:
    """Another dtype: zeros and infinities stay what they are among floats."""
    floating = call.type.dtype.is_floating_point
    return Dependence(x.index, x.known if floating else None, x.signed and floating)


_VIEWS = "view _unsafe_view reshape _reshape_copy _reshape_alias view_copy view_as reshape_as"


@rule(*_VIEWS.split(), moves=True)
def view(call: Call, x: Any, *args: Any, **_: Any) -> Any:
    """A view in another shape; as another dtype it shows bits that are otherwise alike (the sign of a zero)."""
    if args and isinstance(args[0], torch.dtype):
        same_size = tuple(x.index.shape) == tuple(call.shape) and not x.signed
        return Dependence(x.index) if same_size else None
    return move(call, lambda tensor: tensor.reshape(call.shape), x)


@rule("copy", moves=True)
def copy(call: Call, x: Any, source: Any, *_: Any) -> Any:
    """The elements of `source` in the shape and dtype of `x`."""
    return Dependence(index_of(source).expand(call.shape), signed=signed(source))


@rule("constant_pad_nd", moves=True)
def pad(call: Call, x: Any, amounts: Any, value: Any = 0) -> Any:
    """Padding with a constant depends on nothing."""
    alike = len(amounts) < 2 * x.index.dim() and x.index.stride(0) == 0
    index = torch.constant_pad_nd(x.index[:1] if alike else x.index, amounts, -1.0).expand(call.shape)
    code = ZERO if value == 0 else NEGINF if value == -torch.inf else UNKNOWN
    known = torch.zeros((), dtype=torch.int8).expand(x.index.shape) if x.known is None else x.known
    known = torch.constant_pad_nd(known[:1] if alike and known.stride(0) == 0 else known, amounts, code)
    return Dependence(index, known.expand(call.shape) if bool(known.any()) else None, x.signed)


@rule("tril", "triu", "diag_embed", "diag", "im2col", moves=True)
def moves_beside_zeros(call: Call, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Moves that leave zeros elsewhere: tril, triu, diagonal matrices, sliding windows of a padded image."""
    target = call.node.target
    index = target(x.index + 1.0, *args, **kwargs) - 1.0  # type: ignore[operator]
    filled = target(torch.ones(x.index.shape), *args, **kwargs) == 0  # type: ignore[operator]
    known = torch.zeros(x.index.shape) if x.known is None else x.known.float()
    known = target(known, *args, **kwargs).to(torch.int8)  # type: ignore[operator]
    return Dependence(index, torch.where(filled, ZERO, known).to(torch.int8), x.signed)


# ---------------------------------------------------------------- strided reads and writes


def laid_out(tensor: Tensor, kind: TensorType, fill: float) -> Tensor | None:
    """The same elements in the real tensor's strides, which a strided read goes by; `fill` between them."""
    if any(size > 1 and stride == 0 for size, stride in zip(kind.shape, kind.stride, strict=True)):
        return None
    span = sum((size - 1) * stride for size, stride in zip(kind.shape, kind.stride, strict=True)) + 1
    return torch.full((span,), fill, dtype=tensor.dtype).as_strided(kind.shape, kind.stride).copy_(tensor)


@prim(prims.read)
def read(call: Call, base: Any, size: Any, stride: Any, offset: int = 0) -> Any:
    """base[region], as `as_strided` reads it from the real tensor's layout."""
    kind = call.operand().meta["type"]
    index = laid_out(base.index, kind, call.analysis.top)
    known = None if base.known is None else laid_out(base.known, kind, UNKNOWN)
    if index is None:
        return None
    picked = None if known is None else known.as_strided(size, stride, offset)
    return Dependence(index.as_strided(size, stride, offset), picked, base.signed)


@prim(prims.laid_out)
def with_strides(call: Call, x: Any, stride: Any) -> Any:
    """The same elements."""
    return Dependence(x.index, x.known, x.signed)


@prim(prims.write)
def write(call: Call, base: Any, value: Any, size: Any, stride: Any, offset: int) -> Any:
    """A copy of base with value in the region."""
    index = laid_out(index_of(base), call.operand().meta["type"], -1.0)
    if index is None:
        return None
    index.as_strided(size, stride, offset).copy_(index_of(value))
    return Dependence(index, signed=signed(base, value))


@rule("as_strided", "as_strided_copy", moves=True)
def as_strided(call: Call, base: Any, size: Any, stride: Any, offset: int | None = None) -> Any:
    """Addresses the storage: understood for a tensor that owns its storage, not for a view of a larger one."""
    source = call.operand()
    if source.op == "placeholder" or source.target not in MOVES:
        return read(call, base, size, stride, offset or 0)
    return depends_on_all(call, call.analysis.top)


@rule("select_scatter", "slice_scatter", "diagonal_scatter", moves=True)
def scatter_region(call: Call, base: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    """A copy of base with value in the region that the op names."""
    target = call.node.target
    return move(call, lambda a, b: target(a.contiguous(), b, *args, **kwargs), base, value)  # type: ignore[operator]
