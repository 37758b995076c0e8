"""The causality proof: one pass of the network may stand for all T steps of an autoregressive loop.

    for t: s[slot t] = head(network(s), noise_t)    -->    s = head(network(s), noise)  solved for all slots at once

if the value written to slot t, and whatever else step t returns, depends only on slots before t. The proof interprets the
network once over the largest slot index that each element depends on (`dependence.py`), and then, for each step t, the
head's reads of the result.
Song, Meng, Liao, Ermon, "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving", ICML 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from fxsolve.ir import Slots, results
from fxsolve.passes.causality_head import HeadSteps, seeds
from fxsolve.passes.causality_reason import why
from fxsolve.passes.dependence import MAX_SLOTS, Analysis, Refusal
from fxsolve.passes.dependence_interpret import interpret

name = "causality"


@dataclass(frozen=True)
class Proof:
    """Whether the loop may collapse; if not, why.

    `depth`: no more sweeps than this are ever needed (the longest chain of slots that depend on one another).
    `used`, `head_used`: the invariants of network and head on which the proof relies: on the places of their zeros, or on
    their very values (boolean masks, indices) if they are in `exact`, too.
    """

    holds: bool
    reason: str = ""
    depth: int = 0
    used: tuple[str, ...] = ()
    head_used: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()


def prove(
    network: fx.Graph,
    head: fx.Graph,
    slots: tuple[Slots, ...],
    table: tuple[tuple[int, ...], ...],
    network_values: Mapping[str, Tensor],
    head_values: Mapping[str, Tensor],
) -> Proof:
    """Prove that what `head` returns at step t (slot values, outputs) depends, through `network`, only on slots < t.

    `table[k][t]` is the index constant k at step t. Invariants without a value are taken as non-zero everywhere.
    """
    steps = len(slots[0].offsets)
    if steps >= MAX_SLOTS:
        return Proof(False, f"{steps} slots are more than the analysis counts to ({MAX_SLOTS})")
    in_network, in_head = Analysis(steps - 1.0), Analysis(steps - 1.0)
    try:
        env = interpret(network, seeds(network, slots, network_values), in_network)
        stepwise = HeadSteps(head, slots, table, head_values, in_head)
        stepwise.start([env[node] for node in results(network)])
        reach = [stepwise.reach(t) for t in range(steps)]
    except Refusal as refusal:
        return Proof(False, str(refusal))
    if all(index < t for t, index in enumerate(reach)):
        relied = (in_network.used, in_head.used, in_network.exact | in_head.exact)
        return Proof(True, "", chain_length(reach), *(tuple(sorted(names)) for names in relied))
    return Proof(False, why(network, env, stepwise, reach))


def chain_length(reach: Sequence[float]) -> int:
    """The longest chain of slots, given that slot t depends at most on the slots up to reach[t] < t."""
    longest = [0]
    for index in reach:
        longest.append(max(longest[-1], 1 + longest[int(index) + 1]))
    return longest[-1]
