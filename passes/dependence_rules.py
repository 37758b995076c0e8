"""Dependence rules of elementwise ops and of ops that move elements; see `dependence.py` for what a rule is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxsolve import prims
from fxsolve.passes.dependence import (
    MOVES,
    NEGINF,
    RULES,
    UNKNOWN,
    ZERO,
    Call,
    Concrete,
    Dependence,
    depends_on_all,
    index_of,
    leaves,
    maximum,
    none,
    pointwise,
    real,
    rule,
    shape_of,
    signed,
)

# ---------------------------------------------------------------- elementwise


@rule(
    *"""
    abs acos acosh add addcdiv addcmul angle asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not
    bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp clamp_max clamp_min conj copysign cos cosh deg2rad digamma
    elu eq erf erfc erfinv exp exp2 expm1 float_power floor floor_divide fmax fmin fmod frac ge gelu glu_jvp gt
    hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 isfinite isinf isnan isneginf isposinf ldexp le
    leaky_relu lerp lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or
    logical_xor logit lt maximum minimum mish nan_to_num ne neg nextafter pow rad2deg reciprocal relu relu6 remainder
    round rsqrt selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink sqrt square tan tanh threshold trunc
    xlogy special_entr special_erfcx special_i0e special_i1 special_i1e special_log_ndtr special_ndtri special_xlog1py
    special_zeta true_divide
""".split()
)
def elementwise(call: Call, *args: Any, **kwargs: Any) -> Any:
    """y = f(a, b, ..): the maximum over the operands, with broadcasting."""
    tensors = [fact for fact in leaves((args, kwargs)) if isinstance(fact, (Dependence, Concrete))]
    if len(tensors) == 1:
        return unary(call, tensors[0])
    if signed(*tensors) and call.node.target in _SIGN_SENSITIVE:
        return depends_on_all(call, call.analysis.top)
    return Dependence(maximum(call.shape, *map(index_of, tensors)), signed=signed(*tensors))


_SIGN_SENSITIVE = {
    overload
    for name in ("atan2", "copysign", "float_power", "pow", "xlogy", "ldexp", "nextafter", "addcdiv")
    for overload in (getattr(getattr(torch.ops.aten, name), each) for each in getattr(torch.ops.aten, name).overloads())
}


def unary(call: Call, fact: Any) -> Any:
    """y = f(x): the index stays; what is known of y is f of what is known of x, tried on 0, -0 and -inf."""
    if fact.known is None and not fact.signed:
        return Dependence(fact.index)
    plus, minus, low = _samples(call)
    if fact.signed and plus.item() != minus.item():
        return depends_on_all(call, call.analysis.top)
    same = torch.equal(torch.signbit(plus), torch.signbit(minus)) if plus.is_floating_point() else True
    return Dependence(fact.index, _known_of(fact.known, plus, low), fact.signed and not same)


def _samples(call: Call) -> Tensor:
    """The op on the three values that the analysis tells apart."""
    (dtype,) = {n.meta["type"].dtype for n in call.node.all_input_nodes}
    if not dtype.is_floating_point:
        return torch.zeros(3)
    samples = torch.tensor([0.0, -0.0, -torch.inf], dtype=dtype)
    args, kwargs = ([samples if isinstance(a, Dependence) else a for a in call.args], call.kwargs)
    return call.node.target(*real(args), **real(kwargs))  # type: ignore[operator]


def _known_of(known: Tensor | None, zero: Tensor, low: Tensor) -> Tensor | None:
    """Codes mapped through the results for 0 and -inf."""
    if known is None or not zero.is_floating_point():
        return None
    codes = [UNKNOWN] + [ZERO if v == 0 else NEGINF if v == -torch.inf else UNKNOWN for v in (zero.item(), low.item())]
    return pointwise(lambda k: torch.tensor(codes, dtype=torch.int8)[k.long()], known, shape=known.shape)


@rule("add", "sub", "rsub", "subtract")
def sums(call: Call, a: Any, b: Any, alpha: Any = 1, **_: Any) -> Any:
    """a +- alpha * b: the maximum; minus infinity where a masking operand is minus infinity."""
    if not isinstance(b, (Dependence, Concrete)) and b != -torch.inf:
        return unary(call, a)
    subtract = call.node.target._schema.name != "aten::add"  # type: ignore[union-attr]
    first, second = (b, a) if "rsub" in call.node.target._schema.name else (a, b)  # type: ignore[union-attr]
    low = [call.neginfs(first), None if subtract or alpha != 1 else call.neginfs(second)]
    return masked(call, maximum(call.shape, index_of(a), index_of(b)), _either(low), NEGINF, signed(a, b))


@rule("mul", "multiply")
def product(call: Call, a: Any, b: Any) -> Any:
    """a * b: the maximum; zero, and so independent of the other factor, where either factor is exactly zero."""
    if not isinstance(b, (Dependence, Concrete)) and b > 0:
        return unary(call, a)
    zeros = _either([call.zeros(a), call.zeros(b)])
    index = maximum(call.shape, index_of(a), index_of(b))
    return masked(call, index, zeros, ZERO, zeros is not None or signed(a, b))


@rule("div", "divide")
def quotient(call: Call, a: Any, b: Any, **_: Any) -> Any:
    """a / b: the maximum; zero where a is zero. A zero in b has a sign that matters."""
    if not isinstance(b, (Dependence, Concrete)):
        return unary(call, a)
    if signed(b):
        return depends_on_all(call, call.analysis.top)
    zeros = call.zeros(a) if isinstance(a, Dependence) else None
    return masked(call, maximum(call.shape, index_of(a), index_of(b)), zeros, ZERO, zeros is not None or signed(a))


def masked(call: Call, index: Tensor, where: Tensor | None, code: int, sign: bool) -> Dependence:
    """A dependence whose elements at `where` are known to be `code`."""
    if where is None:
        return Dependence(index, signed=sign)
    known = (where.to(torch.int8) * code).expand(call.shape)
    index = pointwise(lambda i, w: torch.where(w, -1.0, i), index, where.expand(call.shape), shape=call.shape)
    return Dependence(index, known, sign)


def _either(patterns: list[Tensor | None]) -> Tensor | None:
    found = [pattern for pattern in patterns if pattern is not None]
    return None if not found else found[0] if len(found) == 1 else found[0] | found[1]


def known_of(call: Call, fact: Any) -> Tensor:
    """What is known of an operand that takes part in a selection, as codes."""
    if isinstance(fact, Dependence):
        return torch.zeros((), dtype=torch.int8).expand(fact.index.shape) if fact.known is None else fact.known
    zeros, low = call.zeros(fact), call.neginfs(fact)
    codes = torch.zeros(shape_of(fact) if isinstance(fact, Concrete) else (), dtype=torch.int8)
    codes = codes if zeros is None else codes.masked_fill(zeros, ZERO)
    return codes if low is None else codes.masked_fill(low, NEGINF)


@rule("where")
def where(call: Call, condition: Any, a: Any = None, b: Any = None) -> Any:
    """where(c, a, b): the selected operand where c is concrete, the maximum of all three otherwise."""
    if a is None:
        return None
    if isinstance(condition, Dependence):
        return Dependence(maximum(call.shape, *map(index_of, (condition, a, b))), signed=signed(a, b))
    return _select(call, call.mask(condition).bool(), a, b)


@rule("masked_fill")
def masked_fill(call: Call, x: Any, mask: Any, value: Any) -> Any:
    return where(call, mask, value, x)


def _select(call: Call, condition: Tensor, a: Any, b: Any) -> Dependence:
    parts = [condition.expand(call.shape), index_of(a).expand(call.shape), index_of(b).expand(call.shape)]
    codes = [known_of(call, a).expand(call.shape), known_of(call, b).expand(call.shape)]
    index = pointwise(torch.where, *parts, shape=call.shape)
    known = pointwise(torch.where, parts[0], *codes, shape=call.shape)
    return Dependence(index, known if bool(known.any()) else None, signed(a, b))


@rule("zeros_like", "new_zeros", "zero")
def zeros_like(call: Call, *_: Any, **__: Any) -> Concrete:
    """Made from a value's shape alone."""
    return Concrete(torch.zeros(call.shape, dtype=call.type.dtype))


