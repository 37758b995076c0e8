"""Rounding units: how far an evaluation of a step may be from the exact one, to first order, component by component.

A running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3): next to each
value v goes a bound E(v), in multiples of eps, of what rounding its operands and its own result can change:

    E(a + b) = E(a) + E(b) + |a + b|        E(W x + b) = |W| (|x| + E(x)) + |b| + E(b)       E(tanh a) = (1 - tanh^2 a) E(a) + |tanh a|

The state that goes in carries E(s) = |s|; inputs and invariants are taken as exact. An op without a rule gets E = |result|,
which is the strictest choice. A max norm over the state would not do: a small component that matters can sit beside a
large one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxsolve.ir import CARRY

aten = torch.ops.aten
Bound = torch.Tensor | None  # None: exact


class UnitInterpreter(fx.Interpreter):
    """Runs a step graph and the error bounds beside it."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule({}, graph))
        self.bounds: dict[fx.Node, Any] = {}

    def unit(self, inputs: Sequence[Any], carries: int) -> list[torch.Tensor]:
        """E of the first `carries` results for the given inputs."""
        out = self.run(*inputs)
        (node,) = [n for n in self.graph.nodes if n.op == "output"]
        return [bound_of(self.bounds.get(n), v) for n, v in list(zip(node.args[0], out, strict=True))[:carries]]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "placeholder":
            exact = not n.name.startswith(CARRY) or not isinstance(value, torch.Tensor) or not value.is_floating_point()
            self.bounds[n] = None if exact else value.abs()
        elif n.op == "call_function":
            self.bounds[n] = self.bound(n, value)
        return value

    def bound(self, n: fx.Node, value: Any) -> Any:
        bounds = fx.map_arg(n.args, lambda m: self.bounds.get(m))
        if not any(self.bounds.get(m) is not None for m in n.all_input_nodes):
            return None
        args = fx.map_arg(n.args, lambda m: self.env_value(m))
        rule = RULES.get(n.target)
        if rule is None:
            return value.abs() if isinstance(value, torch.Tensor) and value.is_floating_point() else None
        return rule(value, args, bounds, n)

    def env_value(self, node: fx.Node) -> Any:
        return self.env[node]

    def run(self, *args: Any, initial_env: Any = None, enable_io_processing: bool = True) -> Any:
        self.garbage_collect_values = False
        return super().run(*args, initial_env=initial_env, enable_io_processing=enable_io_processing)


def bound_of(bound: Bound, value: torch.Tensor) -> torch.Tensor:
    return value.abs() if bound is None else bound


Rule = Callable[[Any, Any, Any, fx.Node], Any]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


def zero(bound: Any) -> Any:
    return 0.0 if bound is None or not isinstance(bound, torch.Tensor) else bound


def size(value: Any) -> Any:
    return value.abs() if isinstance(value, torch.Tensor) else abs(value)


@rule(aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.add.Scalar, aten.sub.Scalar)
def _add(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    alpha = abs(n.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    return zero(bounds[0]) + alpha * zero(bounds[1]) + value.abs()


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return size(args[0]) * zero(bounds[1]) + size(args[1]) * zero(bounds[0]) + value.abs()


@rule(aten.div.Tensor, aten.div.Scalar)
def _div(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return (zero(bounds[0]) + value.abs() * zero(bounds[1])) / size(args[1]) + value.abs()


@rule(aten.mm.default, aten.bmm.default)
def _mm(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return product(args[0], args[1], bounds[0], bounds[1])


@rule(aten.addmm.default, aten.baddbmm.default)
def _addmm(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    alpha, beta = abs(n.kwargs.get("alpha", 1)), abs(n.kwargs.get("beta", 1))  # type: ignore[arg-type]
    return alpha * product(args[1], args[2], bounds[1], bounds[2]) + beta * (size(args[0]) + zero(bounds[0]))


def product(a: torch.Tensor, b: torch.Tensor, bound_a: Bound, bound_b: Bound) -> torch.Tensor:
    out = (a.abs() + zero(bound_a)) @ b.abs()
    return out if bound_b is None else out + a.abs() @ bound_b


DERIVATIVES: dict[Any, Callable[[Any, Any], Any]] = {
    aten.tanh.default: lambda x, y: 1 - y * y,
    aten.sigmoid.default: lambda x, y: y * (1 - y),
    aten.relu.default: lambda x, y: (x > 0).to(y.dtype),
    aten.exp.default: lambda x, y: y,
    aten.neg.default: lambda x, y: torch.ones_like(y),
    aten.abs.default: lambda x, y: torch.ones_like(y),
    aten.sin.default: lambda x, y: torch.cos(x).abs(),
    aten.cos.default: lambda x, y: torch.sin(x).abs(),
    aten.log.default: lambda x, y: 1 / x.abs(),
    aten.sqrt.default: lambda x, y: 0.5 / y,
    aten.softplus.default: lambda x, y: torch.sigmoid(x),
    aten.clamp.default: lambda x, y: (x == y).to(y.dtype),
    aten.hardtanh.default: lambda x, y: (x == y).to(y.dtype),
    aten.silu.default: lambda x, y: (torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))).abs(),
    aten.gelu.default: lambda x, y: torch.full_like(y, 1.13),
    aten.elu.default: lambda x, y: torch.where(x > 0, 1.0, y + 1),
    aten.leaky_relu.default: lambda x, y: torch.ones_like(y),
}


@rule(*DERIVATIVES)
def _unary(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return DERIVATIVES[n.target](args[0], value).abs() * zero(bounds[0]) + value.abs()


@rule(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.select.int, aten.slice.Tensor, aten.squeeze.dim, aten.unsqueeze.default,
    aten.split.Tensor, aten.unsafe_split.Tensor, aten.split_with_sizes.default, aten.clone.default, aten.detach.default,
    aten.alias.default, aten.unbind.int, aten.index_select.default, aten.flip.default,
)  # fmt: skip
def _move(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    if bounds[0] is None:
        return None
    return n.target(bounds[0], *args[1:])  # type: ignore[operator]


@rule(operator.getitem)
def _item(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return None if bounds[0] is None else bounds[0][args[1]]


@rule(aten.cat.default, aten.stack.default)
def _join(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    filled = [torch.zeros_like(v) if b is None else b for v, b in zip(args[0], bounds[0], strict=True)]
    return n.target(filled, *args[1:])  # type: ignore[operator]


@rule(aten.sum.dim_IntList, aten.mean.dim, aten.sum.default, aten.mean.default)
def _sum(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return n.target(args[0].abs() + zero(bounds[0]), *args[1:], **n.kwargs)  # type: ignore[operator]
