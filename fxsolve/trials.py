"""Trials: the search for a recurrence's quickest certified schedule, on the first call's own inputs.

1. The shortest blocks, of powers of two, that are certified say how fast the step forgets.
2. Steps of two lengths of blocks are timed: the cost model (fxsolve.cost) then says what to expect of every length.
3. Those that promise most, the walk in order among them, are tried within a budget, then the quickest few in turns.

The warm-up is three fifths of a block: it brings a far guess close, which takes longer than the rest of the block, where a
small difference dies out.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch

from fxsolve.cost import StepCost, fitted, launch_seconds, pays_from
from fxsolve.lowered import LoweredRecurrence
from fxsolve.memory import held_by
from fxsolve.plan import Candidate, Plan, Tensors
from fxsolve.recurrence import phases, solve
from fxsolve.solution import NotSolved
from fxsolve.solvers import GaussSeidel, JacobiGS, Solver
from fxsolve.timing import seconds_of

COARSE = (16, 32, 64, 128, 256, 512)
CHECKS = (4, 8, *COARSE)  # of which the shortest is taken: a step that forgets quickly is checked in few calls
BLOCKS = (16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512)
SHORTEST = 4  # blocks that a loop is cut into, at the least
SWEEP_LIMIT = 4
FINALISTS, ROUNDS, RACE_SECONDS = 4, 15, 0.5
TRIAL_SECONDS = 0.8  # no further candidates are tried after that, once one is certified
TRIAL_SHARE = 8.0  # or after so many times the original's time, if that is longer
PROMISING = 6  # candidates that are tried, those that the cost model expects most of,
HOPELESS = 6.0  # and none from which it expects so many times the best one's seconds
THREADS_PAY = 1.05

Setting = tuple[Solver, int]  # a solver on so many threads


@dataclass(frozen=True)
class BreakEven:
    """From how many equations on a schedule is expected to be quicker than the original; None: from no number."""

    solver: JacobiGS
    equations: int | None

    def __str__(self) -> str:
        if self.equations is None:
            return f"{self.solver} pays at no length: at these sizes a step takes as long side by side as in order"
        return f"{self.solver} is expected to pay from {self.equations} equations of this size on"


class Trials:
    """The trials of one recurrence, of which each of eager's steps takes `eager` seconds."""

    def __init__(self, lowered: LoweredRecurrence, initial: Tensors, stacked: Tensors, consts: Tensors, eager: float) -> None:
        self.lowered, self.inputs, self.eager = lowered, (initial, stacked, consts), eager
        self.length = lowered.block.length
        self.device = next((x.device for values in self.inputs for x in values), torch.device("cpu"))
        usual = torch.get_num_threads()
        self.counts = sorted({1, usual}) if self.device.type == "cpu" else [usual]  # of threads
        self.coarse = [b for b in COARSE if SHORTEST * b <= self.length]
        self.refused: dict[Solver, str] = {}
        self.expected: dict[Solver, float] = {}
        self.sweeps: dict[Solver, int] = {}
        self.memory: dict[Solver, int] = {}
        self.seconds: dict[Setting, float] = {}
        self.break_even: BreakEven | None = None

    def run(self) -> Plan | None:
        """The quickest certified schedule; None where none is certified: `why` says more."""
        self.lowered.threads = self.counts[0]  # several are slow beyond measure where another process has the cores
        first = next((b for b in self.coarse if self.attempt(solver_of(b))), 0)
        near = [b for b in BLOCKS if first / 2 < b <= 4 * first and SHORTEST * b <= self.length]
        checks = [GaussSeidel(c) for c in CHECKS if 2 * c <= self.length]
        walked = next((c for c in checks if self.attempt(c)), None)
        candidates: list[Solver] = [*map(solver_of, near), *([walked] if walked else [])]
        if near:
            around, step, until_met = self.measured(first, near[-1])
            candidates = self.promising(candidates, around, step, until_met)
        self.try_out(candidates)
        finalists = sorted(self.seconds, key=self.seconds.__getitem__)[:FINALISTS]
        if not finalists:
            return None
        self.race(finalists)
        self.weigh(finalists)
        blocks = next((s for s, _ in finalists if isinstance(s, JacobiGS)), None)
        if near and blocks is not None:
            self.break_even = self.breaks_even(blocks, step, until_met)
        usual = torch.get_num_threads()  # other numbers of threads cost a little outside of the block as well
        solver, threads = min(finalists, key=lambda each: self.seconds[each] * (1.0 if each[1] == usual else THREADS_PAY))
        self.lowered.threads = threads
        self.lowered.forget_replays(solver.block_of(self.length))
        return Plan(solver, "Recurrence", "quickest certified schedule", self.candidates(), SWEEP_LIMIT, threads)

    def attempt(self, solver: Solver) -> bool:
        """Whether a solver reaches its certificate."""
        try:
            _, figures = solve(self.lowered, solver, *self.inputs, self.limit(solver))
            self.sweeps[solver] = figures["sweeps"]
            return True
        except NotSolved as error:
            self.refused[solver] = str(error)
            return False

    def limit(self, solver: Solver) -> int:
        """The sweeps that it may take: a long memory gets more, where no longer block is left."""
        return SWEEP_LIMIT if [solver.block_of(self.length)] == self.coarse[-1:] else 2

    def measured(self, short: int, long: int) -> tuple[float, StepCost, float]:
        """What is done once, before and after all steps; what a step costs; after how many the second sweep meets the first."""
        before, many, after = phases(self.lowered, solver_of(short), *self.inputs, self.limit(solver_of(short)))
        few = phases(self.lowered, solver_of(long), *self.inputs, self.limit(solver_of(long)))[1]
        step = fitted(many, few, launch_seconds(self.device))
        return before.seconds + after.seconds, step, max(0.0, many.rounds - short - 3 * short // 5)

    def promising(self, candidates: list[Solver], around: float, step: StepCost, until_met: float) -> list[Solver]:
        """Those that the cost model expects most of, the best one first."""
        self.expected = {s: around + expected_seconds(s, step, self.length, until_met) for s in candidates}
        if self.device.type != "cpu":  # there a walk in order is one CUDA graph, whose steps cost less than launches
            self.expected |= {s: self.once((s, self.counts[0])) for s in candidates if isinstance(s, GaussSeidel)}
        most = HOPELESS * min(self.expected.values())
        return sorted([s for s in candidates if self.expected[s] <= most], key=self.expected.__getitem__)[:PROMISING]

    def try_out(self, candidates: list[Solver]) -> None:
        """Times the certified ones, each on one thread and on all, within the budget."""
        deadline = time.perf_counter() + max(TRIAL_SECONDS, TRIAL_SHARE * self.length * self.eager)
        counts = self.counts
        for solver in candidates:
            self.lowered.threads = counts[0]
            if (self.seconds and time.perf_counter() > deadline) or not self.attempt(solver):
                continue
            for threads in counts:
                self.seconds[solver, threads] = self.once((solver, threads))
            if self.seconds[solver, counts[-1]] > 2 * self.seconds[solver, counts[0]]:
                counts = counts[:1]

    def race(self, finalists: list[Setting]) -> None:
        """Times them in turns, as a busy machine may favour any of them."""
        rounds: dict[Setting, list[float]] = {each: [] for each in finalists}
        deadline = time.perf_counter() + RACE_SECONDS
        for _ in range(ROUNDS):
            for each in finalists:
                rounds[each].append(self.once(each))
            if time.perf_counter() > deadline:
                break
        self.seconds |= {each: statistics.median(times) for each, times in rounds.items()}

    def weigh(self, finalists: list[Setting]) -> None:
        """How much memory each of them holds at a time. (CUDA graphs hold what is not seen.)"""
        if self.device.type == "cpu":
            solvers = dict.fromkeys(solver for solver, _ in finalists)
            self.memory = {solver: held_by(lambda: self.attempt(solver)) for solver in solvers}  # noqa: B023

    def once(self, setting: Setting) -> float:
        solver, self.lowered.threads = setting
        return seconds_of(lambda: self.attempt(solver))

    def breaks_even(self, solver: JacobiGS, step: StepCost, until_met: float) -> BreakEven:
        length = pays_from(step, solver.block, expected_steps(solver, until_met), self.eager)
        return BreakEven(solver, None if length is None else math.ceil(max(length, SHORTEST * solver.block)))

    def candidates(self) -> tuple[Candidate, ...]:
        """All that were looked at: refused ones, the timed ones, and those that were not worth a trial."""
        timed = [
            Candidate(named(s, n), seconds, "certified", self.expected.get(s), self.sweeps[s], self.memory.get(s))
            for (s, n), seconds in self.seconds.items()
        ]
        known = {s for s, _ in self.seconds} | set(self.refused)
        left = [Candidate(str(s), None, "not tried", seconds) for s, seconds in self.expected.items() if s not in known]
        return (*[Candidate(str(s), None, why) for s, why in self.refused.items()], *timed, *left)


def named(solver: Solver, threads: int) -> str:
    return f"{solver} on {threads} thread{'s' * (threads > 1)}"


def expected_seconds(solver: Solver, step: StepCost, length: int, until_met: float) -> float:
    """What so many steps take in blocks side by side, or all in order.

    The warm-up and the first sweep are as long as the blocks are; the second sweep ends after `until_met` steps.
    """
    if not isinstance(solver, JacobiGS):
        return length * step.of(1)
    return expected_steps(solver, until_met) * step.of(math.ceil(length / solver.block))


def expected_steps(solver: JacobiGS, until_met: float) -> float:
    return solver.block + (solver.warmup or 0) + until_met


def solver_of(block: int) -> JacobiGS:
    return JacobiGS(block, 3 * block // 5)
