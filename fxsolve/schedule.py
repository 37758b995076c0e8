"""The first scheduler: per block the candidates that apply, timed on the first call's own inputs; the winner is kept.

Repeat       (the same function each step)  in order, until the state repeats bit for bit
FixedPoint   (proved causal, bits probed)   Jacobi: one network pass a sweep
Recurrence   (forgets, certified)           Jacobi-GS over blocks of C steps, warm-up W; in order, without the invariants
neither                                     in order, with eager's own calls
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fxsolve.bits import same_bits
from fxsolve.cost import RECENT, Phase, call_count, predicted
from fxsolve.errors import ScheduleError
from fxsolve.fixed_point import LoweredFixedPoint, all_finite
from fxsolve.ir import CONST, FixedPoint, Recurrence
from fxsolve.lowered import LoweredRecurrence
from fxsolve.passes.causality import Proof, prove
from fxsolve.passes.noise import pinned
from fxsolve.passes.probe import probe_bits, unstable_op
from fxsolve.passes.readable import generated
from fxsolve.passes.sink import sink
from fxsolve.passes.slots import fixed_point
from fxsolve.plan import Plan, Runner, Tensors
from fxsolve.recurrence import phases, solve
from fxsolve.repeat import LoweredRepeat, repeats
from fxsolve.solution import BlockSolution, NotSolved
from fxsolve.solvers import GaussSeidel, Jacobi, Solver
from fxsolve.timing import seconds_of
from fxsolve.trials import CHECKS, BreakEven, Trials
from fxsolve.walk_in_order import WalkInOrder

if TYPE_CHECKING:
    from fxsolve.fixed_point_gradient import FixedPointGradient
    from fxsolve.training import BlockGradient

PROBES = 256  # steps on which a rewritten head is compared with the original
GIVE_UP_AFTER = 2  # unsolved calls in a row before a plan is dropped, or made anew
HELD = 4  # solved calls that make a plan worth making anew


class BlockRunner(Runner):
    """A loop, be it a Recurrence or a FixedPoint or a Repeat."""

    block: Recurrence

    def __init__(
        self, block: Recurrence, forced: Solver | None, exactness: str, known: Plan | None, padded: bool = False
    ) -> None:
        super().__init__()
        self.block = block
        self.padded = padded  # its steps are longer than eager's (fxsolve.passes.growth), and round otherwise:
        self.slack = 0.0  # by so much, relative to the largest value
        self.forced, self.exactness, self.known = forced, exactness, known
        self.gradient: BlockGradient | FixedPointGradient | None = None  # where gradients are asked for
        self.floor = 0.0  # of the rounding units of its state, in eps
        self.linear = False  # whether it is known to be linear in its state
        self.held = self.misses = 0  # calls that the plan solved; those in a row, since, that it did not
        self.patience = HELD
        self.completes = forced is not None  # in order, where there is no certificate; else the call is the original's
        self.proof: Proof | None = None
        self.phases: tuple[Phase, ...] = ()
        self.recent: deque[BlockSolution] = deque(maxlen=RECENT)  # of the last calls, but for the first
        self.break_even: BreakEven | None = None
        self.in_order = generated(block.step)
        self.walk: WalkInOrder | None = None
        self.recurrence: LoweredRecurrence | None = None
        self.fixed: LoweredFixedPoint | None = None
        self.repeat: LoweredRepeat | None = None
        self.kept: dict[int, torch.Tensor] = {}  # what the proof relies on
        self.final: torch.Tensor | None = None  # where padded: the buffer, as it was solved last

    def forward(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[torch.Tensor, ...]:
        if self.gradient is not None:
            return self.gradient.apply(self, initial, stacked, consts)
        return self.solved(initial, stacked, consts)

    def solved(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[torch.Tensor, ...]:
        """The values that the block gives; how it went is in `solution`."""
        start = time.perf_counter()
        decided = self.plan is not None
        if self.plan is None:
            self.plan = self.decide(initial, stacked, consts)
            sweeps = self.plan.bitwise and not self.plan.in_order
            if sweeps and self.forced is None and not self.padded and synchronous(initial):
                self.least = self.block.length * seconds_of(lambda: self.one_step(0, initial, stacked, consts), 2)
            self.phases = self.measured(self.plan, initial, stacked, consts)
            start = time.perf_counter()
        if self.plan.kind == "FixedPoint" and self.kept and not self.still_proved(consts):
            self.plan = self.decide(initial, stacked, consts)
        plan = self.plan
        if self.padded and (plan.kind != "FixedPoint" or plan.in_order):
            raise NotSolved(plan.reason)
        values, figures = self.solve(plan, initial, stacked, consts)
        if self.padded:
            self.final = values[0]
        self.solution = BlockSolution(
            self.block.name,
            plan.kind,
            str(plan.solver),
            self.block.length,
            seconds=time.perf_counter() - start,
            **figures,
        )
        if decided:
            self.recent.append(self.solution)
        return values

    def solve(self, plan: Plan, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[Any, dict[str, Any]]:
        if plan.in_order:
            return self.run_in_order(initial, stacked, consts)
        if plan.kind == "Repeat":
            assert self.repeat is not None
            return self.repeat.solve(initial, consts)
        if plan.kind == "FixedPoint":
            assert self.fixed is not None
            return self.fixed.solve(plan.solver, initial, stacked, consts, plan.limit)
        assert self.recurrence is not None
        try:
            solved = solve(self.recurrence, plan.solver, initial, stacked, consts, plan.limit)
            self.held, self.misses = self.held + 1, 0
            return solved
        except NotSolved as error:
            self.missed(error)
            if not self.completes:
                raise
            values, figures = self.run_in_order(initial, stacked, consts)
            return values, figures | {"fallback": f"completed in order: {error}"}

    def measured(self, plan: Plan, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[Phase, ...]:
        """What the phases of a solution take on these inputs."""
        self.device = next((x.device for x in [*initial, *stacked, *consts]), torch.device("cpu"))
        if pinned(self.block.step):  # a step draws random numbers, which must not be drawn twice
            return ()
        try:
            if plan.in_order or plan.kind == "Repeat":
                step = seconds_of(lambda: self.one_step(0, initial, stacked, consts), 2)
                return (Phase("steps in order", step, self.block.length, call_count(self.block.step), 1),)
            if plan.kind == "FixedPoint":
                assert self.fixed is not None
                return self.fixed.phases(initial, stacked, consts)
            assert self.recurrence is not None
            return phases(self.recurrence, plan.solver, initial, stacked, consts, plan.limit)
        except NotSolved:
            return ()

    def predicted(self, devices: int) -> float | None:
        counted = self.counted()
        return predicted(counted, devices, self.device) if counted else None

    def counted(self) -> list[Phase]:
        """The phases of the last call, each with the rounds that it took, and with its seconds scaled by how far the last
        calls on this device were from the model's; none where that is not known.
        """
        if self.solution is None or not self.phases or self.plan is None:
            return []
        alone = [predicted(self.rounds_of(each), 1, self.device) for each in self.recent]
        far = [each.seconds / model for each, model in zip(self.recent, alone, strict=True) if model]
        scale = statistics.median(far) if far else 1.0
        return [replace(p, seconds=scale * p.seconds) for p in self.rounds_of(self.solution)]

    def rounds_of(self, solution: BlockSolution) -> list[Phase]:
        """The phases as they were measured on the first call, each with the rounds that a call took."""
        assert self.plan is not None
        if self.plan.kind == "FixedPoint" and self.fixed is not None:
            rounds = [self.fixed.shares, solution.steps]
        elif len(self.phases) == 1:
            rounds = [solution.steps]
        else:
            rounds = [1, solution.steps, 1]
        return [replace(p, rounds=n) for p, n in zip(self.phases, rounds, strict=True)]

    def missed(self, error: NotSolved) -> None:
        """Takes note of a call that the plan did not solve. After a few in a row the next call makes a new plan (training
        changes how a step forgets), if the old one had held for a while; for longer each time.
        """
        self.misses += 1
        if self.forced is None and self.misses >= GIVE_UP_AFTER:
            if self.held >= self.patience:
                self.plan, self.known, self.patience = None, None, 4 * self.patience
            elif self.completes:
                self.plan = self.sequential(f"{self.misses} calls in a row were not solved in parallel: {error}")
            self.held = self.misses = 0

    def start_over(self) -> None:
        super().start_over()
        self.held, self.misses, self.patience = 0, 0, HELD
        if isinstance(backward := getattr(self.gradient, "runner", None), Runner):
            backward.start_over()

    def run_in_order(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[Any, dict[str, Any]]:
        """Gauss-Seidel with the recorded step: eager's own calls and shapes."""
        self.walk = self.walk or WalkInOrder(self.block)
        values = self.walk(initial, stacked, consts)
        figures = {
            "sweeps": 1,
            "steps": self.block.length,
            "frontier": (self.block.length,),
            "residual": 0.0,
            "contraction": None,
            "certificate": "in order",
        }
        return values, figures

    def one_step(self, t: int, carry: Tensors, stacked: Tensors, consts: Tensors) -> Sequence[torch.Tensor]:
        """(new carries.., outputs..) of the step that comes t-th: the calls that were recorded, at their own shapes."""
        t = self.block.length - 1 - t if self.block.reverse else t
        return self.in_order(*carry, *[x[t] for x in stacked], *[c[t] for c in self.block.table], *consts)

    def lines(self) -> list[str]:
        """The causality proof, from where on blocks pay, and which rows passes compute."""
        lines = []
        if self.proof is not None:
            held = f"holds, at most {self.proof.depth} sweeps" if self.proof.holds else f"fails: {self.proof.reason}"
            lines.append(f"  causality proof: {held}")
        if self.break_even is not None:
            lines.append(f"  break-even: {self.break_even}")
        if self.fixed is not None and self.fixed.bands is not None:
            lows = [level.low for level in self.fixed.bands.levels if level.usable]
            lines += [f"  passes: of all {self.fixed.bands.size} rows, then of those from row {lows} on"] if lows else []
        return lines

    # -- deciding ---------------------------------------------------------------------------------

    def decide(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> Plan:
        drawing = pinned(self.block.step)
        if drawing:
            return self.sequential(f"how many random numbers a step draws depends on values: {drawing[0]}")
        if self.forced is None and repeats(self.block):
            self.repeat = LoweredRepeat(self.block)
            _, figures = self.repeat.solve(initial, consts)
            if figures["steps"] < self.block.length:
                return Plan(GaussSeidel(), "Repeat", "the same function of the state at each step: it ends where that repeats")
        found = "its steps run in reverse" if self.block.reverse else fixed_point(self.block)
        if isinstance(found, FixedPoint):
            found = self.sunk(found, initial, stacked, consts)
        if isinstance(found, FixedPoint):
            return self.decide_fixed_point(found, initial, stacked, consts)
        return self.decide_recurrence(initial, stacked, consts, found)

    def sequential(self, reason: str) -> Plan:
        if self.forced is not None and not isinstance(self.forced, GaussSeidel):
            raise ScheduleError(f"{self.forced} does not apply to {self.block.name} ({self.block.source}): {reason}")
        return Plan(GaussSeidel(), "Recurrence", reason)

    def decide_fixed_point(self, found: FixedPoint, initial: Tensors, stacked: Tensors, consts: Tensors) -> Plan:
        if isinstance(self.forced, GaussSeidel):
            return Plan(GaussSeidel(), "FixedPoint", "forced")
        values = {f"{CONST}{i}": c for i, c in enumerate(consts)}
        proof = prove(found.network, found.head, found.slots, found.table, values, values)
        self.proof = proof
        if not proof.holds:
            return self.sequential(f"not causal: {proof.reason}")
        try:
            lowered = LoweredFixedPoint(found)
        except Exception as error:  # a head that cannot be batched is solved in order, whatever the cause
            return self.sequential(f"the head cannot be computed for all slots at once: {error}")
        numbers = [int(n[len(CONST) :]) for n in dict.fromkeys([*proof.used, *proof.head_used])]
        self.kept = {i: relied_on(proof, i, consts[i]).clone() for i in numbers}
        reason = self.differing_bits(lowered, found, initial, stacked, consts)
        if reason is not None and self.exactness != "rounding":
            return self.sequential(reason)
        self.fixed, lowered.slack = lowered, self.slack
        solver = self.forced or Jacobi()
        note = ""
        if self.exactness != "rounding":
            unstable = unstable_op(found.head) or self.differing_head(lowered, initial, stacked, consts)
            if unstable is not None:
                lowered.one_by_one = True
                note = f"; final slots take their head's value one by one, because of {unstable}"
        return Plan(solver, "FixedPoint", (reason or "proved causal: each slot depends on earlier slots only") + note)

    def sunk(self, found: FixedPoint, initial: Tensors, stacked: Tensors, consts: Tensors) -> FixedPoint:
        """The block with its head's picks moved up, where that gives the same bits; else as it is."""
        moved = sink(self.block)
        other = None if moved is None else fixed_point(moved)
        if not isinstance(other, FixedPoint):
            return found
        if self.exactness == "rounding":
            return other
        return other if unstable_op(other.head) is None and same_heads(found, other, initial, stacked, consts) else found

    def differing_bits(
        self, lowered: LoweredFixedPoint, found: FixedPoint, initial: Tensors, stacked: Tensors, consts: Tensors
    ) -> str | None:
        """Probes on the very shapes whether the network is causal in bits."""
        length = found.length
        steps = sorted({0, 1, length // 3, length // 2, length - 1} & set(range(length)))
        if not all_finite(lowered.network(*initial, *consts)):
            initial = [torch.zeros_like(b) for b in initial]  # a pass that overflows says nothing
        return probe_bits(lambda *b: lowered.telling_features(b, consts), found, initial, steps, consts)

    def differing_head(self, lowered: LoweredFixedPoint, initial: Tensors, stacked: Tensors, consts: Tensors) -> str | None:
        """Probes on the very shapes whether the head for all slots gives the bits of single slots."""
        private = torch.Generator(initial[0].device).manual_seed(0)
        features = lowered.features(initial, consts)
        for scale in (0.1, 1.0, 5.0):
            reason = lowered.head_differs([noisy(f, scale, private) for f in features], stacked, consts)
            if reason is not None:
                return reason
        return None

    def still_proved(self, consts: Tensors) -> bool:
        assert self.proof is not None
        return all(torch.equal(relied_on(self.proof, i, consts[i]), kept) for i, kept in self.kept.items())

    def decide_recurrence(self, initial: Tensors, stacked: Tensors, consts: Tensors, why: str) -> Plan:
        if self.forced == GaussSeidel():
            return Plan(GaussSeidel(), "Recurrence", "forced")
        if self.exactness == "bitwise":
            return self.sequential(
                "exactness='bitwise': float recurrences reach eager's bits only after about T sweeps, so it stays in order"
            )
        if self.block.carries and not any(x.numel() for x in initial):
            if self.forced is not None:
                raise NotSolved(f"the state of the loop at {self.block.source} is empty, so there is nothing to solve")
            return self.sequential("the state is empty")
        lowered = LoweredRecurrence(self.block, self.floor, self.linear)
        if self.block.carries and not lowered.continuous and (self.forced is None or isinstance(self.forced, GaussSeidel)):
            return self.sequential("the state is discrete or passes a discontinuous op, so only eager's bits will do")
        self.recurrence = lowered
        lowered.own = self.own
        if self.forced is not None:
            return Plan(self.forced, "Recurrence", "forced")
        if self.block.carries == 0:
            return Plan(Jacobi(), "Recurrence", "no state is carried: all steps at once")
        if self.known is not None and self.known.kind == "Recurrence":
            lowered.threads = self.known.threads
            return self.known
        return self.tried(lowered, initial, stacked, consts)

    def tried(self, lowered: LoweredRecurrence, initial: Tensors, stacked: Tensors, consts: Tensors) -> Plan:
        """The quickest certified schedule, or in order."""
        if self.block.length < 2 * CHECKS[0]:
            return self.sequential(f"{self.block.length} equations are too few to cut into blocks")
        step = seconds_of(lambda: self.one_step(0, initial, stacked, consts), 2)
        trials = Trials(lowered, initial, stacked, consts, step)
        plan = trials.run()
        self.break_even = trials.break_even
        if plan is not None:
            return plan
        in_order = self.sequential(f"no schedule is certified: {[*trials.refused.values()][-1]}")
        return replace(in_order, candidates=trials.candidates())


def synchronous(tensors: Tensors) -> bool:
    """Whether calls return when they are done: on a GPU they do not, and clocks read in between tell nothing."""
    return all(x.device.type == "cpu" for x in tensors)


def relied_on(proof: Proof, number: int, const: torch.Tensor) -> torch.Tensor:
    """What a causality proof relies on of an invariant: its values, or only where it is zero (a weight may be trained)."""
    return const if f"{CONST}{number}" in proof.exact else const == 0


def noisy(x: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Real numbers with noise; numbers that count something stay."""
    if not x.is_floating_point():
        return x
    return x + scale * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def same_heads(a: FixedPoint, b: FixedPoint, initial: Tensors, stacked: Tensors, consts: Tensors) -> bool:
    """Probes whether two forms of one block write the same bits, on random buffers with the steps' own noise."""
    private = torch.Generator(initial[0].device).manual_seed(0)
    heads = [generated(each.head) for each in (a, b)]
    for scale in (0.1, 1.0):
        guess = [noisy(x, scale, private) for x in initial]
        features = [generated(each.network)(*guess, *consts)[: each.features] for each in (a, b)]
        for t in range(0, a.length, max(1, a.length // PROBES)):
            ours, theirs = (
                head(*seen, *[x[t] for x in stacked], *[c[t] for c in each.table], *consts)
                for each, head, seen in zip((b, a), heads[::-1], features[::-1], strict=True)
            )
            if not all(same_bits(x.contiguous(), y.contiguous()) for x, y in zip(ours, theirs, strict=True)):
                return False
    return True
