"""Which slots a value depends on: the abstract values of the causality proof, and the interpreter over them.

The abstract value of a tensor is a `Dependence`: for each element the LARGEST slot (number of the step that writes
it) on which the element depends, -1 for none. Values that depend on no slot are `Concrete`: the real tensors, because
the zeros of weights and masks are what makes a network causal. A rule maps the abstract values of an op's arguments
to those of its results; rules live in `RULES`, keyed by ATen overload, and are written in `dependence_*.py`.

Soundness. Every rule may give too large an index, never one too small; an op without a rule depends, in each element,
on the largest index of all its arguments. Products with an exact zero count as independent of the other factor: this
holds for finite values (0 * inf is NaN), which the solver has to look after, and up to the sign of a zero. A value that
is masked altogether is 0 or -0; that is followed (`signed`) until an op can no longer tell the two apart, or does
(1 / -0), and then depends on everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxsolve.ir import Slots, TensorType

# What `Dependence.known` says of an element: nothing, exactly zero (of either sign), exactly minus infinity.
UNKNOWN, ZERO, NEGINF = 0, 1, 2

# Indices are kept as float32, in which integers are exact up to this limit: more ATen kernels take floats than ints.
MAX_SLOTS = 2**24

# A smaller share of zeros in a weight than this is chance.
_BY_CHANCE = 1e-3

_NONE = torch.tensor(-1.0, device="cpu")


@dataclass(frozen=True, eq=False, slots=True)
class Concrete:
    """A value that depends on no slot: the tensor itself, and the names of the invariants it was computed from.

    `zeros` are those invariants on which the places of its zeros rely: for `weight * mask`, the mask alone. They rely on the
    places of the invariants' own zeros, but for the invariants in `exact`, on whose very values they rely.
    """

    value: Tensor
    names: frozenset[str] = frozenset()
    zeros: frozenset[str] = frozenset()
    exact: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False, slots=True)
class Dependence:
    """Per element the largest slot it depends on (`index`) and, if kept, whether its value is known (`known`).

    A known element depends on nothing: its index is -1. `signed`: the sign of a zero may depend on more than `index`.
    """

    index: Tensor
    known: Tensor | None = None
    signed: bool = False


class Refusal(Exception):
    """The graph contains an op that no proof can allow: it draws random numbers, or mutates."""


@dataclass
class Analysis:
    """What one interpretation gathers: the invariants it relied on, and the ops it has no rule for.

    Of the invariants in `used` it relied on the places of their zeros; of those in `exact` on their very values.
    """

    top: float
    used: set[str] = field(default_factory=set)
    exact: set[str] = field(default_factory=set)
    unknown: dict[fx.Node, None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One call under a rule: its node, the abstract values of its arguments, and where to note what was relied on."""

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    analysis: Analysis

    @property
    def type(self) -> Any:
        return self.node.meta.get("type")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) result."""
        first = self.type[0] if isinstance(self.type, tuple) else self.type
        return first.shape

    def operand(self, position: int = 0) -> Any:
        """The node that an argument is."""
        return self.node.args[position]

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the op's schema, or `default` where the overload has none such."""
        if name in self.kwargs:
            return self.kwargs[name]
        for position, declared in enumerate(self.node.target._schema.arguments):  # type: ignore[union-attr]
            if declared.name == name:
                return self.args[position] if position < len(self.args) else declared.default_value
        return default

    def rely(self, names: Iterable[str], exact: Iterable[str]) -> None:
        self.analysis.used.update(names)
        self.analysis.exact.update(exact)

    def zeros(self, fact: Any) -> Tensor | None:
        """Where an operand is exactly zero; None where it nowhere is (then nothing was relied on)."""
        if isinstance(fact, Dependence):
            return None if fact.known is None else _unless_empty(fact.known == ZERO)
        if not isinstance(fact, Concrete):
            return torch.tensor(True) if fact == 0 else None
        found = _unless_empty(fact.value == 0)
        if found is not None:
            self.rely(fact.zeros, fact.exact)
        return found

    def masked(self, fact: Any) -> Tensor | None:
        """`zeros` of a weight; a few zeros among thousands are chance, and not to rely on them spares proving anew."""
        if isinstance(fact, Concrete) and int((fact.value == 0).sum()) < _BY_CHANCE * fact.value.numel():
            return None
        return self.zeros(fact)

    def neginfs(self, fact: Any) -> Tensor | None:
        """Where an operand is exactly minus infinity; None where it nowhere is."""
        if isinstance(fact, Dependence):
            return None if fact.known is None else _unless_empty(fact.known == NEGINF)
        if not isinstance(fact, Concrete):
            return torch.tensor(True) if fact == -torch.inf else None
        found = _unless_empty(fact.value == -torch.inf) if fact.value.is_floating_point() else None
        if found is not None:
            self.rely(fact.names, fact.names)
        return found

    def mask(self, fact: Concrete) -> Tensor:
        """A concrete tensor whose very values a rule goes by (boolean masks, integer indices)."""
        self.rely(fact.names, fact.names)
        return fact.value


Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}
# Ops whose every result element is an element of an argument (or a constant): views, copies, pads, permutations.
MOVES: set[Any] = set()


