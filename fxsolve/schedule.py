"""The first scheduler: per block the candidates that apply, timed on the first call's own inputs; the winner is kept.

FixedPoint   (proved causal, bits probed)   Jacobi: one network pass a sweep
Recurrence   (forgets, certified)           Jacobi-GS over blocks of C steps, warm-up W
neither                                     in order, with eager's own calls
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fxsolve.errors import ScheduleError
from fxsolve.fixed_point import LoweredFixedPoint, all_finite
from fxsolve.ir import CONST, FixedPoint, Recurrence
from fxsolve.passes.causality import Proof, prove
from fxsolve.passes.noise import pinned
from fxsolve.passes.probe import probe_bits, unstable_op
from fxsolve.passes.readable import generated
from fxsolve.passes.slots import fixed_point
from fxsolve.recurrence import LoweredRecurrence
from fxsolve.solution import BlockSolution, NotSolved
from fxsolve.solvers import GaussSeidel, Jacobi, JacobiGS, Solver

Tensors = Sequence[torch.Tensor]
BLOCKS = (32, 64, 128, 256, 512)
WARMUPS = (16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 192, 256)
SWEEP_LIMIT = 4
PROMISING = 1.5  # a candidate this much slower than the best at first sight is not timed again
PAYS = 0.95


@dataclass(frozen=True)
class Candidate:
    """A solver that was tried: what it took, or why it does not apply."""

    solver: str
    seconds: float | None
    note: str


@dataclass(frozen=True)
class Plan:
    """How a block is solved, and why."""

    solver: Solver
    kind: str
    reason: str
    candidates: tuple[Candidate, ...] = ()
    limit: int | None = None
    threads: int | None = None


class BlockRunner(torch.nn.Module):
    """One equation block in a compiled program. The first call decides its plan, later calls follow it."""

    def __init__(self, block: Recurrence, forced: Solver | None, exactness: str, known: Plan | None) -> None:
        super().__init__()
        self.block = block
        self.forced, self.exactness, self.known = forced, exactness, known
        self.plan: Plan | None = None
        self.proof: Proof | None = None
        self.solution: BlockSolution | None = None
        self.in_order = generated(block.step)
        self.recurrence: LoweredRecurrence | None = None
        self.fixed: LoweredFixedPoint | None = None
        self.kept: dict[int, torch.Tensor] = {}

    def forward(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[torch.Tensor, ...]:
        start = time.perf_counter()
        if self.plan is None:
            self.plan = self.decide(initial, stacked, consts)
            start = time.perf_counter()
        plan = self.plan
        if plan.kind == "FixedPoint" and self.kept and not self.still_proved(consts):
            self.plan = plan = self.decide(initial, stacked, consts)
        values, figures = self.solve(plan, initial, stacked, consts)
        self.solution = BlockSolution(
            self.block.name,
            plan.kind,
            str(plan.solver),
            self.block.length,
            seconds=time.perf_counter() - start,
            **figures,
        )
        return values

    def solve(self, plan: Plan, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[Any, dict[str, Any]]:
        if isinstance(plan.solver, GaussSeidel):
            return self.run_in_order(initial, stacked, consts)
        if plan.kind == "FixedPoint":
            assert self.fixed is not None
            return self.fixed.solve(plan.solver, initial, stacked, consts, plan.limit)
        assert self.recurrence is not None
        try:
            return self.recurrence.solve(plan.solver, initial, stacked, consts, plan.limit)
        except NotSolved as error:
            if self.forced is None:
                raise
            values, figures = self.run_in_order(initial, stacked, consts)
            return values, figures | {"fallback": f"completed in order: {error}"}

    def run_in_order(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[Any, dict[str, Any]]:
        """Gauss-Seidel with the recorded step: eager's own calls and shapes."""
        block, step = self.block, self.in_order
        carry, outputs = list(initial), []
        for t in range(block.length):
            out = step(*carry, *[x[t] for x in stacked], *[c[t] for c in block.table], *consts)
            carry = list(out[: block.carries])
            outputs.append(out[block.carries :])
        stacks = [torch.stack(column) for column in zip(*outputs, strict=True)]
        figures = {
            "sweeps": 1,
            "steps": block.length,
            "frontier": (block.length,),
            "residual": 0.0,
            "contraction": None,
            "certificate": "in order",
        }
        return (*carry, *stacks), figures

    # -- deciding ---------------------------------------------------------------------------------

    def decide(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> Plan:
        drawing = pinned(self.block.step)
        if drawing:
            return self.sequential(f"how many random numbers a step draws depends on values: {drawing[0]}")
        found = fixed_point(self.block)
        if isinstance(found, FixedPoint):
            return self.decide_fixed_point(found, initial, stacked, consts)
        return self.decide_recurrence(initial, stacked, consts, found)

    def sequential(self, reason: str) -> Plan:
        if self.forced is not None and not isinstance(self.forced, GaussSeidel):
            raise ScheduleError(f"{self.forced} does not apply to {self.block.name} ({self.block.source}): {reason}")
        return Plan(GaussSeidel(), "Recurrence", reason)

    def decide_fixed_point(self, found: FixedPoint, initial: Tensors, stacked: Tensors, consts: Tensors) -> Plan:
        if isinstance(self.forced, GaussSeidel):
            return Plan(self.forced, "FixedPoint", "forced")
        values = {f"{CONST}{i}": c for i, c in enumerate(consts)}
        proof = prove(found.network, found.head, found.slots, found.table, values, values)
        self.proof = proof
        if not proof.holds:
            return self.sequential(f"not causal: {proof.reason}")
        try:
            lowered = LoweredFixedPoint(found)
        except Exception as error:  # a head that cannot be batched is solved in order, whatever the cause
            return self.sequential(f"the head cannot be computed for all slots at once: {error}")
        names = dict.fromkeys([*proof.used, *proof.head_used])
        self.kept = {int(n[len(CONST) :]): values[n].clone() for n in names}
        reason = self.differing_bits(lowered, found, initial, stacked, consts)
        if reason is not None and self.exactness != "rounding":
            return self.sequential(reason)
        self.fixed = lowered
        solver = self.forced or Jacobi()
        note = ""
        if self.exactness != "rounding":
            unstable = unstable_op(found.head) or self.differing_head(lowered, initial, stacked, consts)
            if unstable is not None:
                lowered.one_by_one = True
                note = f"; final slots take their head's value one by one, because of {unstable}"
        return Plan(solver, "FixedPoint", (reason or "proved causal: each slot depends on earlier slots only") + note)

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
            noisy = [
                f + scale * torch.randn(f.shape, dtype=f.dtype, device=f.device, generator=private)
                if f.is_floating_point()
                else f
                for f in features
            ]
            reason = lowered.head_differs(noisy, stacked, consts)
            if reason is not None:
                return reason
        return None

    def still_proved(self, consts: Tensors) -> bool:
        return all(torch.equal(consts[i], kept) for i, kept in self.kept.items())

    def decide_recurrence(self, initial: Tensors, stacked: Tensors, consts: Tensors, why: str) -> Plan:
        if isinstance(self.forced, GaussSeidel):
            return Plan(self.forced, "Recurrence", "forced")
        if self.exactness == "bitwise":
            return self.sequential(
                "exactness='bitwise': float recurrences reach eager's bits only after about T sweeps, so it stays in order"
            )
        lowered = LoweredRecurrence(self.block)
        if self.block.carries and not lowered.continuous and self.forced is None:
            return self.sequential("the state is discrete or passes a discontinuous op, so only eager's bits will do")
        self.recurrence = lowered
        if self.forced is not None:
            return Plan(self.forced, "Recurrence", "forced")
        if self.block.carries == 0:
            return Plan(Jacobi(), "Recurrence", "no state is carried: all steps at once")
        if self.known is not None and not isinstance(self.known.solver, GaussSeidel):
            lowered.threads = self.known.threads
            return replace(self.known, reason=self.known.reason + " (as found before for another size)")
        return self.tried(lowered, initial, stacked, consts)

    def tried(self, lowered: LoweredRecurrence, initial: Tensors, stacked: Tensors, consts: Tensors) -> Plan:
        """Finds the shortest warm-up that is certified, then the quickest block length for it."""
        length = self.block.length
        if length < 4 * WARMUPS[0]:
            return self.sequential(f"{length} equations are too few to cut into blocks")

        def attempt(solver: Solver, limit: int) -> None:
            lowered.solve(solver, initial, stacked, consts, limit)

        tried: list[Candidate] = []
        warmup = None
        lowered.threads = 1
        for candidate in (w for w in WARMUPS if length >= 4 * w):
            try:
                attempt(JacobiGS(max(candidate, min(64, length // 4)), candidate), 1)
            except NotSolved as error:
                tried.append(Candidate(f"a warm-up of {candidate} steps", None, str(error)))
                continue
            warmup = candidate
            break
        warmup = warmup or max(w for w in WARMUPS if length >= 4 * w)  # a long memory: further sweeps may reach over it
        best: tuple[float, Solver] | None = None
        for block in sorted({b for b in BLOCKS if b > warmup and length >= 4 * b} | {warmup}):
            solver = JacobiGS(block, warmup)
            try:
                attempt(solver, SWEEP_LIMIT)  # generates the code
                seconds = timed(lambda: attempt(solver, SWEEP_LIMIT), 1)  # noqa: B023
                if best is None or seconds < PROMISING * best[0]:
                    seconds = min(seconds, timed(lambda: attempt(solver, SWEEP_LIMIT)))  # noqa: B023
            except NotSolved as error:
                tried.append(Candidate(str(solver), None, str(error)))
                continue
            tried.append(Candidate(str(solver), seconds, "certified"))
            if best is None or seconds < best[0]:
                best = (seconds, solver)
        if best is None:
            plan = self.sequential(f"no parallel schedule is certified: {tried[-1].note}")
            return replace(plan, candidates=tuple(tried))
        solver = best[1]
        if torch.get_num_threads() > 1:
            lowered.threads = None
            seconds = timed(lambda: attempt(solver, SWEEP_LIMIT), 3)
            tried.append(Candidate(f"{solver} on {torch.get_num_threads()} threads", seconds, "certified"))
            lowered.threads = None if seconds < best[0] else 1
        return Plan(solver, "Recurrence", "quickest certified schedule", tuple(tried), SWEEP_LIMIT, lowered.threads)


def timed(run: Callable[[], Any], repeats: int = 2) -> float:
    """The best of a few runs, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
