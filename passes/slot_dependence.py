"""Which slots each slot of a fixed point depends on, group by group: the analysis of the causality proof, seen whole.

The proof follows the LARGEST slot that a value depends on (`dependence.py`). Here the same rules run once for each group of
slots, on a buffer in which the group's slots alone count: what they reach depends on that group, or could not be shown not
to. So the relation is a superset of the true one, and as sharp as the proof is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fxsolve.ir import CARRY, FixedPoint, placeholders, results
from fxsolve.passes.causality_head import HeadSteps, seeds
from fxsolve.passes.dependence import Analysis, Dependence, index_of, pointwise, shape_of
from fxsolve.passes.dependence_interpret import interpret

name = "slot dependence"


@dataclass(frozen=True)
class SlotDependence:
    """`reached[t, g]`: what step t writes or returns may depend on a slot of group g, which are the slots
    `starts[g]` .. `starts[g + 1] - 1`.
    """

    reached: Tensor
    starts: tuple[int, ...]


def slot_dependence(block: FixedPoint, values: Mapping[str, Tensor], groups: int) -> SlotDependence:
    """The relation of all steps to at most `groups` groups of neighbouring slots; `values` are the invariants, by name.

    Raises Refusal where the network draws random numbers or mutates.
    """
    groups = min(groups, block.length)
    starts = tuple(block.length * g // groups for g in range(groups + 1))
    facts = seeds(block.network, block.slots, values)
    columns = [column(block, facts, values, low, high) for low, high in pairwise(starts)]
    return SlotDependence(torch.stack(columns, 1), starts)


def column(block: FixedPoint, facts: dict[str, Any], values: Mapping[str, Tensor], low: int, high: int) -> Tensor:
    """For each step, whether it depends on one of the slots low..high-1."""
    in_network, in_head = Analysis(block.length - 1.0), Analysis(block.length - 1.0)

    def only(index: Tensor) -> Tensor:  # all as the group's first slot
        return torch.where((low <= index) & (index < high), float(low), -1.0)

    seen = facts | {
        node.name: Dependence(pointwise(only, index_of(facts[node.name]), shape=shape_of(facts[node.name])))
        for node in placeholders(block.network, CARRY)
    }
    env = interpret(block.network, seen, in_network)
    stepwise = HeadSteps(block.head, block.slots, block.table, values, in_head)
    stepwise.start([env[node] for node in results(block.network)])
    return torch.tensor([stepwise.reach(t) >= 0 for t in range(block.length)])
