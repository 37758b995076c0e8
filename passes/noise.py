"""Noise separation: a random call becomes a draw that depends on nothing, and deterministic calls on the draw.

    s = normal(mean, std)             -->   z = draw(normal, 0, 1); s = z * std + mean
    b = bernoulli(p)                  -->   u = draw(uniform, 0, 1); b = (u < p).to(dtype of p)
    i = multinomial(p, 1)             -->   q = draw(exponential, 1); i = argmax(p / q)

So every sweep of a solver can use the noise that eager would have drawn, whatever the state is. Each rewrite follows
ATen's own kernel: the same bits from the same generator state, which is left as eager leaves it. The draw has the type
(shape, strides, dtype) of the tensor that the kernel fills. The CPU kernels were compared bit for bit; where a kernel
of another device is written differently, or a dtype is not exact, the call stays as it is, and so do the calls that
take a number of values that depends on their input (gamma, poisson, ..): `pinned` names what stays.

The draw of a call without a rule of its own is made in the strides of the call's result. The result of an in-place call
that was made functional must therefore have the type of the region that it wrote.

What eager checks about the parameters (probabilities in [0, 1], standard deviations >= 0) is not checked any more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxsolve import prims
from fxsolve.ir import TensorType, contiguous_stride

aten = torch.ops.aten
NAME = "noise"
DEVICES = ("cpu", "cuda")  # whose kernels the rewrites follow
# Arguments that say that a call of a random op draws nothing.
SILENT = {"dropout_p": 0, "dropout": 0, "train": False, "training": False}


def separate_noise(graph: fx.Graph) -> fx.Graph:
    """The same program, its random calls split into `prims.draw` and deterministic calls at the place of each."""
    return _Rewrite().run(graph)


def pinned(graph: fx.Graph) -> tuple[str, ...]:
    """The random calls that are no draws, each with the user's line: later draws of their generator cannot move."""
    named = []
    for node in graph.nodes:
        if node.op == "call_function" and node.target is not prims.draw and is_random(node):
            source = node.meta.get("source")
            named.append(f"{node.target} at {source}" if source else str(node.target))
    return tuple(named)


def is_random(node: fx.Node) -> bool:
    """Whether a node takes values from a generator."""
    return takes_random(node.target, node.args, node.kwargs)


