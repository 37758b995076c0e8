"""The interpreter of the dependence analysis: abstract values from node to node, see `dependence.py`.

A call whose arguments are all concrete is carried out for real; any other goes by its rule, and without a rule every
element of its results depends on all arguments. Ops that draw random numbers or mutate refuse the whole analysis.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxsolve.ir import TensorType
from fxsolve.passes.dependence import (
    MOVES,
    RULES,
    Analysis,
    Call,
    Concrete,
    Dependence,
    Refusal,
    depends_on_all,
    leaves,
    overloads,
    real,
    shape_of,
    unknown_constant,
)
from fxsolve.passes.noise import named_arguments, takes_random


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
        return args[0][args[1]]  # type: ignore[index]
    _refuse_side_effects(node, args, kwargs)
    if not any(isinstance(fact, Dependence) for fact in leaves((args, kwargs))):
        return _fold(node, args, kwargs)
    call = Call(node, tuple(args), dict(kwargs), analysis)
    found = _by_rule(call)
    if found is None or not _fits(found, call.type):
        analysis.unknown[node] = None
        return depends_on_all(call)
    return found


def _by_rule(call: Call) -> Any:
    if call.node.target not in RULES:
        return None
    try:
        return RULES[call.node.target](call, *call.args, **call.kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
        # A rule that fails on arguments that it was not written for is no rule for them.
        return None


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
    if takes_random(target, args, kwargs):
        raise Refusal(f"{describe(node)} draws random numbers")
    if target._schema.is_mutable:
        raise Refusal(f"{describe(node)} mutates its arguments")
    if "batch_norm" in target._schema.name and _updates_statistics(target, args, kwargs):
        raise Refusal(f"{describe(node)} updates running statistics (batch norm in training)")


def _updates_statistics(target: Any, args: Any, kwargs: Any) -> bool:
    """`native_batch_norm` in training writes into its running statistics though its schema does not say so."""
    named = named_arguments(target, args, kwargs)
    return bool(named.get("training")) and named.get("running_mean") is not None


def describe(node: fx.Node) -> str:
    """An op and the user's line it comes from."""
    source = node.meta.get("source") or ""
    name = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", node.name)
    return f"{name} ({source})" if source else name


# ---------------------------------------------------------------- concrete values

_PRODUCTS = frozenset(overloads("mul"))
_SCALINGS = frozenset(t for op in ("div", "neg", "_weight_norm_interface", "_to_copy") for t in overloads(op))


def _fold(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """The real result of an op on concrete arguments, with the invariants that its value and its zeros rely on."""
    operands = [fact for fact in leaves((args, kwargs)) if isinstance(fact, Concrete)]
    names = frozenset[str]().union(*(fact.names for fact in operands))
    if "device" in kwargs:  # the analysis is on the CPU, whatever the program runs on
        kwargs = {**kwargs, "device": "cpu"}
    try:
        with torch.no_grad():
            value = node.target(*real(args), **real(kwargs))  # type: ignore[operator]
    except (RuntimeError, NotImplementedError):  # no CPU kernel: a value that depends on no slot, but is not known
        return depends_on_all(Call(node, (), {}, Analysis(-1.0)))
    if isinstance(value, Tensor):
        return Concrete(value, names, *_zeros_of(node.target, value, operands, names))
    if isinstance(value, (tuple, list)):
        return tuple(
            Concrete(each, names, *_zeros_of(node.target, each, operands, names)) if isinstance(each, Tensor) else each
            for each in value
        )
    return value


def _zeros_of(
    target: Any, value: Tensor, operands: list[Concrete], names: frozenset[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """On which invariants the zeros of a folded result rely, and on which of them by value: on all, unless the op is
    known to keep zeros.
    """
    if target in _PRODUCTS:
        sources = [fact for fact in operands if bool((fact.value == 0).any())]
        kept = functools.reduce(torch.logical_or, [f.value == 0 for f in sources], torch.tensor(False))
    elif target in _SCALINGS:
        sources = operands[:1]
        kept = sources[0].value == 0
    elif target in MOVES and all(fact.value.is_floating_point() for fact in operands):
        sources, kept = operands, None
    else:
        return names, names
    # A product underflows to zeros of its own: those rely on all factors.
    if kept is not None and (kept.dim() > value.dim() or bool(((value == 0) & ~kept).any())):
        return names, names
    return frozenset[str]().union(*(f.zeros for f in sources)), frozenset[str]().union(*(f.exact for f in sources))