@rule("ones_like", "new_ones")
def ones_like(call: Call, *_: Any, **__: Any) -> Concrete:
    return Concrete(torch.ones(call.shape, dtype=call.type.dtype))


@rule("full_like", "new_full", "fill")
def full_like(call: Call, *args: Any, **_: Any) -> Any:
    value = args[-1]
    if isinstance(value, (Dependence, Concrete)):
        return Dependence(index_of(value).expand(call.shape))
    return Concrete(torch.full(call.shape, value, dtype=call.type.dtype))


@rule("empty_like", "new_empty")
def empty_like(call: Call, *_: Any, **__: Any) -> Dependence:
    return Dependence(none(call.shape))


# ---------------------------------------------------------------- moves


def plane(call: Call, fact: Any, of: str) -> Any:
    """One plane of an operand, index or known codes, as a float tensor that any kernel takes."""
    if isinstance(fact, Dependence):
        if of == "index":
            return fact.index
        return torch.zeros(()).expand(fact.index.shape) if fact.known is None else fact.known.float()
    if isinstance(fact, Concrete):
        return none(fact.value.shape) if of == "index" else known_of_masks(call, fact)
    if type(fact) in (list, tuple):
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


@rule(
    *"""
    chunk diagonal diagonal_copy expand expand_as expand_copy flatten flip movedim moveaxis narrow narrow_copy numpy_T
    permute permute_copy ravel roll rot90 select select_copy slice slice_copy split split_copy split_with_sizes
    split_with_sizes_copy squeeze squeeze_copy swapaxes swapdims t t_copy tensor_split tile transpose transpose_copy
    unbind unbind_copy unflatten unfold unfold_copy unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze
    unsqueeze_copy hstack vstack dstack atleast_1d atleast_2d atleast_3d repeat column_stack meshgrid
""".split(),
    moves=True,
)
def moves(call: Call, *args: Any, **kwargs: Any) -> Any:
    return move(call, call.node.target, *args, **kwargs)


