"""The builder of a batched graph: emits typed calls and moves values between forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from fxsolve.ir import TensorType, contiguous_stride
from fxsolve.passes.batching import FIXED, FOLD, LEAD, Call, Form, Value, aten, parameters, plain, rule_of


@dataclass
class Batcher:
    """Builds the batched graph: emits typed nodes and moves values between forms."""

    graph: fx.Graph
    count: int
    device: torch.device
    source: str = ""
    fakes: dict[fx.Node, Any] = field(default_factory=dict)
    moved: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = field(default_factory=dict)

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new call; its type is found by running it on meta tensors."""
        node = self._call(target, args, kwargs)
        self.fakes[node] = fake = self._run_meta(node)
        node.meta["type"] = self._type_of(fake)
        return node

    def emit_lead(
        self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], type: Any
    ) -> fx.Node:
        """A new call that gives results of the given type or types behind the lead, without running it."""
        node = self._call(target, args, kwargs)
        node.meta["type"] = self._lead_type(type)
        return node

    def _call(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        name = getattr(target, "__name__", "call").partition(".")[0]
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        node.meta["source"] = self.source
        return node

    def _lead_type(self, type: Any) -> Any:
        if isinstance(type, tuple):
            return tuple(self._lead_type(item) for item in type)
        if type is None:
            return None
        shape = self.shape_in(LEAD, type.shape)
        return TensorType(shape, contiguous_stride(shape), type.dtype, type.device)

    def emit_as(self, call: Call, target: Callable[..., Any] | None = None, /, **changed: Any) -> fx.Node:
        """The call again, with some arguments replaced."""
        target = target or call.target
        args = {**call.args, **changed}
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        bound = parameters(target)
        last = max((i for i, p in enumerate(bound) if p.name in args and not p.keyword_only), default=-1)
        for i, p in enumerate(bound):
            argument = args.get(p.name, p.default)
            if i <= last and not p.keyword_only:
                positional.append(plain(argument))
            elif p.name in args:
                keywords[p.name] = plain(argument)
        return self.emit(target, *positional, **keywords)

    def apply(self, target: Callable[..., Any], type: TensorType, *args: Any, **kwargs: Any) -> Any:
        """The batched result of one more call of the single step, by the registered rule of `target`."""
        found = rule_of(target)
        assert found is not None, f"{target} has no rule"
        return found(self, Call.bind(target, args, kwargs, type))

    def value(self, node: fx.Node, type: TensorType, form: Form) -> Value:
        """The node as a value, once its shape and dtype are checked to be what the form says."""
        node.meta["type"] = self._settled(node, node.meta.get("type"), type, form)
        self.fakes.pop(node, None)
        return Value(node, type, form)

    def values(self, node: fx.Node, types: Sequence[Any], forms: Form | Sequence[Form]) -> tuple[Any, ...]:
        """The results of a call that has several; those that nobody uses disappear with the dead code."""
        forms = [forms] * len(types) if isinstance(forms, Form) else forms
        got = node.meta.get("type") or [None] * len(types)
        node.meta["type"] = tuple(
            None if type is None else self._settled(node, *item) for type, item in zip(types, zip(got, types, forms))
        )
        self.fakes.pop(node, None)
        return tuple(
            None if type is None else self.value(self.emit(getitem, node, i), type, form)
            for i, (type, form) in enumerate(zip(types, forms, strict=True))
        )

    def _settled(self, node: fx.Node, got: TensorType | None, type: TensorType, form: Form) -> TensorType:
        """The type of a result: as inferred, if that has the right shape; of a fixed one, as it was recorded."""
        if form is FIXED:
            return type
        wanted = self.shape_in(form, type.shape)
        if got is None:
            return TensorType(wanted, contiguous_stride(wanted), type.dtype, type.device)
        if (got.shape, got.dtype) != (wanted, type.dtype):
            raise Misfit(f"{node.format_node()} gave {got}, not {type.dtype} {list(wanted)}")
        return TensorType(got.shape, got.stride, got.dtype, type.device)

    def finish(self, node: fx.Node, type: Any, form: Form) -> Any:
        """The result or results of `node`, all in the same form."""
        if isinstance(type, tuple):
            return self.values(node, type, form)
        return self.value(node, type, form)

    def shape_in(self, form: Form, shape: tuple[int, ...]) -> tuple[int, ...]:
        if form is FIXED:
            return shape
        return (self.count, *shape) if form is LEAD else (self.count * shape[0], *shape[1:])

    def lead(self, value: Value) -> fx.Node:
        """The value as `(count, *S)`; a fixed one is expanded, which copies nothing."""
        if value.fixed:
            return self._moved(aten.expand.default, value.node, self.shape_in(LEAD, value.shape))
        return self.reshaped(value, self.shape_in(LEAD, value.shape))

    def fold(self, value: Value) -> fx.Node:
        """The value as `(count * S[0], *S[1:])`; a fixed one is tiled."""
        if value.fixed:
            return self.tiled(value, FOLD)
        return self.reshaped(value, self.shape_in(FOLD, value.shape))

    def to(self, form: Form, value: Value) -> fx.Node:
        return self.fold(value) if form is FOLD else self.lead(value)

    def aligned(self, value: Value, rank: int) -> fx.Node:
        """The value so that it broadcasts against `(count, *S)` with S of the given rank: ones go after the lead."""
        if value.fixed:
            return value.node
        return self.reshaped(value, (self.count, *(1,) * (rank - value.rank), *value.shape))

    def tiled(self, value: Value, form: Form) -> fx.Node:
        """A fixed value, copied `count` times."""
        ones = [1] * (value.rank if form is LEAD else value.rank - 1)
        return self.emit(aten.repeat.default, value.node, [self.count, *ones])

    def reshape(self, value: Value, type: TensorType) -> Value:
        """`value.reshape(type.shape)` for each element, in whichever form takes no call, or else in the same form.

        Row-major order has `count` outermost, so (N*S0, ..) goes to (N*R0, ..) whatever the two inner shapes are.
        """
        present = self.shape_in(value.form, value.shape)
        forms = [value.form, LEAD if value.form is FOLD else FOLD] if type.shape else [LEAD]
        for form in forms:
            if self.shape_in(form, type.shape) == present:
                return Value(value.node, type, form)
        return self.value(self.reshaped(value, self.shape_in(forms[0], type.shape)), type, forms[0])

    def reshaped(self, value: Value, shape: tuple[int, ...]) -> fx.Node:
        """The batched value in another physical shape; the same reshape is made only once."""
        if shape == self.shape_in(value.form, value.shape):
            return value.node
        return self._moved(aten.reshape.default, value.node, shape)

    def _moved(self, target: Callable[..., Any], node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        if (node, shape) not in self.moved:
            self.moved[node, shape] = self.emit(target, node, list(shape))
        return self.moved[node, shape]

    def _run_meta(self, node: fx.Node) -> Any:
        """The result of a call on meta tensors, or None where an argument or the op itself has no meta form."""
        try:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._fake_of)
            with torch.no_grad():
                return node.target(*to_meta(args), **to_meta(kwargs))  # type: ignore[operator]
        except (NotImplementedError, _NoMeta):
            return None

    def _fake_of(self, node: fx.Node) -> Any:
        if node not in self.fakes:
            self.fakes[node] = _fake(node.meta.get("type"))
        if self.fakes[node] is None:
            raise _NoMeta
        return self.fakes[node]

    def _type_of(self, fake: Any) -> Any:
        if isinstance(fake, torch.Tensor):
            return TensorType(tuple(fake.shape), tuple(fake.stride()), fake.dtype, self.device)
        if isinstance(fake, list | tuple):
            return tuple(self._type_of(item) for item in fake)
        return None


class Misfit(Exception):
    """What a rule built has not the type that the single step had."""


class _NoMeta(Exception):
    """An argument's type is not known before the program runs."""


def _fake(type: Any) -> Any:
    if isinstance(type, tuple):
        return tuple(_fake(item) for item in type)
    if type is None:
        return None
    return torch.empty_strided(type.shape, type.stride, dtype=type.dtype, device="meta")


def to_meta(argument: Any) -> Any:
    """An argument with every device in it replaced by meta."""
    return map_aggregate(argument, lambda a: torch.device("meta") if isinstance(a, torch.device) else a)
