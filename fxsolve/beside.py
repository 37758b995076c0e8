"""Sweeps of a recurrence's blocks beside another walk of the same blocks: what the two together say about every step."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fxsolve.certificate import CONTRACTION, GOOD, KICK, TOLERANCE, Gap, forgetting, grew, in_units, most, weakest, yardsticks

if TYPE_CHECKING:
    from fxsolve.recurrence import RecurrenceProblem


Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Walk:
    """All blocks, side by side and in order inside: the states that they start from, and after each step."""

    starts: list[torch.Tensor]
    states: list[Tensors]
    extras: list[Tensors]


class BesideTheGuess:
    """The first sweep beside the warm-up, which started far away: how the last steps of each block forget."""

    def __init__(self, problem: RecurrenceProblem) -> None:
        self.problem = problem
        self.gap = Gap(torch.full((problem.layout.count,), math.inf, device=problem.device))

    def meets(self, step: int) -> bool:
        """Takes the distance; the warm-up's states are never part of the solution."""
        problem = self.problem
        first, guessed, walk = problem.first, problem.guessed, problem.walk
        assert walk is not None
        if step >= first:
            self.gap.look(walk.states[step], guessed[step], problem.scales)
        if step == problem.layout.block - 1:
            start = walk.states[first - 1] if first else walk.starts
            disturbed = in_units(start, problem.guess, problem.units, problem.layout.count)
            survived = in_units(walk.states[step], guessed[step], problem.units, problem.layout.count)
            left = forgetting(disturbed, survived, most(disturbed))
            if left is not None:
                problem.far = max(float(left.max()), CONTRACTION if self.gap.grew() else 0.0)
        return False


class BesideTheLast:
    """A sweep beside the one before it, which started from other states: where do the two come together?

    Up to there the sweep's own states are the solution, from there on those of the sweep before. The equation at the
    junction holds to the distance between the two, all others bit for bit. What is known about the steps of a block:

        up to the junction           the two sweeps, about `KICK` units apart at the start, come together
        the steps of the warm-up     the warm-up's guess, far away, comes close to the sweep before

    The junction lies behind the first step of the warm-up, so that every step is looked at from two states.
    """

    def __init__(self, problem: RecurrenceProblem, before: Walk) -> None:
        assert problem.walk is not None
        self.problem, self.before, self.own = problem, before, problem.walk
        # a block starts where the one before it ends; the first block starts from the true state, undisturbed
        rows = [problem.lowered.rows(k) for k in range(len(problem.units))]
        units = [torch.cat([u[:r], u[:-r]]) for u, r in zip(problem.units, rows, strict=True)]
        self.disturbed = in_units(problem.starts, before.starts, units, problem.layout.count)
        self.least = weakest(self.disturbed)
        self.gap = Gap(self.least)

    def meets(self, step: int) -> bool:
        """Whether the two are one from this step of all blocks on, to rounding, and the blocks forget."""
        problem = self.problem
        own, other = self.own.states[step], self.before.states[step]
        gap = self.gap.look(own, other, problem.scales)
        last = step == problem.layout.block - 1
        # where all steps were walked at once there is nothing to gain by ending early
        covered = not problem.at_once and problem.far is not None and problem.far < CONTRACTION and step >= problem.first
        if not last and not (covered and float(gap.max()) <= TOLERANCE):
            return False
        units = problem.units_at(step, self.own.states[step - 1] if step else self.own.starts)
        survived = in_units(own, other, units, problem.layout.count)
        final = problem.final
        left = forgetting(self.disturbed[final:], survived[final:], self.least[final:])
        if left is not None:
            problem.ratios[final:] = left  # a block that is final by now keeps the one that it had
            problem.local = max(float(problem.ratios.max()), CONTRACTION if self.gap.grew() else 0.0)
        problem.contraction = problem.far if problem.local is None else problem.local
        before, problem.settling = problem.settling, float(survived.max())
        problem.violation = problem.settling
        enough = TOLERANCE if last and before <= problem.violation else GOOD  # more, where sweeping on takes no more away
        if problem.violation > enough or problem.local is None or problem.local >= CONTRACTION:
            return False
        problem.residual = max(problem.residual, problem.violation)
        return True


class BesideInOrder:
    """A walk in order, beside stretches of it that start KICK units away, all at once: how its steps forget.

    The unit of a component is eps of the largest value that it has in a stretch: it judges no equation, and no kick is
    lost to rounding.
    """

    def __init__(self, problem: RecurrenceProblem, block: int) -> None:
        assert problem.walk is not None
        self.problem = problem
        self.stretches = problem.lowered.stretches(problem.layout.length, block, problem.device)

    def contraction(self) -> float:
        """What is left of the kick at the end of a stretch, at the most; infinite where that cannot be told."""
        problem, stretches = self.problem, self.stretches
        count = stretches.count
        true = [problem.trail(k).index_select(0, stretches.places) for k in range(len(problem.carry))]
        rows = [t.view(-1, count, t[0].numel()) for t in true]
        units = yardsticks([r.abs().amax(0).mul_(torch.finfo(r.dtype).eps) for r in rows], count)
        start = [t[:count] for t in true]
        start = [s.reshape(-1, *s.shape[2:]) if s.dim() > 1 else s for s in start]
        state: Tensors = problem.lowered.kicked(start, units)
        walked: list[Tensors] = []
        for j, given in enumerate(stretches.inputs(problem.hoisted, problem.consts), 1):
            state = stretches.core(*state, *given)[: len(rows)]
            if j % stretches.spacing == 0:
                walked.append(state)
        far = [
            torch.stack(column).view(-1, *unit.shape).sub_(r[stretches.spacing :: stretches.spacing]).abs_().div_(unit).amax(2)
            for column, r, unit in zip(zip(*walked, strict=True), rows, units, strict=True)
        ]
        gaps = torch.cat([torch.full_like(far[0][:1], KICK), functools.reduce(torch.maximum, far)])
        left = float(gaps[-1].max()) / KICK
        return left if math.isfinite(float(gaps.max())) and not grew(gaps) else max(left, CONTRACTION)