def takes_random(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call takes values from a generator. Attention and dropout carry the tag even where they draw nothing."""
    if target in (prims.draw, prims.draws):
        return True
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    named = named_arguments(target, args, kwargs)
    return not any(name in named and named[name] == value for name, value in SILENT.items())


def named_arguments(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an ATen call by name, defaults filled in."""
    declared = target._schema.arguments
    defaults = {argument.name: argument.default_value for argument in declared if argument.has_default_value()}
    return defaults | dict(zip([argument.name for argument in declared], args)) | dict(kwargs)


class _Rewrite:
    """One copy of a graph in the making."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        self.source = ""

    def run(self, graph: fx.Graph) -> fx.Graph:
        for node in graph.nodes:
            self.source = node.meta.get("source", "")
            made = self.rewritten(node) if node.op == "call_function" else None
            self.env[node] = self.graph.node_copy(node, self.env.__getitem__) if made is None else made
        self.erase_unused(graph)
        return self.graph

    def rewritten(self, node: fx.Node) -> Any:
        """What replaces a call: a node, a tuple of nodes for several results, or None to keep it."""
        if node.target is operator.getitem and isinstance(self.env[node.args[0]], tuple):  # type: ignore[index]
            return self.env[node.args[0]][node.args[1]]  # type: ignore[index]
        if node.target not in PLAIN and node.target not in RULES:
            return None
        call = _Call(self, node)
        if call.device.type not in DEVICES:
            return None
        return plain_draw(call) if node.target in PLAIN else RULES[node.target](call)

    def add(self, target: Callable[..., Any], args: tuple[Any, ...], kind: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta.update(type=kind, source=self.source)
        return node

    def erase_unused(self, graph: fx.Graph) -> None:
        """Erase what only gave a random call its shape."""
        made = {self.env[node]: None for node in graph.nodes if node.op == "call_function" and node.users}
        for node in reversed(made):
            if isinstance(node, fx.Node) and not node.users and not is_random(node):
                self.graph.erase_node(node)


@dataclass(frozen=True)
class _Call:
    """A random call that a rule rewrites."""

    rewrite: _Rewrite
    node: fx.Node

    def __getitem__(self, name: str) -> Any:
        """An argument: a new node, or a Python value."""
        named = named_arguments(self.node.target, self.node.args, self.node.kwargs)
        return fx.map_arg(named[name], self.rewrite.env.__getitem__)

    @property
    def types(self) -> tuple[TensorType, ...]:
        kind = self.node.meta["type"]
        return kind if isinstance(kind, tuple) else (kind,)

    @property
    def device(self) -> torch.device:
        return self.types[0].device

    def draw(self, kind: str, like: TensorType, *parameters: Any) -> fx.Node:
        args = (kind, like.shape, like.stride, like.dtype, like.device, parameters)
        generator = named_arguments(self.node.target, self.node.args, self.node.kwargs).get("generator")
        return self.rewrite.add(prims.draw, args if generator is None else (*args, generator), like)

    def run(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A deterministic call, its type taken from a run on the meta device."""
        made = target(*fx.map_arg(args, _meta), **fx.map_arg(kwargs, _meta))
        kinds = [TensorType(_ints(t.shape), _ints(t.stride()), t.dtype, self.device) for t in _listed(made)]
        return self.rewrite.add(target, args, tuple(kinds) if isinstance(made, (tuple, list)) else kinds[0], **kwargs)


def plain_draw(call: _Call) -> fx.Node | None:
    """A call whose parameters are Python numbers is a draw of its own type."""
    kind, names = PLAIN[call.node.target]
    parameters = [call[name] if isinstance(name, str) else name for name in names]
    if any(isinstance(value, fx.Node) for value in parameters):
        return None
    return call.draw(kind, call.types[0], *parameters)


def normal_tensors(call: _Call) -> fx.Node | None:
    """`normal(mean, std)` is `randn * std + mean`; eager gives mean and std no gradient."""
    kind = _row_major(call.types[0])
    if not _all_of(kind.dtype, call["mean"], call["std"]):
        return None
    scaled = call.run(aten.mul.Tensor, call.draw("normal", kind, 0.0, 1.0), _detached(call, "std"))
    return call.run(aten.add.Tensor, scaled, _detached(call, "mean"))


def normal_mean(call: _Call) -> fx.Node | None:
    """`normal(mean, 0.5)` is `draw(normal, 0, 0.5) + mean`: there ATen scales inside the draw."""
    kind = _row_major(call.types[0])
    if not _all_of(kind.dtype, call["mean"]) or isinstance(call["std"], fx.Node):
        return None
    return call.run(aten.add.Tensor, call.draw("normal", kind, 0.0, call["std"]), _detached(call, "mean"))


def bernoulli(call: _Call) -> fx.Node | None:
    """`bernoulli(p)` is `rand < p`, in a fresh row-major tensor."""
    return below(call, call["self"], _row_major(call.types[0]))


def bernoulli_in_place(call: _Call) -> fx.Node | None:
    """`x.bernoulli_(p)` is `rand < p`, in the strides of x."""
    return below(call, call["p"], call.types[0])


def below(call: _Call, p: fx.Node, kind: TensorType) -> fx.Node | None:
    """`rand < p`, in double where p is, else in float, for half precision too."""
    given = p.meta["type"].dtype
    if call.device.type != "cpu" or not given.is_floating_point:
        return None
    dtype = torch.float64 if given == torch.float64 else torch.float32
    uniform = call.draw("uniform", TensorType(kind.shape, kind.stride, dtype, kind.device), 0.0, 1.0)
    outcome = call.run(aten.lt.Tensor, uniform, p)
    return outcome if kind.dtype == torch.bool else call.run(aten._to_copy.default, outcome, dtype=kind.dtype)


def multinomial(call: _Call) -> fx.Node | None:
    """An exponential race, which is how ATen itself samples once, or several times without replacement."""
    p, count = call["self"], call["num_samples"]
    if not isinstance(count, int) or count != 1 and call["replacement"]:
        return None
    like = torch.empty_like(_meta(p))
    kind = TensorType(_ints(like.shape), _ints(like.stride()), like.dtype, call.device)
    times = call.run(aten.div.Tensor, p, call.draw("exponential", kind, 1.0))
    if count == 1:
        return call.run(aten.argmax.default, times, -1, True)
    return call.rewrite.add(operator.getitem, (call.run(aten.topk.default, times, count), 1), call.types[0])


def native_dropout(call: _Call) -> tuple[fx.Node, fx.Node] | None:
    """`dropout(x)` is `x * (mask / (1 - p))` with a mask of Bernoulli draws."""
    x, p = call["input"], call["p"]
    kind, mask_kind = call.types
    if call.device.type != "cpu" or call["train"] is False or kind.numel == 0 or isinstance(p, fx.Node):
        return None
    mask = call.draw("bernoulli", mask_kind, 1.0 - p)
    kept = call.run(aten._to_copy.default, mask, dtype=kind.dtype)
    scale = 0.0 if p == 1.0 else 1.0 / (1.0 - p)
    return call.run(aten.mul.Tensor, x, call.run(aten.mul.Tensor, kept, scale)), mask


# Calls that are one draw of their own type: the kind of draw, and the names (or values) of its parameters.
PLAIN: dict[Any, tuple[str, tuple[str | float, ...]]] = {
    aten.rand.default: ("uniform", (0.0, 1.0)),
    aten.rand.generator: ("uniform", (0.0, 1.0)),
    aten.rand_like.default: ("uniform", (0.0, 1.0)),
    aten.rand_like.generator: ("uniform", (0.0, 1.0)),
    aten.uniform.default: ("uniform", ("from", "to")),
    aten.randn.default: ("normal", (0.0, 1.0)),
    aten.randn.generator: ("normal", (0.0, 1.0)),
    aten.randn_like.default: ("normal", (0.0, 1.0)),
    aten.randn_like.generator: ("normal", (0.0, 1.0)),
    aten.normal_functional.default: ("normal", ("mean", "std")),
    aten.normal.float_float: ("normal", ("mean", "std")),
    aten.randint.default: ("random", (0, "high")),
    aten.randint.generator: ("random", (0, "high")),
    aten.randint.low: ("random", ("low", "high")),
    aten.randint.low_generator: ("random", ("low", "high")),
    aten.randint_like.default: ("random", (0, "high")),
    aten.randint_like.generator: ("random", (0, "high")),
    aten.randint_like.low_dtype: ("random", ("low", "high")),
    aten.randint_like.low_generator_dtype: ("random", ("low", "high")),
    aten.random.default: ("random", ()),
    aten.random.to: ("random", ("to",)),
    getattr(aten.random, "from"): ("random", ("from", "to")),
    aten.randperm.default: ("randperm", ()),
    aten.randperm.generator: ("randperm", ()),
    aten.exponential.default: ("exponential", ("lambd",)),
    aten.bernoulli.p: ("bernoulli", ("p",)),
    aten.cauchy.default: ("cauchy", ("median", "sigma")),
    aten.log_normal.default: ("log_normal", ("mean", "std")),
    aten.geometric.default: ("geometric", ("p",)),
}

# Calls that are a draw and deterministic calls on it.
RULES: dict[Any, Callable[[_Call], Any]] = {
    aten.normal.Tensor_Tensor: normal_tensors,
    aten.normal.float_Tensor: normal_tensors,
    aten.normal.Tensor_float: normal_mean,
    aten.bernoulli.default: bernoulli,
    aten.bernoulli.Tensor: bernoulli_in_place,
    aten.multinomial.default: multinomial,
    aten.native_dropout.default: native_dropout,
}


def _detached(call: _Call, name: str) -> Any:
    value = call[name]
    return call.run(aten.detach.default, value) if isinstance(value, fx.Node) else value


def _row_major(kind: TensorType) -> TensorType:
    return TensorType(kind.shape, contiguous_stride(kind.shape), kind.dtype, kind.device)


def _all_of(dtype: torch.dtype, *values: Any) -> bool:
    """Whether the tensors among some arguments have a dtype, so that nothing is promoted on the way."""
    return all(value.meta["type"].dtype == dtype for value in values if isinstance(value, fx.Node))


def _meta(node: fx.Node) -> torch.Tensor:
    kind = node.meta["type"]
    return torch.empty_strided(kind.shape, kind.stride, dtype=kind.dtype, device="meta")


def _listed(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _ints(sizes: Any) -> tuple[int, ...]:
    return tuple(map(int, sizes))