@rule(
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    moves=True,
)
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


@rule(
    "alias",
    "clone",
    "contiguous",
    "detach",
    "detach_copy",
    "alias_copy",
    "lift",
    "lift_fresh",
    "lift_fresh_copy",
    "positive",
    "dropout",
    "feature_dropout",
    "resolve_conj",
    "resolve_neg",
    moves=True,
)
def same(call: Call, x: Any, *_: Any, **__: Any) -> Any:
    """The same elements (dropout outside training: in training it is refused before)."""
    return Dependence(x.index, x.known, x.signed)


@rule("native_dropout")
def native_dropout(call: Call, x: Any, *_: Any) -> Any:
    return x, Dependence(none(call.shape))


@rule("_to_copy", "to", "type_as", "float", "half", "double", "bfloat16", moves=True)
def converted(call: Call, x: Any, *_: Any, **__: Any) -> Any:
    """Another dtype: zeros and infinities stay what they are among floats."""
    return Dependence(x.index, x.known if call.type.dtype.is_floating_point else None, x.signed)


@rule(
    "view",
    "_unsafe_view",
    "reshape",
    "_reshape_copy",
    "_reshape_alias",
    "view_copy",
    "view_as",
    "reshape_as",
    moves=True,
)
def view(call: Call, x: Any, *args: Any, **_: Any) -> Any:
    """A view in another shape; as another dtype, bits become visible that are otherwise alike (the sign of a zero)."""
    if args and isinstance(args[0], torch.dtype):
        same_size = tuple(x.index.shape) == tuple(call.shape) and not x.signed
        return Dependence(x.index) if same_size else None
    return move(call, lambda tensor: tensor.reshape(call.shape), x)


@rule("copy")
def copy(call: Call, x: Any, source: Any, *_: Any) -> Any:
    return move(call, lambda tensor: tensor.expand(call.shape), source) if isinstance(source, Dependence) else None


@rule("constant_pad_nd", "pad", moves=True)
def pad(call: Call, x: Any, amounts: Any, *rest: Any) -> Any:
    """Padding with a constant depends on nothing."""
    mode, value = (
        (rest[0], rest[1] if len(rest) > 1 else 0) if rest and isinstance(rest[0], str) else ("constant", *rest, 0)[:2]
    )
    if mode != "constant":
        return None
    value = value or 0
    alike = len(amounts) < 2 * x.index.dim() and x.index.stride(0) == 0
    index = torch.constant_pad_nd(x.index[:1] if alike else x.index, amounts, -1.0).expand(call.shape)
    code = ZERO if value == 0 else NEGINF if value == -torch.inf else UNKNOWN
    known = torch.zeros((), dtype=torch.int8).expand(x.index.shape) if x.known is None else x.known
    known = torch.constant_pad_nd(known, amounts, code)
    return Dependence(index, known if bool(known.any()) else None, x.signed)


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


def laid_out(tensor: Tensor, node: Any) -> Tensor | None:
    """The same elements in the strides of the real tensor, which a strided read goes by."""
    kind = node.meta["type"]
    if any(size > 1 and stride == 0 for size, stride in zip(kind.shape, kind.stride, strict=True)):
        return None
    return torch.empty_strided(kind.shape, kind.stride, dtype=tensor.dtype).copy_(tensor)


def read(call: Call, base: Any, size: Any, stride: Any, offset: int | None = 0) -> Any:
    """base[region], as `as_strided` reads it from the real tensor's layout."""
    planes = [base.index, base.known]
    dense = [None if p is None else laid_out(p, call.node.args[0]) for p in planes]
    if dense[0] is None:
        return None
    index, known = (None if p is None else p.as_strided(size, stride, offset or 0) for p in dense)
    return Dependence(index, known, base.signed) if index is not None else None


def write(call: Call, base: Any, value: Any, size: Any, stride: Any, offset: int) -> Any:
    """A copy of base with value in the region."""
    index = laid_out(index_of(base), call.node.args[0])
    if index is None:
        return None
    index.as_strided(size, stride, offset).copy_(index_of(value))
    return Dependence(index, signed=signed(base, value))


RULES[prims.read] = read
RULES[prims.write] = write
MOVES.update((prims.read, prims.write))
RULES[torch.ops.aten.as_strided.default] = read
MOVES.add(torch.ops.aten.as_strided.default)


@rule("select_scatter", "slice_scatter", "diagonal_scatter", moves=True)
def scatter_region(call: Call, base: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    return move(call, lambda a, b: call.node.target(a.contiguous(), b, *args, **kwargs), base, value)  # type: ignore[operator]
