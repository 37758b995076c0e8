"""Hoist invariants: what a step computes from its invariants alone moves before the block, and is computed once.

    for t: w = W * mask; a = f(s); b = f(s); s = w @ a + b   -->   w = W * mask; for t: a = f(s); s = w @ a + a

Equal calls of a step become one (common subexpressions); random calls are never equal. A value that the step returns as
it is stays in the step.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from torch import fx

from fxsolve.ir import CONST, Program, Recurrence, calls, is_getitem, placeholders, results
from fxsolve.passes.clean import is_random_target
from fxsolve.passes.graphs import copy_nodes, placeholder_like

NAME = "hoist invariants"


def hoist_invariants(program: Program) -> Program:
    """The program with equal calls of a step shared, and the invariant ones before each block."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    blocks = dict(program.blocks)
    for node in program.graph.nodes:
        block = blocks.get(str(node.target)) if node.op == "call_module" else None
        env[node] = graph.node_copy(node, lambda n: env[n])
        if isinstance(block, Recurrence):
            blocks[block.name] = hoist(graph, env[node], block)
    return Program(graph, blocks, program.leaves, program.outputs, program.mutated, program.guards)


def hoist(graph: fx.Graph, call: fx.Node, block: Recurrence) -> Recurrence:
    """Moves one block's invariant calls in front of its call."""
    step = shared(block.step)
    consts = placeholders(step, CONST)
    moved = invariant_nodes(step)
    if not moved:
        return replace(block, step=step)
    initial, stacked, given = call.args
    outside: dict[fx.Node, fx.Node] = dict(zip(consts, given, strict=True))  # type: ignore[arg-type]
    with graph.inserting_before(call):
        copy_nodes(graph, [n for n in step.nodes if n in moved], outside)
    inside = [n for n in step.nodes if n.op != "placeholder" and n not in moved]
    used = {n for node in inside for n in node.all_input_nodes}
    kept = [n for n in step.nodes if n in used and (n in moved or n in consts)]
    new, env = fx.Graph(), {}
    for node in placeholders(step):
        if node not in consts:
            env[node] = placeholder_like(new, node, node.name)
    for number, node in enumerate(kept):
        env[node] = placeholder_like(new, node, f"{CONST}{number}")
    copy_nodes(new, inside, env)
    call.args = (initial, stacked, tuple(outside[n] for n in kept))
    return replace(block, step=new, consts=len(kept))


def invariant_nodes(step: fx.Graph) -> set[fx.Node]:
    """The calls that depend on no more than invariants and that the step does not return."""
    found: set[fx.Node] = set()
    constants = set(placeholders(step, CONST))
    returned = set(results(step))
    for node in calls(step):
        fixed = all(n in found or n in constants for n in node.all_input_nodes)
        parts = [node, *(user for user in node.users if is_getitem(user))]
        if fixed and not returned.intersection(parts) and not is_random_target(node.target):
            found.add(node)
    return found


def shared(step: fx.Graph) -> fx.Graph:
    """The step with equal calls made once."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    seen: dict[Hashable, fx.Node] = {}
    for node in step.nodes:
        if node.op != "call_function" or is_random_target(node.target):
            env[node] = new.node_copy(node, lambda n: env[n])
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
        key = (node.target, frozen(args), frozen(kwargs))
        if key not in seen:
            seen[key] = new.node_copy(node, lambda n: env[n])
        env[node] = seen[key]
    return new


def frozen(value: Any) -> Hashable:
    """An argument as a key: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if isinstance(value, (list, tuple)):
        return tuple([frozen(v) for v in value])
    if isinstance(value, dict):
        return tuple([(k, frozen(v)) for k, v in value.items()])
    return (type(value), repr(value)) if isinstance(value, (bool, int, float, complex, slice)) else value
