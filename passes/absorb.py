"""Absorb sums into products: fewer calls in every sequential step.

    (s W + b) + u     -->   s W + (u + b)          u, without a state in it, becomes the bias; u + b is hoisted
    (x V + a) + b     -->   x V + (a + b)          and joins the bias of the projection that made u
    (s u) v           -->   s (u v)                u and v without a state in them: their product is hoisted
    (s + u) v         -->   addcmul(u v, s, v)     likewise
    a + b * c         -->   addcmul(a, b, c)       elementwise

Sums and products are taken in another order, so this is for blocks held to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from fxsolve.ir import CARRY, TensorType, placeholders
from fxsolve.passes.graphs import depending_on

aten = torch.ops.aten
NAME = "absorb"


def absorb(step: fx.Graph) -> fx.Graph:
    """The step with sums moved into biases; the graph that is given stays as it is."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    out = graph.graph_copy(step, env)
    graph.output(out)
    while (found := next(absorbable(graph), None)) is not None:
        rewrite(graph, *found)
    stateful = depending_on(graph, placeholders(graph, CARRY))
    for node in list(graph.nodes):
        join_factors(graph, node, stateful)
    for node in list(graph.nodes):
        multiply_out(graph, node, stateful)
    for node in list(graph.nodes):
        multiply_add(graph, node)
    graph.eliminate_dead_code()
    return graph


def absorbable(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
    """(sum, product, other operand): the product has a state in it or a bias only, the other operand has none."""
    stateful = depending_on(graph, placeholders(graph, CARRY))
    for node in graph.nodes:
        if node.op != "call_function" or node.target is not aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
            continue
        for product, other in (node.args, node.args[::-1]):
            if not isinstance(product, fx.Node) or not isinstance(other, fx.Node) or other in stateful or other is product:
                continue
            if not plain_product(product) or len(product.users) != 1:
                continue
            if product.meta["type"].shape != node.meta["type"].shape:
                continue
            bias = product.args[0] if product.target is aten.addmm.default else None
            if bias not in stateful if product in stateful else is_bias(bias) and is_bias(other):
                yield node, product, other


def with_factor(node: fx.Node, target: object, stateful: set[fx.Node]) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node] | None:
    """(inner, s, u, v) where a node is `inner v` and inner is `target(s, u)`, of equal types, and only s has a state in it."""
    if node.target is not aten.mul.Tensor or node not in stateful:
        return None
    for inner, v in (node.args, node.args[::-1]):
        if not isinstance(inner, fx.Node) or not isinstance(v, fx.Node) or v in stateful or inner.target is not target:
            continue
        for s, u in (inner.args, inner.args[::-1]):
            given = isinstance(s, fx.Node) and isinstance(u, fx.Node) and s in stateful and u not in stateful
            if given and all(same_type(n, node) for n in (s, u, v)):  # type: ignore[arg-type]
                return inner, s, u, v  # type: ignore[return-value]
    return None


def join_factors(graph: fx.Graph, node: fx.Node, stateful: set[fx.Node]) -> None:
    """Rewrites one `(s u) v` of equal types."""
    while (found := with_factor(node, aten.mul.Tensor, stateful)) is not None:
        _, s, u, v = found
        with graph.inserting_before(node):
            factor = graph.call_function(aten.mul.Tensor, (u, v))
        factor.meta.update(node.meta)
        node.args = (s, factor)


def multiply_out(graph: fx.Graph, node: fx.Node, stateful: set[fx.Node]) -> None:
    """Rewrites one `(s + u) v` of equal types whose sum has no other use."""
    found = with_factor(node, aten.add.Tensor, stateful)
    if found is None or len(found[0].users) != 1 or found[0].kwargs.get("alpha", 1) != 1:
        return
    inner, s, u, v = found
    with graph.inserting_before(node):
        product = graph.call_function(aten.mul.Tensor, (u, v))
        new = graph.call_function(aten.addcmul.default, (product, s, v))
    for made in (product, new):
        made.meta.update(node.meta)
    stateful.add(new)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    graph.erase_node(inner)


def multiply_add(graph: fx.Graph, node: fx.Node) -> None:
    """Rewrites one `a + b * c` of equal shapes whose product has no other use."""
    if node.op != "call_function" or node.target is not aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return
    for product, other in (node.args[::-1], node.args):
        if not isinstance(product, fx.Node) or product.target is not aten.mul.Tensor or len(product.users) != 1:
            continue
        if other is product:
            continue
        terms = (other, *product.args)
        if all(isinstance(t, fx.Node) and same_type(t, node) for t in terms):
            with graph.inserting_before(node):
                new = graph.call_function(aten.addcmul.default, terms)
                new.meta.update(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            graph.erase_node(product)
            return


def same_type(a: fx.Node, b: fx.Node) -> bool:
    return (a.meta["type"].shape, a.meta["type"].dtype) == (b.meta["type"].shape, b.meta["type"].dtype)


def plain_product(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (aten.addmm.default, aten.mm.default) and not node.kwargs


def is_bias(node: object) -> bool:
    return isinstance(node, fx.Node) and len(node.meta["type"].shape) == 1


def rewrite(graph: fx.Graph, node: fx.Node, product: fx.Node, other: fx.Node) -> None:
    with graph.inserting_before(node):
        bias, factors = other, product.args
        if product.target is aten.addmm.default:
            bias = graph.call_function(aten.add.Tensor, (other, product.args[0]))
            kind = max((other.meta["type"], product.args[0].meta["type"]), key=rank)  # type: ignore[union-attr]
            bias.meta.update(type=kind, source=node.meta["source"])
            factors = product.args[1:]
        new = graph.call_function(aten.addmm.default, (bias, *factors))
        new.meta.update(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    graph.erase_node(product)


def rank(kind: TensorType) -> int:
    return len(kind.shape)
