"""The causality proof: one pass of the network may stand for all T steps of an autoregressive loop.

    for t: s[slot t] = head(network(s), noise_t)    -->    s = head(network(s), noise)  solved for all slots at once

if the value written to slot t depends only on slots before t. The proof interprets the network once over the largest
slot index that each element depends on (`dependence.py`), and then, for each step t, the head's reads of the result.
Song, Meng, Liao, Ermon, "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving", ICML 2021.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxsolve.ir import CARRY, INDEX, STACKED, Slots, placeholders, results
from fxsolve.passes import (  # noqa: F401  (each registers its rules)
    dependence_lookups,
    dependence_moves,
    dependence_products,
    dependence_reductions,
    dependence_rules,
    dependence_windows,
)
from fxsolve.passes.dependence import (
    MAX_SLOTS,
    MOVES,
    Analysis,
    Dependence,
    Refusal,
    concrete,
    largest_index,
    slot_indices,
    unknown_constant,
)
from fxsolve.passes.dependence_interpret import evaluate, interpret

name = "causality"


@dataclass(frozen=True)
class Proof:
    """Whether the loop may collapse; if not, why.

    `depth`: no more sweeps than this are ever needed (the longest chain of slots that depend on one another).
    `used`, `head_used`: the invariants of network and head on whose values (zeros, masks, indices) the proof relies.
    """

    holds: bool
    reason: str = ""
    depth: int = 0
    used: tuple[str, ...] = ()
    head_used: tuple[str, ...] = ()


def prove(
    network: fx.Graph,
    head: fx.Graph,
    slots: tuple[Slots, ...],
    table: tuple[tuple[int, ...], ...],
    network_values: Mapping[str, Tensor],
    head_values: Mapping[str, Tensor],
) -> Proof:
    """Prove that the values which `head` returns for slot t depend, through `network`, only on slots < t.

    `table[k][t]` is the index constant k at step t. Invariants without a value are taken as non-zero everywhere.
    """
    steps = len(slots[0].offsets)
    if steps >= MAX_SLOTS:
        return Proof(False, f"{steps} slots are more than the analysis counts to ({MAX_SLOTS})")
    in_network, in_head = Analysis(steps - 1.0), Analysis(steps - 1.0)
    try:
        features = network_features(network, slots, network_values, in_network)
        reach = [float(each) for each in head_reach(head, features, slots, table, head_values, in_head)]
    except Refusal as refusal:
        return Proof(False, str(refusal))
    failing = [t for t, index in enumerate(reach) if index >= t]
    if failing:
        return Proof(False, f"slot {failing[0]} depends on slot {int(reach[failing[0]])}")
    return Proof(True, "", chain_length(reach), tuple(sorted(in_network.used)), tuple(sorted(in_head.used)))


def network_features(
    network: fx.Graph, slots: Sequence[Slots], values: Mapping[str, Tensor], analysis: Analysis
) -> tuple[Any, ...]:
    """What each element of the network's results depends on."""
    env = interpret(network, seeds(network, slots, values), analysis)
    return tuple(env[node] for node in results(network))


def seeds(graph: fx.Graph, slots: Sequence[Slots], values: Mapping[str, Tensor]) -> dict[str, Any]:
    """The abstract values of a graph's placeholders: buffers by their geometry, invariants by their values."""
    found: dict[str, Any] = {}
    for node in placeholders(graph):
        kind: Any = node.meta.get("type")
        if node.name.startswith(CARRY):
            found[node.name] = Dependence(slot_indices(slots[int(node.name[1:])], kind))
        elif node.name in values:
            found[node.name] = concrete(values[node.name], node.name)
        elif kind is not None:
            found[node.name] = unknown_constant(kind)
    return found


def chain_length(reach: Sequence[float]) -> int:
    """The longest chain of slots, given that slot t depends at most on the slots up to reach[t] < t."""
    longest = [0]
    for index in reach:
        longest.append(max(longest[-1], 1 + longest[int(index) + 1]))
    return longest[-1]


# ---------------------------------------------------------------- the head, step by step


@dataclass(frozen=True)
class Reads:
    """How the slot values that a head returns depend on the state, and on the step through its index constants.

    `once` is the same at every step. `moves` pick elements from that by the step's constants; all that the slot values
    can depend on is in `picked`: what was picked, or is used whole. `rest` computes with it.
    """

    once: tuple[fx.Node, ...]
    moves: tuple[fx.Node, ...]
    picked: tuple[fx.Node, ...]
    rest: tuple[fx.Node, ...]


def reads(head: fx.Graph, buffers: int) -> Reads:
    """Split the ancestors of the head's slot values."""
    wanted = _ancestors(results(head)[:buffers])
    state = _descendants(head, "f", CARRY)
    noisy, stepwise = _descendants(head, STACKED), _descendants(head, INDEX, STACKED)
    calls = [node for node in head.nodes if node.op == "call_function" and node in wanted]
    once = [node for node in calls if node not in stepwise]
    moving = [n for n in calls if n in stepwise and n in state and n not in noisy and _moves(n)]
    needed = _ancestors(moving)
    moves = [n for n in calls if n in stepwise and n in needed]
    rest = [n for n in calls if n in stepwise and n not in needed]
    takers = [arg for n in rest for arg in n.all_input_nodes] + list(results(head)[:buffers])
    picked = [arg for arg in dict.fromkeys(takers) if arg in state and arg not in rest]
    return Reads(tuple(once), tuple(moves), tuple(picked), tuple(rest))


def _moves(node: fx.Node) -> bool:
    return node.target in MOVES or node.target is operator.getitem


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def _descendants(graph: fx.Graph, *prefixes: str) -> set[fx.Node]:
    found = {node for prefix in prefixes for node in placeholders(graph, prefix)}
    for node in graph.nodes:
        if any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def head_reach(
    head: fx.Graph,
    features: Sequence[Any],
    slots: Sequence[Slots],
    table: Sequence[Sequence[int]],
    values: Mapping[str, Tensor],
    analysis: Analysis,
) -> list[float]:
    """For each step the largest slot that the values which it writes depend on.

    What a step picks bounds what it computes, so its arithmetic is looked at only where that bound is too large.
    """
    plan = reads(head, len(slots))
    env: dict[fx.Node, Any] = {}
    known = seeds(head, slots, values) | {f"f{n}": fact for n, fact in enumerate(features)}
    env.update((node, known[node.name]) for node in placeholders(head) if node.name in known)
    for node in plan.once:
        env[node] = evaluate(node, env, analysis)
    indices = placeholders(head, INDEX)
    found = []
    for t in range(len(slots[0].offsets)):
        env.update(zip(indices, (column[t] for column in table), strict=True))
        for node in plan.moves:
            env[node] = evaluate(node, env, analysis)
        reach = max((largest_index(env[node]) for node in plan.picked), default=-1.0)
        if reach >= t:
            for node in plan.rest:
                env[node] = evaluate(node, env, analysis)
            reach = max(largest_index(env[node]) for node in results(head)[: len(slots)])
        found.append(reach)
    return found
