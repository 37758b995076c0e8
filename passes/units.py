"""Rounding units: how far an evaluation of a step may be from the exact one, to first order, component by component.

A running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3): next to each
value v goes a bound E(v), in multiples of eps, of what rounding its operands and its own result can change:

    E(a + b) = E(a) + E(b) + |a + b|
    E(W x + b) = |W| (|x| + E(x)) + |b| + E(b)
    E(tanh a) = (1 - tanh^2 a) E(a) + |tanh a|

The state that goes in carries E(s) = |s|; inputs and invariants are taken as exact. An op without a rule gets E = |result|,
which is the strictest choice. A max norm over the state would not do: a small component that matters can sit beside a
large one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from fxsolve.ir import CARRY, TensorType, results
from fxsolve.plainly import overridable

aten = torch.ops.aten
NAME = "units"


def unit_step(graph: fx.Graph, carries: int) -> fx.Graph:
    """A graph with the placeholders of a step that returns E of its first `carries` results."""
    out = fx.Graph()
    tracer = GraphAppendingTracer(out)
    values: dict[fx.Node, fx.Proxy] = {}
    bounds: dict[fx.Node, Any] = {}
    with overridable():
        for node in graph.nodes:
            if node.op == "placeholder":
                values[node] = fx.Proxy(out.placeholder(node.name), tracer)
                stateful = node.name.startswith(CARRY) and floating(node)
                bounds[node] = values[node].abs() if stateful else None
            elif node.op == "call_function":
                values[node] = fx.Proxy(out.node_copy(node, lambda n: values[n].node), tracer)
                bounds[node] = bound(node, values, bounds)
    wanted = [bounds[n] if bounds[n] is not None else values[n].abs() for n in results(graph)[:carries]]
    out.output(tuple(w.node for w in wanted))
    out.eliminate_dead_code()
    return out


def bound(node: fx.Node, values: dict[fx.Node, fx.Proxy], bounds: dict[fx.Node, Any]) -> Any:
    """E of a call's result (a proxy, or None for exact)."""
    if all(bounds[n] is None for n in node.all_input_nodes):
        return None
    args = fx.map_arg(node.args, lambda n: values[n])  # pyright: ignore[reportArgumentType]
    inner = fx.map_arg(node.args, lambda n: bounds[n])
    rule = RULES.get(node.target)
    if rule is not None:
        return rule(values[node], args, inner, node)
    return values[node].abs() if floating(node) else None


def floating(node: fx.Node) -> bool:
    kind = node.meta.get("type")
    return isinstance(kind, TensorType) and kind.dtype.is_floating_point


Rule = Callable[[Any, Any, Any, fx.Node], Any]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


def size(value: Any) -> Any:
    return value.abs() if isinstance(value, fx.Proxy) else abs(value)


def total(*terms: Any) -> Any:
    """The sum of the terms that are not None, or None."""
    present = [t for t in terms if t is not None]
    return sum(present[1:], present[0]) if present else None


def times(factor: Any, bound: Any) -> Any:
    return bound if bound is None or factor == 1 else factor * bound


def plus_product(start: Any, a: Any, b: Any) -> Any:
    """start + |a| b in one call where both are tensors; `start` where b is exact (None)."""
    if b is None:
        return start
    return torch.addcmul(start, size(a), b) if isinstance(a, fx.Proxy) else start + size(a) * b


@rule(aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.add.Scalar, aten.sub.Scalar)
def _add(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    first, second = (b if isinstance(b, fx.Proxy) else None for b in bounds)
    return total(value.abs(), first, times(abs(n.kwargs.get("alpha", 1)), second))  # type: ignore[arg-type]


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    first, second = (b if isinstance(b, fx.Proxy) else None for b in bounds)
    return plus_product(plus_product(value.abs(), args[0], second), args[1], first)


@rule(aten.addcmul.default)
def _addcmul(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    product = plus_product(plus_product(value.abs(), args[1], bounds[2]), args[2], bounds[1])
    return total(product + (args[1] * args[2]).abs(), bounds[0])


@rule(aten.div.Tensor, aten.div.Scalar)
def _div(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    second = bounds[1] if isinstance(bounds[1], fx.Proxy) else None
    numerator = bounds[0] if second is None else total(bounds[0], value.abs() * second)
    return numerator / size(args[1]) + value.abs()


@rule(aten.mm.default, aten.bmm.default)
def _mm(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return product(args[0], args[1], bounds[0], bounds[1])


@rule(aten.addmm.default, aten.baddbmm.default)
def _addmm(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    alpha, beta = abs(n.kwargs.get("alpha", 1)), abs(n.kwargs.get("beta", 1))  # type: ignore[arg-type]
    return times(alpha, product(args[1], args[2], bounds[1], bounds[2])) + times(beta, total(size(args[0]), bounds[0]))


def product(a: Any, b: Any, bound_a: Any, bound_b: Any) -> Any:
    out = total(a.abs(), bound_a) @ b.abs()
    return out if bound_b is None else out + a.abs() @ bound_b


# |f'(x)|, given x and y = f(x)
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
    aten.elu.default: lambda x, y: torch.where(x > 0, 1.0, (y + 1).abs()),
    aten.leaky_relu.default: lambda x, y: torch.ones_like(y),
}


@rule(*DERIVATIVES)
def _unary(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return torch.addcmul(value.abs(), DERIVATIVES[n.target](args[0], value), bounds[0])


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


@rule(
    aten.sum.dim_IntList, aten.mean.dim, aten.sum.default, aten.mean.default, aten.avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
)  # fmt: skip
def _sum(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return n.target(total(args[0].abs(), bounds[0]), *args[1:], **n.kwargs)  # type: ignore[operator]


@rule(aten.convolution.default)
def _convolution(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    image, weight, bias, *geometry = args
    terms = []
    if bounds[0] is not None:
        terms.append(aten.convolution.default(total(image.abs(), bounds[0]), weight.abs(), None, *geometry))
    if bounds[1] is not None:
        terms.append(aten.convolution.default(image.abs(), total(weight.abs(), bounds[1]), None, *geometry))
    if bias is not None:
        size_of_bias = total(bias.abs(), bounds[2])
        terms.append(size_of_bias.view(-1, *[1] * (len(geometry[0]))))
    return total(*terms)


@rule(aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default)
def _batch_norm(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    """With running statistics: y = (x - mean) / sqrt(var + e) * w + b, a linear map of x."""
    training = n.target is aten.native_batch_norm.default and args[5]
    if training or any(b is not None for b in bounds[1:5]) or bounds[0] is None:
        return [value[0].abs(), value[1].abs(), value[2].abs()]
    image, weight, bias, mean, variance = args[:5]
    ones = [1] * (len(n.args[0].meta["type"].shape) - 2)  # type: ignore[union-attr]
    slope = (variance + args[-1]).rsqrt()
    slope = slope if weight is None else slope * weight.abs()
    shift = mean.abs() * slope
    shift = shift if bias is None else shift + bias.abs()
    bound = torch.addcmul(shift.view(-1, *ones), slope.view(-1, *ones), total(image.abs(), bounds[0]))
    return [bound, None, None]


@rule(aten.max_pool2d_with_indices.default)
def _max_pool(value: Any, args: Any, bounds: Any, n: fx.Node) -> Any:
    return [aten.max_pool2d_with_indices.default(bounds[0], *args[1:], **n.kwargs)[0], None]
