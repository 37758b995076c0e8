"""A chain of unequal layers, `s_l = h_l(s_{<l})`: its lowering, its sweeps, and its runner.

Each layer is a generated function of the states that it reads: eager's own calls at eager's own shapes. A layer is evaluated
again only if a state that it reads has changed since; it is final, and has eager's bits, once it was evaluated with all of
them final. That takes about as many sweeps as there are layers; to rounding fewer do: once a sweep moves no state by more
than NEAR times the program's own noise, the next one also measures by how many rounding units each layer's state misses its
equation. If by no more than TOLERANCE, and if that sweep and the one before it each moved less than half as much as the one
before, the states it started from are the solution: with moves that halve, what is still to come adds up to less than one
more such move. (Units bound what rounding can do; over sums of a thousand terms it does much less, so units alone would stop
too early. The last bits, on the other hand, wander until the last layer is final. So moves are measured in each layer's own
noise: how far the program in order is from float64, on the first call.)
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import fx

from fxsolve.bits import same_bits
from fxsolve.certificate import CONTRACTION, TOLERANCE
from fxsolve.cost import RECENT, makespan
from fxsolve.ir import CARRY, CONST, Chain, placeholders, results
from fxsolve.iterates import note
from fxsolve.passes.chain import in_order
from fxsolve.passes.doubled import doubled, widened
from fxsolve.passes.graphs import copy_nodes, needed_for, placeholder_like
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from fxsolve.passes.share_cats import share_cats
from fxsolve.passes.units import unit_step
from fxsolve.plan import Plan, Runner, Tensors
from fxsolve.replay import NotReplayable, Replay, kept, replayable
from fxsolve.solution import BlockSolution
from fxsolve.solvers import GaussSeidel, Solver
from fxsolve.solvers.contract import drive
from fxsolve.timing import seconds_of, typical_seconds

TIMED = 2  # evaluations of each layer, of which the quickest counts
NEAR = 4.0  # times a layer's own noise: a sweep that moves more is not the last but one
QUIET, NOISY = 2.0, 32.0  # eps, relative to a state's largest value: what a layer's own noise is taken for at least, at most


class Layer:
    """`h_l`: a function of some states and of what it reads from outside."""

    def __init__(self, layers: fx.Graph, number: int) -> None:
        wanted = results(layers)[number]
        inside = needed_for([wanted])
        states, consts = placeholders(layers, CARRY), placeholders(layers, CONST)
        self.states = [i for i, n in enumerate(states) if n in inside]
        self.consts = [i for i, n in enumerate(consts) if n in inside]
        graph, env = fx.Graph(), {}
        for node in [states[i] for i in self.states] + [consts[i] for i in self.consts]:
            env[node] = placeholder_like(graph, node, node.name)
        copy_nodes(graph, [n for n in layers.nodes if n in inside and n not in env], env)
        graph.output((env[wanted],))
        self.graph = graph
        self.source: str = wanted.meta.get("source", "")
        self.function: Callable[..., tuple[torch.Tensor]] = generated(graph)

    @cached_property
    def bound(self) -> Callable[..., tuple[torch.Tensor]]:
        """The rounding units of the layer's value, from what it reads."""
        return generated(unit_step(self.graph, 1))

    def __call__(self, states: Tensors, consts: Tensors) -> torch.Tensor:
        """The layer's value from the states that it reads, and from all that the block reads from outside."""
        return self.function(*states, *[consts[i] for i in self.consts])[0]

    def residual(self, state: torch.Tensor, value: torch.Tensor, states: Tensors, consts: Tensors) -> float:
        """How far a state is from the layer's value, in rounding units of the component that is furthest."""
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            return 0.0 if same_bits(state, value) else float("inf")
        (bound,) = self.bound(*states, *[consts[i] for i in self.consts])
        gap = (value - state).abs().div_(torch.finfo(value.dtype).eps)
        return float(torch.where(gap == 0, gap, gap / bound).nan_to_num(nan=float("inf")).max())

    def in_double(self, states: Tensors, consts: Tensors) -> torch.Tensor:
        """The layer's value in float64, from states that are; raises RuntimeError where a call is not to be had in it."""
        wide = [widened(consts[i]) for i in self.consts]
        return fx.Interpreter(fx.GraphModule({}, doubled(self.graph))).run(*states, *wide)[0]


