"""What the batching rules share: values in one of three forms, bound calls, and the registry of rules.

A value of the single step, of shape `S`, is held in the batched graph in one of three forms:

- FIXED: shape `S`, the same for every element of the batch;
- LEAD:  shape `(count, *S)`, element n is `value[n]`;
- FOLD:  shape `(count * S[0], *S[1:])`, element n is `value[n * S[0] : (n + 1) * S[0]]` (rank 1 and above).

FOLD is what lets a recurrent cell on (batch, features) values run on `count` times the rows with the very same calls.
Since `count` is outermost in both, LEAD and FOLD differ by one reshape that moves no data.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from fxsolve.ir import TensorType

aten = torch.ops.aten


class Form(Enum):
    FIXED = "fixed"
    LEAD = "lead"
    FOLD = "fold"


FIXED, LEAD, FOLD = Form.FIXED, Form.LEAD, Form.FOLD


@dataclass(frozen=True)
class Value:
    """A tensor of the single step, of type `type` there, and the node that holds it in the batched graph."""

    node: fx.Node
    type: TensorType
    form: Form

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.type.dtype

    @property
    def fixed(self) -> bool:
        return self.form is FIXED


@dataclass(frozen=True)
class Index:
    """A Python int of the single step; `node` holds its `count` values in one int64 tensor."""

    node: fx.Node


@dataclass(frozen=True)
class Parameter:
    """One parameter of an op: enough to bind a call and to write it again."""

    name: str
    keyword_only: bool
    default: Any
    is_tensor: bool


@functools.cache
def parameters(target: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The parameters of an ATen overload (from its schema) or of a function of `prims` (from its signature)."""
    if isinstance(target, torch._ops.OpOverload):
        return tuple(
            Parameter(a.name, a.kwarg_only, a.default_value, "Tensor" in str(a.type)) for a in target._schema.arguments
        )
    signature = inspect.signature(target).parameters.values()
    return tuple(
        Parameter(p.name, False, None if p.default is p.empty else p.default, "Tensor" in str(p.annotation))
        for p in signature
    )


@dataclass(frozen=True)
class Call:
    """A call of the single step: `target(**args)`, its arguments bound by name, and the recorded type of its result."""

    target: Callable[..., Any]
    args: Mapping[str, Any]
    type: Any

    @staticmethod
    def bind(target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], type: Any) -> Call:
        names = [p.name for p in parameters(target)]
        return Call(target, {**dict(zip(names, args, strict=False)), **kwargs}, type)

    def __getitem__(self, name: str) -> Any:
        if name in self.args:
            return self.args[name]
        return next(p.default for p in parameters(self.target) if p.name == name)

    @property
    def values(self) -> dict[str, Value]:
        """The tensor arguments that are not inside a list, by name."""
        return {name: a for name, a in self.args.items() if isinstance(a, Value)}

    @property
    def main(self) -> str:
        """The name of the first tensor argument."""
        return next(p.name for p in parameters(self.target) if p.is_tensor)


Rule = Callable[[Any, Call], Any]  # of the Batcher, which imports this module, and the call
RULES: dict[Any, Rule] = {}
INDEX_RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of `targets`.

    It takes the builder and the call (at least one argument is batched) and gives the batched result: a `Value`, or a
    tuple of them for a call with several results, or None where it does not apply, so that the default is used.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


def index_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """As `rule`, for the calls in which some Python int differs from element to element."""

    def register(function: Rule) -> Rule:
        INDEX_RULES.update(dict.fromkeys(targets, function))
        return function

    return register


def rule_of(target: Any, indexed: bool = False) -> Rule | None:
    """The rule of a target: its own, or for an op that is tagged pointwise, that of the tag."""
    rules = INDEX_RULES if indexed else RULES
    own = rules.get(target)
    return own or next((rules[tag] for tag in getattr(target, "tags", ()) if tag in rules), None)


def plain(argument: Any) -> Any:
    """An argument as the graph holds it: values become their nodes."""
    return map_aggregate(argument, lambda a: a.node if isinstance(a, Value | Index) else a)
