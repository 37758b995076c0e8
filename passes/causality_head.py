"""What the head of an autoregressive step reads of the network's results, and what that depends on, step by step."""

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
    MOVES,
    Analysis,
    Dependence,
    concrete,
    largest_index,
    slot_indices,
    unknown_constant,
)
from fxsolve.passes.dependence_interpret import evaluate


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


@dataclass(frozen=True)
class Reads:
    """How what a head returns (slot values, outputs) depends on the state, and on the step through its index constants.

    `once` is the same at every step. `moves` pick elements from that by the step's constants; all that the results
    can depend on is in `picked`: what was picked, or is used whole. `rest` computes with it.
    """

    once: tuple[fx.Node, ...]
    moves: tuple[fx.Node, ...]
    picked: tuple[fx.Node, ...]
    rest: tuple[fx.Node, ...]


def reads(head: fx.Graph) -> Reads:
    """Split the ancestors of the head's results."""
    wanted = _ancestors(results(head))
    state = _descendants(head, "f", CARRY)
    noisy, stepwise = _descendants(head, STACKED), _descendants(head, INDEX, STACKED)
    calls = [node for node in head.nodes if node.op == "call_function" and node in wanted]
    once = [node for node in calls if node not in stepwise]
    moving = [n for n in calls if n in stepwise and n in state and n not in noisy and _moves(n)]
    needed = _ancestors(moving)
    moves = [n for n in calls if n in stepwise and n in needed]
    rest = [n for n in calls if n in stepwise and n not in needed]
    takers = [arg for n in rest for arg in n.all_input_nodes] + list(results(head))
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


class HeadSteps:
    """The head under the analysis, one step after the other."""

    def __init__(
        self,
        head: fx.Graph,
        slots: Sequence[Slots],
        table: Sequence[Sequence[int]],
        values: Mapping[str, Tensor],
        analysis: Analysis,
    ) -> None:
        self.plan, self.table, self.analysis = reads(head), table, analysis
        self.inputs, self.indices = placeholders(head), placeholders(head, INDEX)
        self.outputs = results(head)
        self.seeds = seeds(head, slots, values)
        self.env: dict[fx.Node, Any] = {}

    def start(self, features: Sequence[Any]) -> None:
        """Take the network's results, and look at what is the same at every step."""
        known = self.seeds | {f"f{n}": fact for n, fact in enumerate(features)}
        self.env = {node: known[node.name] for node in self.inputs if node.name in known}
        self._run(self.plan.once)

    def reach(self, t: int) -> float:
        """The largest slot that what step t writes and returns depends on.

        What a step picks bounds what it computes, so its arithmetic is looked at only where that bound is too large.
        """
        self.env.update(zip(self.indices, (column[t] for column in self.table), strict=True))
        self._run(self.plan.moves)
        bound = largest_index([self.env[node] for node in self.plan.picked])
        if bound < t:
            return bound
        self._run(self.plan.rest)
        return largest_index([self.env[node] for node in self.outputs])

    def _run(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            self.env[node] = evaluate(node, self.env, self.analysis)
