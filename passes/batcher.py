"""The builder of a batched graph: emits typed calls and moves values between forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from fxsolve.ir import TensorType, contiguous_stride
from fxsolve.passes.batching import FIXED, FOLD, LEAD, Call, Form, Value, aten, parameters, plain, rule_of

SMALL = 1 << 20  # numbers in a tensor


@dataclass
class Batcher:
    """Builds the batched graph: emits typed nodes and moves values between forms."""

    graph: fx.Graph
    count: int
    device: torch.device
    source: str = ""
    moved: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = field(default_factory=dict)

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new call; its type is found by running it on stand-ins."""
        node = self._call(target, args, kwargs)
        node.meta["type"] = self._type_of(self._run_on_stand_ins(node))
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
        return Value(node, type, form)

    def values(self, node: fx.Node, types: Sequence[Any], forms: Form | Sequence[Form]) -> tuple[Any, ...]:
        """The results of a call that has several; those that nobody uses disappear with the dead code."""
        forms = [forms] * len(types) if isinstance(forms, Form) else forms
        got = node.meta.get("type") or [None] * len(types)
        node.meta["type"] = tuple(
            None if type is None else self._settled(node, *item) for type, item in zip(types, zip(got, types, forms))
        )
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

    def _run_on_stand_ins(self, node: fx.Node) -> Any:
        """The result of a call on tensors of its operands' types, or None where one is not known or the op has no meta form.

        Most of torch's meta kernels are Python, whose first use in a process imports torch's compiler for seconds. So what
        is small is computed, if the program runs on the CPU (another device's kernels may lay results out otherwise).
        """
        types: list[Any] = []
        fx.map_arg((node.args, node.kwargs), lambda n: types.append(n.meta.get("type")))
        if self.device.type == "cpu" and all(math.prod(kind.shape) <= SMALL for kind in _tensors_in(types)):
            try:
                return self._run(node, "cpu")
            except _NoMeta:
                return None
            except RuntimeError:  # no such kernel, or none for zeros
                pass
        try:
            return self._run(node, "meta")
        except (NotImplementedError, _NoMeta):
            return None

    def _run(self, node: fx.Node, device: str) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _stand_in(n.meta.get("type"), device))
        with torch.no_grad():
            return node.target(*on_device(args, device), **on_device(kwargs, device))  # type: ignore[operator]

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


def _tensors_in(kind: Any) -> Iterator[TensorType]:
    if isinstance(kind, list | tuple):
        for item in kind:
            yield from _tensors_in(item)
    elif kind is not None:
        yield kind


def _stand_in(kind: Any, device: str) -> Any:
    """A tensor of zeros, or one without values, of that type; of a tuple one of each."""
    if isinstance(kind, tuple):
        return tuple(None if item is None else _stand_in(item, device) for item in kind)
    if kind is None:
        raise _NoMeta
    if device == "meta":
        return torch.empty_strided(kind.shape, kind.stride, dtype=kind.dtype, device=device)
    span = 1 + sum((size - 1) * stride for size, stride in zip(kind.shape, kind.stride, strict=True))
    return torch.zeros(max(0, span), dtype=kind.dtype).as_strided(kind.shape, kind.stride)


def on_device(argument: Any, device: str) -> Any:
    """An argument with every device in it replaced by that one."""
    return map_aggregate(argument, lambda a: torch.device(device) if isinstance(a, torch.device) else a)
