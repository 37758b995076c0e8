"""A chain of unequal layers in a compiled program: its plan, its calls, and what it would take on several devices."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

import torch

from fxsolve.bits import same_bits
from fxsolve.cost import RECENT, makespan
from fxsolve.ir import Chain
from fxsolve.layers import Layer, Sweeps, distance, own_noise, residual
from fxsolve.passes.chain import in_order
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from fxsolve.passes.share_cats import share_cats
from fxsolve.plan import Plan, Runner, Tensors
from fxsolve.replay import NotReplayable, Replay, kept, replayable
from fxsolve.solution import BlockSolution
from fxsolve.solvers import GaussSeidel, Solver
from fxsolve.solvers.contract import drive, windows
from fxsolve.timing import seconds_of, typical_seconds
from fxsolve.together import Together

TIMED = 2  # evaluations of each layer, of which the quickest counts


class ChainRunner(Runner):
    """A chain in a compiled program. On one device no order of sweeps is quicker than the program's own; but that can be
    run as one straight-line program.
    """

    block: Chain

    def __init__(self, block: Chain, forced: Solver | None, exactness: str) -> None:
        super().__init__()
        self.block, self.forced, self.exactness = block, forced, exactness
        self.layers = [Layer(block.layers, number) for number in range(block.length)]
        self.straight = generated(reuse(share_cats(in_order(block))))
        self.seconds: list[float] = []  # of each layer
        self.tests: list[float] = []  # likewise, of comparing its value with the one before
        self.looks: list[float] = []  # likewise, of looking closely at its residual
        self.whole = 0.0  # seconds of all layers in order
        self.replay: Replay | None = None  # of the straight-line program, on a GPU, where that is quicker
        self.replayed = ""  # what came of it
        self.noise: list[float] | None = None  # of each layer; None: sweeps go on until all layers are final
        self.together: list[Together] = []  # the layers of each window as one program
        self.sweeps: Sweeps | None = None  # the last call's
        self.far: deque[float] = deque(maxlen=RECENT)  # the last calls' seconds, over what the cost model said of each

    def forward(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[torch.Tensor | None, ...]:
        """The states that are asked for, each in its place."""
        if self.plan is not None:
            return self.solved(self.plan, consts)
        self.plan = self.decide(consts)
        states = self.solved(self.plan, consts)
        self.far.clear()  # the first call warms up
        return states

    def solved(self, plan: Plan, consts: Tensors) -> tuple[torch.Tensor | None, ...]:
        start = time.perf_counter()
        if plan.in_order:
            return self.run_in_order(consts, start)
        sweeps = Sweeps(self.block, self.layers, consts, self.noise, self.seconds, self.together)
        frontier = drive(sweeps, plan.solver)
        states = tuple(sweeps.states)
        sweeps.forget()
        self.sweeps = sweeps
        self.solution = BlockSolution(
            self.block.name,
            self.block.kind,
            str(plan.solver),
            self.block.length,
            sweeps=len(frontier),
            steps=sweeps.steps,
            frontier=frontier,
            residual=sweeps.residual,
            contraction=sweeps.contraction or None,
            certificate=certificate(sweeps.residual),
            seconds=time.perf_counter() - start,
        )
        self.follow(self.solution.seconds)
        return tuple(states[n] if n in self.block.asked else None for n in range(self.block.length))

    def run_in_order(self, consts: Tensors, start: float) -> tuple[torch.Tensor | None, ...]:
        """All layers one after another, as one straight-line program: eager's calls, with less memory moved."""
        found: list[torch.Tensor | None] = [None] * self.block.length
        states = self.straight(*consts) if self.replay is None else kept(self.replay(*consts))
        for number, state in zip(self.block.asked, states, strict=True):
            found[number] = state
        self.solution = BlockSolution(
            self.block.name,
            self.block.kind,
            str(GaussSeidel()),
            self.block.length,
            sweeps=1,
            steps=self.block.length,
            frontier=(self.block.length,),
            residual=0.0,
            contraction=None,
            certificate="in order",
            seconds=time.perf_counter() - start,
        )
        if not replayable(consts):  # a GPU's calls return before they are done
            self.follow(self.solution.seconds)
        return tuple(found)

    def decide(self, consts: Tensors) -> Plan:
        """Times the layers one by one; sweeps are made if they are asked for."""
        states: list[torch.Tensor] = []
        taken = quickest if self.forced is None else typical_seconds  # closer to the truth, but it takes longer
        for layer in self.layers:
            seen = [states[n] for n in layer.states]
            self.seconds.append(taken(lambda: layer(seen, consts)))  # noqa: B023
            states.append(state := layer(seen, consts))
            beside = state.clone()
            self.tests.append(taken(lambda: (same_bits(state, beside), distance(state, beside))))  # noqa: B023
            if self.forced is not None:
                self.looks.append(taken(lambda: residual(state, beside, layer.bound(seen, consts))))  # noqa: B023
        self.whole = typical_seconds(lambda: self.straight(*consts))
        if replayable(consts) and self.forced in (None, GaussSeidel()):
            self.record(consts)
        if self.forced is not None:
            self.noise = own_noise(self.layers, states, consts) if self.exactness != "bitwise" else None
            for low, high in windows(self.forced, self.block.length) if self.forced != GaussSeidel() else ():
                fuse = self.noise is not None and self.forced.block_of(high - low) == 1
                self.together.append(Together(self.block, low, high, fuse).timed(states, consts))
            return Plan(self.forced, "Chain", "forced")
        total, slowest = 1e3 * sum(self.seconds), 1e3 * max(self.seconds)
        reason = (
            f"on one device no other order of sweeps pays: Gauss-Seidel evaluates each layer once ({total:.2f} ms for all, "
            f"{slowest:.2f} ms for the slowest), and the certificate of any other order alone evaluates as many"
        )
        return Plan(GaussSeidel(), "Chain", reason)

    def record(self, consts: Tensors) -> None:
        """Keeps the straight-line program as a CUDA graph if that gives the same bits, and sooner."""
        try:
            replay = Replay(self.straight, consts, self.own)
        except NotReplayable as why:
            self.replayed = f"no CUDA graph: {why}"
            return
        if not all(map(same_bits, replay(*consts), self.straight(*consts))):
            self.replayed = "no CUDA graph: it gives other bits"
            return
        seconds = typical_seconds(lambda: kept(replay(*consts)))
        self.replayed = f"in order: {self.whole * 1e3:.2f} ms call by call, {seconds * 1e3:.2f} ms as a CUDA graph"
        if seconds < self.whole:
            self.replay, self.whole = replay, seconds

    def lines(self) -> list[str]:
        """What a CUDA graph of the layers in order takes, on a GPU; what a sweep takes."""
        found = [f"  {self.replayed}"] if self.replayed else []
        if self.together:
            taken = [t.seconds for t in self.together]
            plain, fused = 1e3 * sum(t.plain for t in taken), 1e3 * sum(t.fused for t in taken)
            found.append(
                f"  a sweep of all layers: {1e3 * sum(self.seconds):.2f} ms one by one, {plain:.2f} ms as one program"
                + f", {fused:.2f} ms with like layers as one call" * math.isfinite(fused)
            )
        return found

    def outlook(self, devices: int) -> list[str]:
        """What it would take for Jacobi sweeps to pay on so many devices."""
        if self.plan is None or not self.plan.in_order:
            return []
        sweep = makespan([a + b for a, b in zip(self.seconds, self.tests, strict=True)], devices)
        most, on = int(sum(self.seconds) / sweep), f"{devices} device{'s' * (devices > 1)}"
        return [
            f"  Jacobi() on {on}, simulated: {sweep * 1e3:.2f} ms for a sweep of all layers, so it pays with at most {most} of "
            f"{self.block.length} sweeps; compile with solver=fxsolve.Jacobi() to see how many it needs"
        ]

    def predicted(self, devices: int) -> float | None:
        """A sweep takes as long as the device that is done last with its blocks, the stopping tests included."""
        if not self.seconds:
            return None
        if self.sweeps is None or self.plan is None or self.plan.in_order:
            return self.scale * self.whole
        return self.preparing + sum(makespan(costs, devices) for costs in self.costs(devices))

    @property
    def preparing(self) -> float:
        """The seconds that weights take to be laid side by side, scaled as the last calls say."""
        return self.scale * sum(t.seconds.preparing for t in self.together if t.pays)

    def costs(self, devices: int) -> list[list[float]]:
        """For each sweep of the last call the seconds of its blocks of layers, or of one program where that is done sooner on
        so many devices; scaled likewise.
        """
        assert self.sweeps is not None
        found, scale = [], self.scale
        for number, blocks in enumerate(self.sweeps.rounds):
            looks = self.looks if number in self.sweeps.looked else [0.0] * self.block.length
            costs = [scale * sum(self.seconds[n] + self.tests[n] + looks[n] for n in block) for block in blocks]
            at_once = self.sweeps.at_once.get(number, math.inf) + sum(self.tests[n] for block in blocks for n in block)
            found.append([scale * at_once] if scale * at_once < makespan(costs, devices) else costs)
        return found

    @property
    def scale(self) -> float:
        """How much longer the last calls took than layers that are timed one by one say."""
        return statistics.median(self.far) if self.far else 1.0

    def follow(self, seconds: float) -> None:
        """Takes note of how far a call was from what the cost model says."""
        predicted = self.predicted(1)
        if predicted:
            self.far.append(seconds * self.scale / predicted)


def quickest(run: Callable[[], object]) -> float:
    return seconds_of(run, TIMED)


def certificate(residual: float) -> str:
    return f"every equation holds to {residual:.2f} units of its rounding" if residual else "every equation holds bit for bit"