class Sweeps:
    """One call's sweeps over a chain: the problem that a solver drives."""

    def __init__(self, block: Chain, layers: Sequence[Layer], consts: Tensors, noise: Sequence[float] | None) -> None:
        self.layers, self.consts = layers, consts
        self.noise = noise  # of each layer, in eps of its largest value; None: until all are final
        self.name, self.equations = block.name, block.length
        self.states = [torch.zeros_like(n.meta["type"].empty()) for n in placeholders(block.layers, CARRY)]
        self.used: list[tuple[torch.Tensor, ...] | None] = [None] * block.length  # what each layer was evaluated from
        self.frontier = 0
        self.rounds: list[list[list[int]]] = []  # for each sweep, and each block in it, the layers that were evaluated
        self.steps = 0  # evaluations that had to follow one another
        self.looked: set[int] = set()  # the sweeps that were looked at closely
        self.residual, self.contraction = 0.0, 0.0  # the largest of all windows

    def open(self, low: int, high: int, block: int) -> None:
        self.window, self.block = range(low, high), block
        self.moves = [float("inf"), float("inf")]  # by the last sweeps, in the noise of the layer that moved most
        self.certified = False

    def sweep(self) -> None:
        looked_at = self.noise is not None and self.moves[-1] < NEAR
        before, block = self.states.copy(), 1 if looked_at else self.block
        evaluated: list[list[int]] = []
        for start in range(self.window.start, self.window.stop, block):
            inside = range(start, min(start + block, self.window.stop))
            again = [n for n in inside if n >= self.frontier and self.evaluate(n, before, start)]
            evaluated += [again] if again else []
        self.rounds.append(evaluated)
        self.steps += max(map(len, evaluated), default=0)
        if self.noise is not None:
            moves = [distance(before[n], self.states[n]) / self.noise[n] for n in self.window]
            self.moves = [*self.moves[-2:], max(moves, default=0.0)]
        if looked_at and all(after < CONTRACTION * once for once, after in pairwise(self.moves)):
            self.look_closely(before)
        note(self.name, self.steps, lambda: list(self.states))

    def look_closely(self, before: Tensors) -> None:
        """Takes the states before a Jacobi sweep as the solution if each is close enough to what the sweep made of them."""
        worst = 0.0
        self.looked.add(len(self.rounds) - 1)
        for n in range(self.frontier, self.window.stop):
            seen = [before[i] for i in self.layers[n].states]
            worst = max(worst, self.layers[n].residual(before[n], self.states[n], seen, self.consts))
            if worst > TOLERANCE:
                return
        self.certified, self.states = True, list(before)
        self.residual = max(self.residual, worst)
        self.contraction = max([self.contraction, *[after / once for once, after in pairwise(self.moves) if once < math.inf]])

    def evaluate(self, number: int, before: Tensors, start: int) -> bool:
        """Evaluates a layer from what its block has computed and the others had before, if that is new to it."""
        seen = tuple([self.states[n] if n >= start else before[n] for n in self.layers[number].states])
        used = self.used[number]
        if used is not None and all(a is b for a, b in zip(used, seen, strict=True)):
            return False
        value = self.layers[number](seen, self.consts)
        self.used[number] = seen
        if not same_bits(value, self.states[number]):  # an equal value stays the same object: who read it is up to date
            self.states[number] = value
        return True

    def commit(self) -> int:
        if self.certified:
            self.frontier = self.window.stop
        while self.frontier < self.window.stop and self.is_final(self.frontier):
            self.frontier += 1
        return self.frontier

    def forget(self) -> None:
        """Lets go of all tensors; which layers each sweep evaluated stays."""
        self.states, self.used, self.consts = [], [], ()

    def is_final(self, number: int) -> bool:
        """Whether a layer, all layers before it being final, was evaluated from them as they are."""
        used = self.used[number]
        return used is not None and all(u is self.states[n] for u, n in zip(used, self.layers[number].states, strict=True))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference in eps, relative to the largest value of b; infinite where that says nothing."""
    if a is b:
        return 0.0
    if not b.is_floating_point():
        return float("inf")
    largest = float(b.abs().max()) if b.numel() else 0.0
    gap = float((a - b).abs().max()) / (largest or 1.0) / torch.finfo(b.dtype).eps if b.numel() else 0.0
    return gap if math.isfinite(gap) else float("inf")


def own_noise(layers: Sequence[Layer], states: Tensors, consts: Tensors) -> list[float]:
    """How far the rounding of a run in order took each state from float64; the least where float64 cannot be had."""
    exact: list[torch.Tensor] = []
    try:
        for layer in layers:
            exact.append(layer.in_double([exact[n] for n in layer.states], consts))
    except RuntimeError:
        return [QUIET] * len(layers)
    far = [distance(e, s) if s.is_floating_point() else 0.0 for e, s in zip(exact, states, strict=True)]
    return [min(max(eps, QUIET), NOISY) for eps in far]


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
        sweeps = Sweeps(self.block, self.layers, consts, self.noise)
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
                self.looks.append(taken(lambda: layer.residual(state, beside, seen, consts)))  # noqa: B023
        self.whole = typical_seconds(lambda: self.straight(*consts))
        if replayable(consts) and self.forced in (None, GaussSeidel()):
            self.record(consts)
        if self.forced is not None:
            self.noise = own_noise(self.layers, states, consts) if self.exactness != "bitwise" else None
            return Plan(self.forced, "Chain", "forced")
        total, slowest = 1e3 * sum(self.seconds), 1e3 * max(self.seconds)
        reason = (
            f"one device evaluates the layers one after another in any order of sweeps, and Gauss-Seidel evaluates each once "
            f"({total:.2f} ms for all, {slowest:.2f} ms for the slowest)"
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
        """What a CUDA graph of the layers in order takes, on a GPU."""
        return [f"  {self.replayed}"] if self.replayed else []

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
        return sum(makespan(costs, devices) for costs in self.costs())

    def costs(self) -> list[list[float]]:
        """For each sweep of the last call the seconds of its blocks of layers, scaled as the last calls say."""
        assert self.sweeps is not None
        found, scale = [], self.scale
        for number, blocks in enumerate(self.sweeps.rounds):
            looks = self.looks if number in self.sweeps.looked else [0.0] * self.block.length
            found.append([scale * sum(self.seconds[n] + self.tests[n] + looks[n] for n in block) for block in blocks])
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
