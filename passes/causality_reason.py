"""Why a loop is not causal, in the user's terms: which slot depends on which, through which op of which line.

The path of the dependence is followed back from the head to the buffer. Which op on it is to blame is a matter of
judgement, made in this order: the op where one entry of a weight or mask makes all the difference; the op after which
every element depends on later slots (a mean over all positions, a softmax without a mask that counts); else the path.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxsolve.ir import results
from fxsolve.passes import dependence_rules
from fxsolve.passes.causality_head import HeadSteps
from fxsolve.passes.dependence import MOVES, RULES, Analysis, Concrete, Dependence, compress, largest_index, thin
from fxsolve.passes.dependence_interpret import describe, evaluate

# How many evaluations of single ops the way back may take, and how many times the proof is tried without one weight.
_EVALUATIONS, _TRIALS = 3000, 6

Env = dict[fx.Node, Any]
Place = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """An entry of a weight or mask on the path of a dependence; `blank` is what bars the way: 0, -inf, a boolean."""

    node: fx.Node
    operand: fx.Node
    entry: Place
    blank: float | bool


def why(network: fx.Graph, env: Env, steps: HeadSteps, reach: Sequence[float]) -> str:
    """The reason of a failed proof: `env` holds the network's abstract values, reach[t] the slots that step t needs."""
    failing = [t for t, index in enumerate(reach) if index >= t]
    said = f"slot {failing[0]} depends on slot {int(reach[failing[0]])}"
    steps.start([env[node] for node in results(network)])
    steps.reach(failing[-1])
    path, weights = _Trail(network, env, steps, failing[-1]).follow()
    path = [node for node in path if _mixes(node)][::-1]
    if (weight := _culprit(network, env, steps, weights[::-1])) is not None:
        place = ", ".join(map(str, weight.entry))
        return f"{said} through {describe(weight.node)}: entry ({place}) of its operand {weight.operand.name} lets it"
    if (node := _spreading(path, env, failing[-1])) is not None:
        return f"{said}: {_verdict(node)}"
    told = [describe(node) for node in path if node in env] or [describe(node) for node in path]
    if len(told) > 4:
        told = [*told[:2], "...", *told[-2:]]
    return f"{said} through {', then '.join(told)}" if told else f"{said}: the head reads it as it is"


def _mixes(node: fx.Node) -> bool:
    """Whether an op lets an element depend on others than those at its own place."""
    known = RULES.get(node.target)
    return (
        node.target is not operator.getitem
        and node.target not in MOVES
        and (known is None or known.__module__ != dependence_rules.__name__)
    )


def _spreading(path: Sequence[fx.Node], env: Env, t: int) -> fx.Node | None:
    """The first op after which nothing is left that depends only on slots before t."""
    for node in path:
        before = [env[n] for n in node.all_input_nodes if n in env and isinstance(env[n], Dependence)]
        if node in env and not _any_before(env[node], t) and any(_any_before(fact, t) for fact in before):
            return node
    return None


def _any_before(fact: Any, t: int) -> bool:
    first = fact[0] if isinstance(fact, tuple) else fact
    return not isinstance(first, Dependence) or bool((thin(first.index) < t).any())


def _verdict(node: fx.Node) -> str:
    if node.target not in RULES:
        return f"{describe(node)} has no dependence rule, so each of its results counts as depending on all slots"
    hint = " (only -inf in a mask excludes a position, finite numbers do not)" if _attends(node) else ""
    return f"{describe(node)} makes every element depend on later slots{hint}"


def _attends(node: fx.Node) -> bool:
    """Whether an op is a softmax, or takes one's result."""
    return "softmax" in str(node.target) or any(
        "softmax" in str(n.target) or (n.target in MOVES and _attends(n)) for n in node.all_input_nodes
    )


def _culprit(network: fx.Graph, env: Env, steps: HeadSteps, weights: Sequence[Weight]) -> Weight | None:
    """The weight without which the proof holds; of several the one that stands alone among zeros."""
    found = [w for w in weights[:_TRIALS] if _holds_without(network, env, steps, w)]
    return max(found, key=lambda w: _loneliness(env[w.operand].value == w.blank, w.entry), default=None)


def _holds_without(network: fx.Graph, env: Env, steps: HeadSteps, weight: Weight) -> bool:
    changed, reached = dict(env), False
    analysis = Analysis(steps.analysis.top)
    for node in network.nodes:
        if node is weight.node:
            value = env[weight.operand].value.clone()
            value[weight.entry] = weight.blank
            changed[node] = evaluate(node, env | {weight.operand: Concrete(value)}, analysis)
            reached = True
        elif reached and node.op == "call_function":
            changed[node] = evaluate(node, changed, analysis)
    steps.start([changed[node] for node in results(network)])
    return all(steps.reach(t) < t for t in range(int(steps.analysis.top) + 1))


