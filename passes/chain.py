"""Chain: layers that skip connections join, `s_l = h_l(s_{<l})`, become one equation block.

    a = f(x); b = g(cat(x, a)); y = h(cat(x, a, b))    -->   x, a, b, y = block(..)

The states are what the network accumulates: the operands of its concatenations and residual sums, and its results. A layer
is what lies between: it holds at least one product or convolution. What is computed from states without one (sums, norms,
activations) belongs to each layer that reads it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Container, Iterator

from torch import fx, ops
from torch.utils.flop_counter import flop_registry

from fxsolve.ir import CARRY, CONST, Chain, Program, TensorType, calls, contiguous_stride, is_getitem, placeholders, results
from fxsolve.passes.clean import is_random_target
from fxsolve.passes.graphs import copy_nodes, depending_on, placeholder_like

aten = ops.aten
NAME = "chain"
MIN_LAYERS = 4
ACCUMULATE = (aten.add.Tensor, aten.cat.default)


def chain(program: Program) -> Program:
    """The program with its layers as one Chain block, if it has skip connections and no other block."""
    graph = program.graph
    given = [n for n, leaf in zip(placeholders(graph), program.leaves, strict=True) if leaf.kind == "argument"]
    if program.blocks or program.mutated or program.guards or any(is_random_target(n.target) for n in calls(graph)):
        return program
    active = depending_on(graph, given)
    found = states(graph, active)
    if len(found) < MIN_LAYERS:
        return program
    return with_block(program, found, active)


def states(graph: fx.Graph, active: Container[fx.Node]) -> list[fx.Node]:
    """The nodes whose values are the chain's states, in the program's order; none where nothing skips a layer."""
    joined = [n for n in calls(graph) if n in active and n.target in ACCUMULATE]
    depth = depths(graph)
    skips = {n for n in joined if len({depth[m] for m in n.all_input_nodes if m in active}) > 1}
    if not skips:
        return []
    ends = [n for n in results(graph) if n in active and n.op == "call_function"]
    operands = {m for n in skips for m in n.all_input_nodes if m in active and m.op == "call_function"}
    candidates = (operands - skips) | set(ends)
    found = {n for n in candidates if n in ends or any(is_heavy(m) for m in layer(n, candidates, active))}
    while shared := shared_work(found, active):
        found |= shared
    return [n for n in graph.nodes if n in found]


def depths(graph: fx.Graph) -> dict[fx.Node, int]:
    """For each node the most heavy calls on a path to it."""
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        depth[node] = max((depth[n] for n in node.all_input_nodes), default=0) + is_heavy(node)
    return depth


def is_heavy(node: fx.Node) -> bool:
    """Whether a call is a product, a convolution or attention: what torch counts the FLOPs of."""
    return getattr(node.target, "overloadpacket", None) in flop_registry


def layer(state: fx.Node, found: Container[fx.Node], active: Container[fx.Node]) -> set[fx.Node]:
    """The calls between a state and those that it is computed from."""
    inside: set[fx.Node] = set()
    pending = [state]
    while pending:
        node = pending.pop()
        if node not in inside:
            inside.add(node)
            pending += [n for n in node.all_input_nodes if n in active and n.op == "call_function" and n not in found]
    return inside


def shared_work(found: set[fx.Node], active: Container[fx.Node]) -> set[fx.Node]:
    """Values behind a heavy call that several layers would compute: they must be states of their own."""
    count: Counter[fx.Node] = Counter()
    for state in found:
        count.update(layer(state, found, active))
    shared = {n for n, k in count.items() if k > 1 and any(is_heavy(m) for m in layer(n, found, active))}
    return {n for n in shared if isinstance(n.meta["type"], TensorType) and any(u not in shared for u in read_by(n))}


def read_by(node: fx.Node) -> Iterator[fx.Node]:
    """The calls that read a value, or parts of it."""
    for user in node.users:
        yield from read_by(user) if is_getitem(user) else (user,)


def with_block(program: Program, found: list[fx.Node], active: Container[fx.Node]) -> Program:
    """The program that computes what the layers read from outside, calls the block, and returns its states."""
    old = program.graph
    members = {n for state in found for n in layer(state, set(found), active)}
    outside = [n for n in old.nodes if n not in members and n.op != "output"]
    read = [n for n in outside if any(user in members for user in n.users)]
    layers, inner = fx.Graph(), {}
    carries = [placeholder_like(layers, n, f"{CARRY}{i}") for i, n in enumerate(found)]
    inner |= {n: placeholder_like(layers, n, f"{CONST}{i}") for i, n in enumerate(read)}
    computed = []
    for node in [n for n in old.nodes if n in members]:
        copy_nodes(layers, [node], inner)
        if node in found:
            computed.append(inner[node])
            inner[node] = carries[len(computed) - 1]
    layers.output(tuple(computed))
    source = found[0].meta["source"]
    asked = tuple(i for i, n in enumerate(found) if n in results(old))
    block = Chain("block0", len(found), flat_cats(layers), len(read), asked, source)

    graph, env = fx.Graph(), {}
    copy_nodes(graph, outside, env)
    call = graph.create_node("call_module", block.name, ((), (), tuple(env[n] for n in read)), name=block.name)
    call.meta.update(type=tuple(n.meta["type"] for n in found), source=source)
    for number in asked:
        env[found[number]] = graph.call_function(operator.getitem, (call, number))
        env[found[number]].meta.update(found[number].meta)
    graph.output(tuple(env[n] for n in results(old)))
    return Program(graph, {block.name: block}, program.leaves, program.outputs, program.mutated, program.guards)


def in_order(block: Chain) -> fx.Graph:
    """The layers one after another: from what they read from outside to the states that are asked for."""
    old, graph, env = block.layers, fx.Graph(), {}
    for node in placeholders(old, CONST):
        env[node] = placeholder_like(graph, node, node.name)
    states, computed = placeholders(old, CARRY), results(old)
    state_of = {node: state for state, node in zip(states, computed, strict=True)}
    for node in calls(old):
        copy_nodes(graph, [node], env)
        if node in state_of:
            env[state_of[node]] = env[node]
    graph.output(tuple(env[computed[i]] for i in block.asked))
    return graph


def flat_cats(graph: fx.Graph) -> fx.Graph:
    """cat(cat(a, b), c) --> cat(a, b, c), in place: a layer reads states, not the sums of layers before it."""
    for node in calls(graph):
        if node.target is aten.cat.default:
            dim = axis(node)
            parts = [p for n in node.args[0] for p in (n.args[0] if is_cat(n, dim) else [n])]  # type: ignore[union-attr]
            node.args = (parts, dim)
    graph.eliminate_dead_code()
    return graph


def axis(cat: fx.Node) -> int:
    dim = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
    return dim % len(cat.meta["type"].shape)  # type: ignore[operator]


def is_cat(node: fx.Node, dim: int) -> bool:
    """Whether a value is a concatenation along that dimension too, of parts whose strides do not hang on the order."""
    if node.target is not aten.cat.default or axis(node) != dim:
        return False
    kinds = [n.meta["type"] for n in (node, *node.all_input_nodes)]
    return all(kind.stride == contiguous_stride(kind.shape) for kind in kinds)
