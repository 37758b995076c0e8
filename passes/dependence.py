"""Which slots a value depends on: the abstract values of the causality proof, and the interpreter over them.

The abstract value of a tensor is a `Dependence`: for each element the LARGEST slot (number of the step that writes
it) on which the element depends, -1 for none. Values that depend on no slot are `Concrete`: the real tensors, because
the zeros of weights and masks are what makes a network causal. A rule maps the abstract values of an op's arguments
to those of its results; rules live in `RULES`, keyed by ATen overload, and are written in `dependence_*.py`.

Soundness. Every rule may give too large an index, never one too small; an op without a rule depends, in each element,
on the largest index of all its arguments. Products with an exact zero count as independent of the other factor: this
holds for finite values (0 * inf is NaN), which the solver has to look after, and up to the sign of a zero, which is
followed (`signed`) until an op can no longer tell the two zeros apart, or does (1 / -0) and then depends on everything.
"""

from __future__ import annotations

import operator
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

_NONE = torch.tensor(-1.0)


@dataclass(frozen=True, eq=False, slots=True)
class Concrete:
    """A value that depends on no slot: the tensor itself, and the names of the invariants it was computed from.

    `zeros` are those invariants on whose values the places of its zeros rely: for `weight * mask`, the mask alone.
    """

    value: Tensor
    names: frozenset[str] = frozenset()
    zeros: frozenset[str] = frozenset()


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
    """What one interpretation gathers: the invariants whose values it relied on, and the ops it has no rule for."""

    top: float
    used: set[str] = field(default_factory=set)
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

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the op's schema, or `default` where the overload has none such."""
        if name in self.kwargs:
            return self.kwargs[name]
        for position, declared in enumerate(self.node.target._schema.arguments):  # type: ignore[union-attr]
            if declared.name == name:
                return self.args[position] if position < len(self.args) else declared.default_value
        return default

    def rely(self, names: Iterable[str]) -> None:
        self.analysis.used.update(names)

    def zeros(self, fact: Any) -> Tensor | None:
        """Where an operand is exactly zero; None where it nowhere is (then nothing was relied on)."""
        if isinstance(fact, Dependence):
            return None if fact.known is None else _unless_empty(fact.known == ZERO)
        if not isinstance(fact, Concrete):
            return torch.tensor(True) if fact == 0 else None
        found = _unless_empty(fact.value == 0)
        if found is not None:
            self.rely(fact.zeros)
        return found

    def neginfs(self, fact: Any) -> Tensor | None:
        """Where an operand is exactly minus infinity; None where it nowhere is."""
        if isinstance(fact, Dependence):
            return None if fact.known is None else _unless_empty(fact.known == NEGINF)
        if not isinstance(fact, Concrete):
            return torch.tensor(True) if fact == -torch.inf else None
        found = _unless_empty(fact.value == -torch.inf) if fact.value.is_floating_point() else None
        if found is not None:
            self.rely(fact.names)
        return found

    def mask(self, fact: Concrete) -> Tensor:
        """A concrete tensor whose very values a rule goes by (boolean masks, integer indices)."""
        self.rely(fact.names)
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
    reduced = (
        none(full) if tensor.numel() == 0 else thin(tensor).amax(dims, keepdim=True).expand(full) if dims else tensor
    )
    return reduced if keepdim else reduced.reshape([size for d, size in enumerate(full) if d not in dims])


def compress(tensor: Tensor) -> Tensor:
    """The same tensor, expanded along each dimension in which all its slices are equal."""
    for dim in range(tensor.dim()):
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


# ---------------------------------------------------------------- the interpreter


def interpret(graph: fx.Graph, seeds: dict[str, Any], analysis: Analysis) -> dict[fx.Node, Any]:
    """The abstract value of every node, from those of the placeholders (by name)."""
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = seeds[node.name]
        elif node.op == "get_attr":
            env[node] = unknown_constant(node.meta["type"])
        elif node.op == "call_function":
            env[node] = evaluate(node, env, analysis)
    return env


def evaluate(node: fx.Node, env: dict[fx.Node, Any], analysis: Analysis) -> Any:
    """The abstract value of one call: folded where all arguments are concrete, by its rule otherwise."""
    args = fx.map_arg(node.args, env.__getitem__)
    kwargs = fx.map_arg(node.kwargs, env.__getitem__)
    if node.target is operator.getitem:
        return args[0][args[1]]
    _refuse_side_effects(node, args, kwargs)
    if not any(isinstance(fact, Dependence) for fact in leaves((args, kwargs))):
        return _fold(node, args, kwargs)
    call = Call(node, tuple(args), dict(kwargs), analysis)
    found = RULES[node.target](call, *args, **kwargs) if node.target in RULES else None
    if found is None or not _fits(found, call.type):
        analysis.unknown[node] = None
        return depends_on_all(call)
    return found


def leaves(fact: Any) -> Iterable[Any]:
    """The abstract and static values in nested arguments."""
    if isinstance(fact, dict):
        fact = tuple(fact.values())
    if isinstance(fact, (tuple, list)):
        for each in fact:
            yield from leaves(each)
    else:
        yield fact


