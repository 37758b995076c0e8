"""Dependence rules of elementwise ops, selections and fresh tensors; see `dependence.py` for what a rule is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxsolve.ir import TensorType
from fxsolve.passes.dependence import (
    NEGINF,
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
    overloads,
    pointwise,
    real,
    rule,
    shape_of,
    signed,
)

# ---------------------------------------------------------------- elementwise


_ELEMENTWISE = """
    abs acos acosh addcdiv addcmul angle asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not
    bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp clamp_max clamp_min copysign cos cosh deg2rad digamma
    elu eq erf erfc erfinv exp exp2 expm1 float_power floor floor_divide fmax fmin fmod frac ge gelu gt hardshrink
    hardsigmoid hardswish hardtanh heaviside hypot i0 isfinite isinf isnan isneginf isposinf ldexp le leaky_relu lerp
    lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit
    lt maximum minimum mish nan_to_num ne neg nextafter pow rad2deg reciprocal relu relu6 remainder round rsqrt selu
    sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink sqrt square tan tanh threshold trunc xlogy
    special_entr special_erfcx special_i0e special_i1 special_i1e special_log_ndtr special_ndtri special_xlog1py
    special_zeta _prelu_kernel
"""
# Ops of two operands that tell the two zeros apart.
_SIGN_SENSITIVE = frozenset(
    target
    for name in ("addcdiv", "atan2", "copysign", "float_power", "floor_divide", "ldexp", "nextafter", "pow", "xlogy")
    for target in overloads(name)
)


@rule(*_ELEMENTWISE.split())
def elementwise(call: Call, *args: Any, **kwargs: Any) -> Any:
    """y = f(a, b, ..): the maximum over the operands, with broadcasting."""
    tensors = [fact for fact in leaves((args, kwargs)) if isinstance(fact, (Dependence, Concrete))]
    if len(tensors) == 1:
        return unary(call, tensors[0])
    if signed(*tensors) and call.node.target in _SIGN_SENSITIVE:
        return depends_on_all(call, call.analysis.top)
    return Dependence(maximum(call.shape, *map(index_of, tensors)), signed=signed(*tensors))


@rule("log_sigmoid_forward")
def log_sigmoid(call: Call, x: Any) -> Any:
    """With a buffer for the backward pass, of the same size or empty."""
    kept = call.type[1].shape
    return Dependence(x.index), Dependence(x.index if tuple(kept) == tuple(x.index.shape) else none(kept))


@rule("glu")
def glu(call: Call, x: Any, dim: int = -1) -> Any:
    """One half times the sigmoid of the other."""
    return Dependence(torch.maximum(*x.index.chunk(2, dim)), signed=x.signed)


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
    kinds = [node.meta.get("type") for node in call.node.all_input_nodes]
    dtype = next(kind.dtype for kind in kinds if isinstance(kind, TensorType))
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