def _loneliness(blanks: Tensor, entry: Place) -> float:
    """How many of the entries in line with this one are blank."""
    lines = [blanks[(*entry[:d], slice(None), *entry[d + 1 :])] for d in range(blanks.dim())]
    return sum(float(line.float().mean()) for line in lines)


class _Trail:
    """Follows a dependence on a slot >= t from the head's result back to the buffer, element by element."""

    def __init__(self, network: fx.Graph, env: Env, steps: HeadSteps, t: int) -> None:
        self.features = {f"f{n}": node for n, node in enumerate(results(network))}
        self.env = steps.env | env
        self.outputs, self.t = steps.outputs, t
        self.analysis = Analysis(steps.analysis.top)
        self.left = _EVALUATIONS

    def follow(self) -> tuple[list[fx.Node], list[Weight]]:
        """The nodes on the way, last to first, and the weights that it passes."""
        node: Any = next(n for n in self.outputs if largest_index(self.env[n]) >= self.t)
        item: int | None = None
        place: Place = tuple(self._late(self.env[node])[0].tolist())
        path: list[fx.Node] = []
        weights: list[Weight] = []
        while self.left > 0:
            if node.op == "placeholder":
                if node.name not in self.features:
                    break
                node = self.features[node.name]
            elif node.target is operator.getitem:
                node, item = node.args
            else:
                path.append(node)
                weights.extend(self._weights(node, item, place))
                found = self._source(node, item, place)
                if found is None:
                    break
                node, place = found
                item = None
        return path, weights

    def _late(self, fact: Dependence) -> Tensor:
        """The elements that depend on a slot >= t, one of each class of alike elements: (N, dims)."""
        return (thin(compress(fact.index)) >= self.t).nonzero()

    def _source(self, node: fx.Node, item: int | None, place: Place) -> tuple[fx.Node, Place] | None:
        """An element of an argument through which the element at `place` depends on a slot >= t."""
        arguments = [n for n in node.all_input_nodes if isinstance(self.env.get(n), Dependence)]
        early = {n: self._only(self.env[n], None) for n in arguments}
        for argument in arguments:
            fact = self.env[argument]

            def reaches(kept: Tensor, argument: fx.Node = argument, fact: Dependence = fact) -> bool:
                return self._is_late(node, item, place, early | {argument: self._only(fact, kept)})

            if (found := _one_of(_preferring(self._late(fact), place), reaches)) is not None:
                return argument, found
        return None

    def _weights(self, node: fx.Node, item: int | None, place: Place) -> list[Weight]:
        """Entries of weights and masks through which the element at `place` depends on a slot >= t."""
        found = []
        for operand in node.all_input_nodes:
            fact = self.env.get(operand)
            for blank in _blanks(fact.value) if isinstance(fact, Concrete) else ():

                def reaches(kept: Tensor, operand: fx.Node = operand, blank: float | bool = blank) -> bool:
                    value, where = self.env[operand].value, kept.unbind(1)
                    changed = torch.full_like(value, blank)
                    changed[where] = value[where]
                    return self._is_late(node, item, place, {operand: Concrete(changed)})

                entries = (self.env[operand].value != blank).nonzero()
                if not reaches(entries[:0]) and (entry := _one_of(entries, reaches)) is not None:
                    found.append(Weight(node, operand, entry, blank))
        return found

    def _only(self, fact: Dependence, kept: Tensor | None) -> Dependence:
        """A fact of which only the elements `kept` (and those alike) depend on slots >= t."""
        index = thin(compress(fact.index))
        early = index.clamp_max(self.t - 1.0)
        if kept is not None:
            early[kept.unbind(1)] = index[kept.unbind(1)]
        return replace(fact, index=early.expand(fact.index.shape))

    def _is_late(self, node: fx.Node, item: int | None, place: Place, changed: Env) -> bool:
        self.left -= 1
        found = evaluate(node, self.env | changed, self.analysis)
        fact = found if item is None else found[item]
        return isinstance(fact, Dependence) and float(fact.index[place]) >= self.t


def _blanks(value: Tensor) -> list[float | bool]:
    """The values in a weight or mask that may bar the way."""
    if value.dtype == torch.bool:
        return [False, True]
    if not value.is_floating_point():
        return []
    return [blank for blank in (0.0, -torch.inf) if bool((value == blank).any())]


def _preferring(places: Tensor, first: Place) -> Tensor:
    """The places with one of them, if it is there, in front: the element at its own place."""
    if places.shape[1] != len(first):
        return places
    other = (places != torch.tensor(first, dtype=torch.int64)).any(1)
    return torch.cat([places[~other], places[other]])


def _one_of(candidates: Tensor, reaches: Callable[[Tensor], bool]) -> Place | None:
    """One candidate (row) that suffices, by bisection, the first ones preferred; None where not even all do."""
    if not len(candidates) or not reaches(candidates):
        return None
    if not reaches(candidates[:1]):
        while len(candidates) > 1:
            half = candidates[: len(candidates) // 2]
            candidates = half if reaches(half) else candidates[len(half) :]
    return tuple(candidates[0].tolist())
