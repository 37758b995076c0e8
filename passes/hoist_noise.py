"""Hoist noise: draws that depend on no state move before their block, in the program's order.

    for t: e = draw(..); f = draw(..); s = h(s, e, f)   -->   es, fs = draws(T, (.., ..)); for t: s = h(s, es[t], fs[t])

All sweeps then see the noise that eager would have drawn, bit for bit. A block that keeps a draw whose consumption
depends on values is pinned: it cannot be solved out of order.
"""

from __future__ import annotations

import operator

from torch import fx

from fxsolve import prims
from fxsolve.ir import INDEX, STACKED, Program, Recurrence, calls, placeholders
from fxsolve.passes.graphs import copy_nodes, placeholder_like
from fxsolve.passes.noise import pinned, separate_noise
from fxsolve.passes.slots import stack_type

NAME = "hoist noise"


def hoist_noise(program: Program) -> Program:
    """The program with its blocks' draws made before each block."""
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
    """Moves one block's draws in front of its call."""
    step = separate_noise(block.step)
    drawn = [n for n in calls(step) if n.target is prims.draw and not n.all_input_nodes]
    if not drawn or pinned(step):
        return block  # draws must not move past one that stays
    with graph.inserting_before(call):
        specs = tuple(n.args for n in drawn)
        noise = graph.call_function(prims.draws, (block.length, specs))
        types = tuple(stack_type(n.meta["type"], block.length) for n in drawn)
        noise.meta.update(type=types, source=drawn[0].meta["source"])
        items = []
        for i, kind in enumerate(types):
            item = graph.call_function(operator.getitem, (noise, i))
            item.meta.update(type=kind, source=drawn[0].meta["source"])
            items.append(item)
    initial, stacked, consts = call.args
    call.args = (initial, (*stacked, *items), consts)  # type: ignore[misc]
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    before_index = [n for n in placeholders(step) if not n.name.startswith((INDEX, "c"))]
    for node in before_index:
        env[node] = placeholder_like(new, node, node.name)
    for i, node in enumerate(drawn):
        env[node] = placeholder_like(new, node, f"{STACKED}{block.stacked + i}")
    copy_nodes(new, [n for n in step.nodes if n not in env], env)
    return Recurrence(
        block.name,
        block.length,
        new,
        block.carries,
        block.stacked + len(drawn),
        block.consts,
        block.outputs,
        block.table,
        block.source,
    )