def rule(*names: str, moves: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for all overloads of the named ATen ops (names that this torch does not have are passed over).

    The rule takes the `Call` and the op's arguments; it returns the result's abstract value (a tuple for several), or
    None where it does not apply, and then every element depends on all arguments.
    """

    def register(function: Rule) -> Rule:
        for target in (t for name in names for t in overloads(name)):
            RULES[target] = function
            if moves:
                MOVES.add(target)
        return function

    return register


def prim(function: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register a rule for one of fxsolve's own functions that read or write regions."""

    def register(made: Rule) -> Rule:
        RULES[function] = made
        MOVES.add(function)
        return made

    return register


def overloads(name: str) -> list[Any]:
    packet = getattr(torch.ops.aten, name, None)
    return [] if packet is None else [getattr(packet, each) for each in packet.overloads()]


# ---------------------------------------------------------------- tensors of indices


def none(shape: Sequence[int]) -> Tensor:
    """The index of a tensor that depends on nothing."""
    return _NONE.expand(tuple(shape))


def unknown_constant(kind: TensorType) -> Dependence:
    """A value that depends on no slot and is not known either: noise, per-step inputs."""
    return Dependence(none(kind.shape))


def index_of(fact: Any) -> Tensor:
    """The index of any operand; numbers and concrete tensors depend on nothing."""
    if isinstance(fact, Dependence):
        return fact.index
    return none(fact.value.shape if isinstance(fact, Concrete) else ())


def shape_of(fact: Any) -> tuple[int, ...]:
    return tuple(fact.value.shape if isinstance(fact, Concrete) else fact.index.shape)


def signed(*facts: Any) -> bool:
    return any(isinstance(fact, Dependence) and fact.signed for fact in facts)


def thin(tensor: Tensor) -> Tensor:
    """A tensor cut to one element along each dimension in which it is expanded: all that there is to compute."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def pointwise(function: Callable[..., Tensor], *tensors: Tensor, shape: Sequence[int]) -> Tensor:
    """`function` of broadcast tensors, computed once along every dimension in which all of them are expanded."""
    return function(*map(thin, tensors)).expand(tuple(shape))


def maximum(shape: Sequence[int], *tensors: Tensor) -> Tensor:
    out = thin(tensors[0])
    for tensor in tensors[1:]:
        out = torch.maximum(out, thin(tensor))
    return out.expand(tuple(shape))


def largest(tensor: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    """The maximum over `dims`, keeping the other dimensions expanded; -1 over nothing."""
    dims = sorted(d % tensor.dim() for d in dims)
    full = [1 if d in dims else size for d, size in enumerate(tensor.shape)]
    reduced = none(full) if tensor.numel() == 0 else thin(tensor).amax(dims, keepdim=True).expand(full) if dims else tensor
    return reduced if keepdim else reduced.reshape([size for d, size in enumerate(full) if d not in dims])


def compress(tensor: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """The same tensor, expanded along each dimension (of `dims`) in which all its slices are equal."""
    for dim in range(tensor.dim()) if dims is None else dims:
        if tensor.shape[dim] > 1 and tensor.stride(dim) != 0:
            first = tensor.narrow(dim, 0, 1)
            if bool((thin(tensor) == thin(first)).all()):
                tensor = first.expand(tensor.shape)
    return tensor


def _unless_empty(pattern: Tensor) -> Tensor | None:
    return pattern if bool(thin(pattern).any()) else None


def slot_indices(slots: Slots, kind: TensorType) -> Tensor:
    """The abstract buffer: element -> the step that writes it (the last one, should there be several), else -1."""
    span = sum((size - 1) * stride for size, stride in zip(kind.shape, kind.stride, strict=True)) + 1
    region = torch.zeros(slots.shape, dtype=torch.int64)
    for dim, (size, stride) in enumerate(zip(slots.shape, slots.stride, strict=True)):
        steps = torch.arange(size) * stride
        region = region + steps.reshape([-1 if d == dim else 1 for d in range(len(slots.shape))])
    flat = torch.full((span,), -1.0)
    places = (torch.tensor(slots.offsets, dtype=torch.int64)[:, None] + region.reshape(1, -1)).reshape(-1)
    steps = torch.arange(len(slots.offsets), dtype=torch.float32).repeat_interleave(region.numel())
    flat.scatter_reduce_(0, places, steps, "amax")
    return compress(flat.as_strided(kind.shape, kind.stride))


# ---------------------------------------------------------------- facts in nested arguments


def leaves(fact: Any) -> Iterable[Any]:
    """The abstract and static values in nested arguments."""
    if isinstance(fact, dict):
        fact = tuple(fact.values())
    if isinstance(fact, (tuple, list)):
        for each in fact:
            yield from leaves(each)
    else:
        yield fact


def real(facts: Any) -> Any:
    """Nested arguments with the real tensors in place, on the CPU."""
    if isinstance(facts, Concrete):
        return facts.value
    if isinstance(facts, torch.device):
        return torch.device("cpu")
    if isinstance(facts, dict):
        return {key: real(fact) for key, fact in facts.items()}
    if isinstance(facts, (tuple, list)):
        return [real(fact) for fact in facts]
    return facts


def depends_on_all(call: Call, index: float | None = None) -> Any:
    """Every element of every result depends on the largest index of all arguments (or on `index`)."""
    facts = list(leaves((call.args, call.kwargs)))
    top = largest_index(facts) if index is None else index
    made = [
        Dependence(torch.tensor(top).expand(kind.shape), signed=signed(*facts)) if isinstance(kind, TensorType) else None
        for kind in (call.type if isinstance(call.type, tuple) else (call.type,))
    ]
    return tuple(made) if isinstance(call.type, tuple) else made[0]


def largest_index(fact: Any) -> float:
    """The largest index anywhere in an abstract value or in nested arguments; -1 for none."""
    parts = [thin(each.index) for each in leaves(fact) if isinstance(each, Dependence)]
    return max((float(part.amax()) for part in parts if part.numel()), default=-1.0)


def concrete(value: Tensor, name: str) -> Concrete:
    """An invariant of a graph with its real value."""
    return Concrete(value.detach().cpu(), frozenset((name,)), frozenset((name,)))
