"""Settle: a state that each step changes in the same idempotent way is invariant after the first step.

    for t: W = W * mask; s = f(s, W)     -->   W = W * mask; for t: s = f(s, W)          where mask * mask == mask

So people mask weights: `self.weight.data *= self.mask` inside forward. That a mask holds zeros and ones alone is a guard,
which is looked at in each call. A clamp, relu or masked_fill is idempotent by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxsolve.ir import CARRY, CONST, INDEX, STACKED, Program, Recurrence, TensorType, calls, placeholders, results
from fxsolve.passes.clean import is_random_target
from fxsolve.passes.graphs import copy_nodes, placeholder_like
from fxsolve.tape import Leaf

aten = torch.ops.aten
NAME = "settle"
SHOWS = (aten.detach.default, aten.alias.default, aten.clone.default)
IDEMPOTENT = (aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.clamp.default, aten.relu.default)


@dataclass(frozen=True)
class Settled:
    """A carried state that settles at once: the nodes that make its new content, and the mask that must be one."""

    carry: int
    chain: tuple[fx.Node, ...]
    mask: fx.Node | None


def settle(program: Program) -> Program:
    """The program with the states of its blocks that settle at once made invariants."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    blocks = dict(program.blocks)
    values: dict[tuple[fx.Node, int], fx.Node] = {}  # (call, old number of a result) -> what it is now
    masks: dict[fx.Node, None] = {}
    leaves = dict(zip(placeholders(program.graph), program.leaves, strict=True))
    for node in program.graph.nodes:
        block = blocks.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(block, Recurrence) and (found := settled_states(node, block, leaves)):
            blocks[block.name] = rewrite_call(graph, node, block, found, env, values)
            given: Any = node.args[2]
            consts = placeholders(block.step, CONST)
            masks |= {env[given[consts.index(each.mask)]]: None for each in found if each.mask is not None}
        elif node.op == "call_function" and (node.args[:2] if node.target is operator.getitem else None) in values:
            env[node] = values[node.args]  # type: ignore[index]
        elif node.op == "output":
            guards = [zeros_and_ones(graph, mask) for mask in masks]
            graph.output((*[env[n] for n in node.args[0]], *guards))
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
    guards = (*program.guards, *(True for _ in masks))
    return Program(graph, blocks, program.leaves, program.outputs, program.mutated, guards)


def settled_states(call: fx.Node, block: Recurrence, leaves: dict[fx.Node, Leaf]) -> list[Settled]:
    """The carried states of a block that settle at once."""
    given: Any = call.args[2]
    outside = dict(zip(placeholders(block.step, CONST), given, strict=True))
    found = []
    for number in range(block.carries):
        chain = unary_chain(block.step, number, outside)
        if not chain:
            continue
        last = chain[-1]
        if last.target is aten.mul.Tensor:
            masks = [n for n in last.all_input_nodes if n in outside]
            value = value_of(outside[masks[0]], leaves) if masks else None  # no mask: scaled by a number
            if value is not None and bool((value * value == value).all()):
                found.append(Settled(number, chain, masks[0]))
        elif last.target in IDEMPOTENT:
            found.append(Settled(number, chain, None))
    return found


def value_of(node: fx.Node, leaves: dict[fx.Node, Leaf]) -> torch.Tensor | None:
    """A value of the program as it was recorded, if it comes from no block."""
    if node in leaves:
        return leaves[node].tensor
    if node.op != "call_function" or is_random_target(node.target):
        return None
    values = {n: value_of(n, leaves) for n in node.all_input_nodes}
    if any(v is None for v in values.values()):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def unary_chain(step: fx.Graph, number: int, outside: dict[fx.Node, fx.Node]) -> tuple[fx.Node, ...]:
    """The calls that make a carry's new content from nothing but itself and invariants; () if there is another use of it.

    All but the last only show or copy the carry.
    """
    before, after = placeholders(step, CARRY)[number], results(step)[number]
    chain: list[fx.Node] = []
    node = before
    while node is not after:
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_function" or (chain and node.target not in SHOWS):
            return ()
        others = [n for n in users[0].all_input_nodes if n is not node]
        if any(n not in outside for n in others) or users[0].all_input_nodes.count(node) != 1:
            return ()
        node = users[0]
        chain.append(node)
    return tuple(chain)


def rewrite_call(
    graph: fx.Graph,
    node: fx.Node,
    block: Recurrence,
    found: Sequence[Settled],
    env: dict[fx.Node, fx.Node],
    values: dict[tuple[fx.Node, int], fx.Node],
) -> Recurrence:
    """One block's call: the settled states are computed before it, and go in as invariants."""
    step, gone = block.step, {each.carry: each for each in found}
    initial, stacked, given = [[env[n] for n in group] for group in node.args]  # type: ignore[union-attr]
    carries, consts = placeholders(step, CARRY), placeholders(step, CONST)
    kept = [k for k in range(block.carries) if k not in gone]
    outside = dict(zip(consts, given, strict=True))
    for each in found:
        local = outside | {carries[each.carry]: initial[each.carry]}
        copy_nodes(graph, each.chain, local)
        values[(node, each.carry)] = outside[each.chain[-1]] = local[each.chain[-1]]
    dropped = {n for each in found for n in each.chain}
    used = [n for n in consts if any(user not in dropped for user in n.users)] + [each.chain[-1] for each in found]
    new, inner = fx.Graph(), {}
    for prefix, group in ((CARRY, [carries[k] for k in kept]), (STACKED, None), (INDEX, None), (CONST, used)):
        for i, old in enumerate(placeholders(step, prefix) if group is None else group):
            inner[old] = placeholder_like(new, old, f"{prefix}{i}")
    copy_nodes(new, [n for n in calls(step) if n not in dropped], inner)
    returned = results(step)
    new.output(tuple(inner[n] for i, n in enumerate(returned) if i not in gone))
    groups = (tuple(initial[k] for k in kept), tuple(stacked), tuple(outside[n] for n in used))
    call = graph.create_node("call_module", block.name, groups, name=block.name)
    types = [t for i, t in enumerate(node.meta["type"]) if i not in gone]
    call.meta.update(type=tuple(types), source=node.meta["source"])
    env[node] = call
    rest = [i for i in range(len(returned)) if i not in gone]
    for position, i in enumerate(rest):
        item = graph.call_function(operator.getitem, (call, position))
        item.meta.update(type=types[position], source=node.meta["source"])
        values[(node, i)] = item
    return replace(block, step=new, carries=len(kept), consts=len(groups[2]))


def zeros_and_ones(graph: fx.Graph, mask: fx.Node) -> fx.Node:
    """Whether a mask is one: `all(mask * mask == mask)`."""
    kind: TensorType = mask.meta["type"]
    truth = replace(kind, dtype=torch.bool)
    square = graph.call_function(aten.mul.Tensor, (mask, mask))
    same = graph.call_function(aten.eq.Tensor, (square, mask))
    every = graph.call_function(aten.all.default, (same,))
    for node, type in ((square, kind), (same, truth), (every, TensorType((), (), torch.bool, kind.device))):
        node.meta.update(type=type, source=mask.meta["source"])
    return every
