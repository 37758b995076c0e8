"""The layers of a window in one program, from states that all are from before: a Jacobi sweep, as one call.

    plain   the layers' own calls, with their bits; what several layers compute, running sums say, is computed once
    fused   layers of one form as one call (fxsolve.passes.horizontal), which rounds otherwise
    units   the rounding units of all of them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from fxsolve.ir import CARRY, Chain, placeholders, results
from fxsolve.passes.graphs import copy_nodes, needed_for, parted, placeholder_like
from fxsolve.passes.horizontal import horizontal
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from fxsolve.passes.share_cats import share_cats
from fxsolve.passes.units import unit_step
from fxsolve.plan import Tensors
from fxsolve.timing import typical_seconds

Program = Callable[..., Tensors]
Sweep = Callable[[Tensors], Tensors]
PAID_BACK = 4  # sweeps that are to save what it takes to lay weights side by side


@dataclass(frozen=True)
class Seconds:
    """What a sweep takes, what its weights take to be laid side by side, and what all units take."""

    plain: float
    fused: float
    preparing: float
    looking: float


class Together:
    """`s_n = h_n(s)` for the layers low..high-1."""

    seconds: Seconds

    def __init__(self, block: Chain, low: int, high: int, fuse: bool) -> None:
        self.low, self.high, self.fuse = low, high, fuse and may_be_fused(block)
        self.graph = layers_of(block, low, high)
        self.plain: Program = generated(reuse(share_cats(self.graph)))

    @cached_property
    def units(self) -> Program:
        return generated(unit_step(self.graph, self.high - self.low))

    @cached_property
    def parts(self) -> tuple[Program, Program]:
        """What lays the weights side by side, and the fused sweep."""
        fused = horizontal(self.graph)
        weights, sweep = parted(fused, placeholders(fused, CARRY))
        return generated(weights), generated(reuse(sweep))

    @property
    def pays(self) -> bool:
        """Whether a few fused sweeps save more than the laying side by side takes."""
        return self.fuse and self.seconds.preparing < PAID_BACK * (self.seconds.plain - self.seconds.fused)

    def sweep(self, consts: Tensors) -> Sweep:
        prepare, sweep = self.parts
        prepared = prepare(*consts)
        return lambda states: sweep(*states, *prepared)

    def least(self, fused: bool) -> float:
        """The seconds of the quicker program."""
        return min(self.seconds.plain, self.seconds.fused) if fused else self.seconds.plain

    def timed(self, states: Tensors, consts: Tensors) -> Together:
        """With its programs timed on such states."""
        fused, preparing = float("inf"), 0.0
        if self.fuse:
            sweep = self.sweep(consts)
            fused, preparing = typical_seconds(lambda: sweep(states)), typical_seconds(lambda: self.sweep(consts))
        plain = typical_seconds(lambda: self.plain(*states, *consts))
        self.seconds = Seconds(plain, fused, preparing, typical_seconds(lambda: self.units(*states, *consts)))
        return self


def layers_of(block: Chain, low: int, high: int) -> fx.Graph:
    """The layers of a window: all that they may read goes in, their values come out."""
    graph, wanted = fx.Graph(), results(block.layers)[low:high]
    env = {node: placeholder_like(graph, node, node.name) for node in placeholders(block.layers)}
    inside = needed_for(wanted)
    copy_nodes(graph, [n for n in block.layers.nodes if n in inside and n not in env], env)
    graph.output(tuple(env[n] for n in wanted))
    return graph


def may_be_fused(block: Chain) -> bool:
    """Whether all states are of one floating dtype on one device."""
    kinds = [n.meta["type"] for n in placeholders(block.layers, CARRY)]
    return len({(k.dtype, k.device) for k in kinds}) == 1 and kinds[0].dtype.is_floating_point
