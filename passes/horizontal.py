"""Horizontal fusion: calls of one form that do not depend on one another become one call.

    a = relu(x); b = relu(y)                     -->   a, b = split(relu(cat([x, y], 1)))
    a = addmm(p, x, U); b = addmm(q, y, V)       -->   a, b = slices(baddbmm(p|q, x|y, U|V))
    a = convolution(x, U); b = convolution(y, V) -->   a, b = split(convolution(cat([x, y], 1), cat([U, V]), groups=2))

Products and convolutions of unequal widths are filled up with zeros. Pointwise calls and norms keep their bits; products
round as their new shapes do. (Wang et al., MLSys 2021, "Horizontally Fused Training Array", fuse whole models of one shape.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Any

from torch import fx, ops

from fxsolve.ir import TensorType, calls, placeholders, results
from fxsolve.passes.chain import ACCUMULATE, is_heavy
from fxsolve.passes.graphs import copy_nodes
from fxsolve.passes.horizontal_rules import rule_of
from fxsolve.passes.side_by_side import SideBySide, shape

aten = ops.aten
NAME = "horizontal"
Depth = tuple[int, int, int]
FILLED = 0.5  # of the widest one's width: what is narrower would be mostly zeros


def horizontal(graph: fx.Graph) -> fx.Graph:
    """The graph with calls of one form fused, its calls in the order of how many products come before them."""
    new = SideBySide(graph)
    for group in groups(graph):
        rule = rule_of(group[0])
        if len(group) == 1 or rule is None:
            for node in group:
                new.copy(node)
        else:
            group = sorted(group, key=new.place)
            new.builder.source = group[0].meta.get("source", "")
            new.env |= zip(group, rule.fuse(new, group), strict=True)
    return by_depth(new.finished(results(graph)))


def groups(graph: fx.Graph) -> list[list[fx.Node]]:
    """The calls, those that can be one together; no member of a group, and no later group, depends on another member."""
    depth = depths(graph)
    found: dict[tuple[Depth, Hashable], list[fx.Node]] = defaultdict(list)
    for node in calls(graph):
        found[depth[node], form(node) or node].append(node)
    ordered = [found[key] for key in sorted(found, key=lambda key: key[0])]
    return [part for group in ordered for part in (alike(group) if len(group) > 1 and is_heavy(group[0]) else [group])]


def depths(graph: fx.Graph) -> dict[fx.Node, Depth]:
    """For each call how many products come before it, itself included, how many calls that may be fused since, and how many
    others since: sums and concatenations, of which a layer reads more the later it comes, set no layers apart.
    """
    depth: dict[fx.Node, Depth] = {}
    for node in calls(graph):
        products, fused, others = max((depth.get(n, (0, 0, 0)) for n in node.all_input_nodes), default=(0, 0, 0))
        if is_heavy(node):
            depth[node] = products + 1, 0, 0
        elif rule_of(node) is None or node.target in ACCUMULATE:
            depth[node] = products, fused, others + 1
        else:
            depth[node] = products, fused + 1, 0
    return depth


def by_depth(graph: fx.Graph) -> fx.Graph:
    """The graph in the order in which a second run would leave it."""
    new, env, depth = fx.Graph(), {}, depths(graph)
    copy_nodes(new, [*placeholders(graph), *sorted(calls(graph), key=lambda n: (depth[n], form(n) is None))], env)
    new.output(tuple(env[n] for n in results(graph)))
    return new


def form(node: fx.Node) -> Hashable:
    """What calls that become one have in common; None for a call that stays alone."""
    rule, kinds = rule_of(node), node.meta.get("type")
    operands = [n.meta.get("type") for n in node.all_input_nodes]
    if rule is None or not operands or not isinstance(kinds[0] if isinstance(kinds, tuple) else kinds, TensorType):
        return None
    first: Any = operands[0]
    if not all(isinstance(k, TensorType) and k.dtype == first.dtype and k.dtype.is_floating_point for k in operands):
        return None
    key = rule.form(node)
    return None if key is None else (node.target, first.dtype, first.device, key)


def alike(group: list[fx.Node]) -> list[list[fx.Node]]:
    """The group in parts, in each of which no width is much less than another."""
    parts: list[list[fx.Node]] = []
    for node in sorted(group, key=widths, reverse=True):
        fitting = (p for p in parts if all(min(w) >= FILLED * max(w) for w in zip(widths(node), widths(p[0]), strict=True)))
        part = next(fitting, None)
        if part is None:
            parts.append([node])
        else:
            part.append(node)
    return parts


def widths(product: fx.Node) -> tuple[int, ...]:
    """How many numbers a product or convolution takes and gives, by its weight."""
    return shape(product.args[2 if product.target is aten.addmm.default else 1])[:2]  # type: ignore[arg-type]