def depends_on_all(call: Call, index: float | None = None) -> Any:
    """Every element of every result depends on the largest index of all arguments (or on `index`)."""
    if index is None:
        parts = [fact.index for fact in leaves((call.args, call.kwargs)) if isinstance(fact, Dependence)]
        index = max((float(thin(part).max()) for part in parts if part.numel()), default=-1.0)
    made = [
        Dependence(torch.tensor(index).expand(kind.shape), signed=True) if isinstance(kind, TensorType) else None
        for kind in (call.type if isinstance(call.type, tuple) else (call.type,))
    ]
    return tuple(made) if isinstance(call.type, tuple) else made[0]


def _fits(found: Any, kind: Any) -> bool:
    """Whether a rule gave results of the shapes that the graph says (a mistake there must not become a proof)."""
    if isinstance(kind, TensorType):
        return isinstance(found, (Dependence, Concrete)) and shape_of(found) == tuple(kind.shape)
    if isinstance(kind, tuple):
        return isinstance(found, (tuple, list)) and all(map(_fits, found, kind))
    return True


def _refuse_side_effects(node: fx.Node, args: Any, kwargs: Any) -> None:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        if getattr(target, "__name__", "") == "draw":
            raise Refusal(f"{describe(node)} draws random numbers")
        return
    if target._schema.is_mutable:
        raise Refusal(f"{describe(node)} mutates its arguments")
    if torch.Tag.nondeterministic_seeded in target.tags and not _without_dropout(target, args, kwargs):
        raise Refusal(f"{describe(node)} draws random numbers")
    if "batch_norm" in target._schema.name and _updates_statistics(target, args, kwargs):
        raise Refusal(f"{describe(node)} updates running statistics (batch norm in training)")


def _named(target: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = [declared.name for declared in target._schema.arguments]
    defaults = {d.name: d.default_value for d in target._schema.arguments if d.has_default_value()}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def _without_dropout(target: Any, args: Any, kwargs: Any) -> bool:
    """Attention and dropout carry the tag of random ops, and draw nothing with p = 0 or outside training."""
    named = _named(target, args, kwargs)
    return named.get("dropout_p", named.get("p")) == 0 or named.get("train") is False


def _updates_statistics(target: Any, args: Any, kwargs: Any) -> bool:
    """`native_batch_norm` in training writes into its running statistics though its schema does not say so."""
    named = _named(target, args, kwargs)
    return bool(named.get("training")) and named.get("running_mean") is not None


def describe(node: fx.Node) -> str:
    """An op and the user's line it comes from."""
    source = node.meta.get("source") or ""
    name = (
        str(node.target)
        if isinstance(node.target, torch._ops.OpOverload)
        else getattr(node.target, "__name__", node.name)
    )
    return f"{name} ({source})" if source else name


# ---------------------------------------------------------------- concrete values

_PRODUCTS = frozenset(overloads("mul"))
_SCALINGS = frozenset(overloads("div") + overloads("neg") + overloads("_weight_norm_interface"))


def concrete(value: Tensor, name: str) -> Concrete:
    """An invariant of a graph with its real value."""
    return Concrete(value.detach().cpu(), frozenset((name,)), frozenset((name,)))


def _fold(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """The real result of an op on concrete arguments, on the CPU, with the names that its value and its zeros rely on."""
    operands = [fact for fact in leaves((args, kwargs)) if isinstance(fact, Concrete)]
    names = frozenset[str]().union(*(fact.names for fact in operands))
    try:
        with torch.no_grad():
            value = node.target(*real(args), **real(kwargs))  # type: ignore[operator]
    except (RuntimeError, NotImplementedError):  # no CPU kernel: a value that depends on no slot, but is not known
        return depends_on_all(Call(node, (), {}, Analysis(-1.0)))
    if isinstance(value, Tensor):
        return Concrete(value, names, _zeros_of(node.target, value, operands, names))
    if isinstance(value, (tuple, list)):
        return tuple(
            Concrete(each, names, _zeros_of(node.target, each, operands, names)) if isinstance(each, Tensor) else each
            for each in value
        )
    return value


def real(facts: Any) -> Any:
    """Nested arguments with the real tensors in place, on the CPU."""
    if isinstance(facts, Concrete):
        return facts.value
    if isinstance(facts, torch.device):
        return torch.device("cpu")
    if isinstance(facts, dict):
        return {key: real(fact) for key, fact in facts.items()}
    if isinstance(facts, (tuple, list)):
        return type(facts)(real(fact) for fact in facts) if type(facts) in (tuple, list) else [real(f) for f in facts]
    return facts


def _zeros_of(target: Any, value: Tensor, operands: list[Concrete], names: frozenset[str]) -> frozenset[str]:
    """On which invariants the places of a folded result's zeros rely; all of them, unless the op is known to keep zeros."""
    if target in _PRODUCTS:
        sources = [fact for fact in operands if bool((fact.value == 0).any())]
        pattern = torch.zeros((), dtype=torch.bool)
        for fact in sources:
            pattern = pattern | (fact.value == 0)
    elif target in _SCALINGS or target in MOVES:
        sources = operands[:1] if target in _SCALINGS else operands
        pattern = None if target in MOVES else sources[0].value == 0
    else:
        return names
    # A product underflows to zeros of its own: those rely on all factors.
    if pattern is not None and bool(((value == 0) & ~pattern).any()):
        return names
    return frozenset[str]().union(*(fact.zeros for fact in sources))
