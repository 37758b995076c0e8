"""Backpropagation through a FixedPoint: the adjoint of a triangular system is triangular too.

    X = G(X, c)      -->      l = v + J^T l,     J = dG/dX at the solution,     dc = l^T dG/dc

with v the cotangents of the slots. J is strictly triangular, by the causality proof: each Jacobi sweep `l <- v + J^T l`
makes at least one slot more final, from the last one on. A sweep is one vector-Jacobian product of all slots together:
through the head for all slots and one pass of the network, at X. What the steps return besides their slots adds to v, and
what the buffers held at first has its gradient where no slot lies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fxsolve.bits import differing
from fxsolve.fixed_point import LoweredFixedPoint, all_finite
from fxsolve.ir import CARRY, Recurrence, placeholders, results
from fxsolve.live_zeros import rests_on_live_zeros
from fxsolve.passes.adjoint import NotDifferentiable
from fxsolve.passes.causality import Proof
from fxsolve.passes.readable import generated
from fxsolve.prims import SlotView
from fxsolve.solution import BlockSolution, NotSolved
from fxsolve.solvers import Jacobi, drive
from fxsolve.training import Solve, Solved, scaled, split
from fxsolve.walk_in_order import Stepwise

if TYPE_CHECKING:
    from fxsolve.schedule import BlockRunner

Tensors = Sequence[torch.Tensor]
Found = Sequence[torch.Tensor | None]


class FixedPointGradient:
    """The backward of one block that is to be solved as a fixed point. Raises NotDifferentiable."""

    def __init__(self, block: Recurrence) -> None:
        if any(n.meta["type"].dtype.is_complex for n in [*placeholders(block.step, CARRY), *results(block.step)]):
            raise NotDifferentiable("it computes with complex numbers")
        self.block = self.forward = block
        self.stepwise = Stepwise(block)
        self.known: Linearized | None = None
        self.checked: tuple[Proof | None, list[bool]] = (None, [])
        self.solution: BlockSolution | None = None  # of the last backward

    def apply(self, runner: BlockRunner, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[torch.Tensor, ...]:
        values = Solve.apply(self, runner, *initial, *stacked, *consts)
        self.check(runner, consts)
        return values  # type: ignore[return-value]

    def check(self, runner: BlockRunner, consts: Tensors) -> None:
        """Raises NotSolved where the causality proof rests on zeros that have a gradient themselves."""
        assert runner.fixed is not None and runner.proof is not None and self.known is not None
        proof, asked = runner.proof, [c.requires_grad for c in consts]
        if not any(self.known.real) or (proof is self.checked[0] and asked == self.checked[1]):
            return
        reason = rests_on_live_zeros(runner.fixed.block, proof, consts)
        if reason is not None:
            raise NotSolved(f"gradients are asked for, and the loop at {self.block.source} {reason}")
        self.checked = proof, asked

    def solved(self, runner: BlockRunner, given: Tensors, wanted: Sequence[bool]) -> Solved:
        values = runner.solved(*split(self.block, given))
        plan = runner.plan
        assert plan is not None
        if plan.kind != "FixedPoint" or plan.in_order or runner.fixed is None:
            raise NotSolved(f"gradients are asked for, and the loop at {self.block.source} runs in order: {plan.reason}")
        kept = values[: self.block.carries]
        linear = self.known
        if linear is None or linear.lowered is not runner.fixed or linear.given != list(wanted):
            linear = self.known = Linearized(runner.fixed, given, kept, wanted)

        def backward(given: Tensors, kept: Tensors, cotangents: Tensors, wanted: Sequence[bool]) -> list[Any]:
            start = time.perf_counter()
            adjoint = linear.at(given, kept)
            found = scaled(lambda small: adjoint.gradients(small, wanted), cotangents)
            self.solution = adjoint.solution(time.perf_counter() - start)
            return found

        return Solved(values, linear.real, kept, backward)


class Linearized:
    """A lowered block in the hands of autograd, given which of its inputs (initial.., stacked.., consts..) have gradients.

    `real`: which of its results (buffers.., outputs..) have gradients: a buffer has, if what it held at first or what is
    written to it has.
    """

    def __init__(self, lowered: LoweredFixedPoint, given: Tensors, buffers: Tensors, wanted: Sequence[bool]) -> None:
        self.lowered, self.given = lowered, list(wanted)
        self.network = generated(lowered.block.network)  # none of its calls writes over an operand
        self.wanted = list(wanted)
        count = lowered.block.buffers
        while True:
            made = self.at(given, buffers).results
            before = self.wanted[:count]
            moving = [a or r.requires_grad for a, r in zip(before, made, strict=False)]
            if moving == before:
                break
            self.wanted[:count] = moving
        self.real = [*moving, *(r.requires_grad for r in made[count:])]

    def at(self, given: Tensors, buffers: Tensors) -> Adjoint:
        """The block's adjoint at a solution."""
        lowered = self.lowered
        count, stop = lowered.block.buffers, lowered.block.buffers + lowered.block.stacked
        values = [*buffers, *given[count:]]
        inputs = [x.detach().requires_grad_(moves) for x, moves in zip(values, self.wanted, strict=True)]
        table, views = lowered.on(inputs[0].device)
        buffers, stacked, consts = inputs[:count], inputs[count:stop], inputs[stop:]
        with torch.enable_grad():
            features = self.network(*buffers, *consts)[: lowered.block.features]
            made = lowered.head(*features, *stacked, *table, *consts)
        return Adjoint(lowered, self.wanted, inputs, made, views)


@dataclass
class Adjoint:
    """The adjoint of a block at a solution: its steps as autograd has recorded them."""

    lowered: LoweredFixedPoint
    wanted: Sequence[bool]  # which of the inputs may have gradients, the buffers included
    inputs: Tensors  # (buffers.., stacked.., consts..)
    results: Tensors  # (slot values.., outputs..), of all steps
    views: Sequence[SlotView]
    frontier: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.buffers = self.lowered.block.buffers
        self.moving = [k for k in range(self.buffers) if self.wanted[k]]

    def gradients(self, cotangents: Tensors, wanted: Sequence[bool]) -> list[torch.Tensor | None]:
        """The gradients of (initial.., stacked.., consts..), from the cotangents of (final buffers.., outputs..)."""
        problem = AdjointProblem(self, cotangents)
        self.frontier = drive(problem, Jacobi()) if self.moving else ()
        chosen = [i for i, asked in enumerate(wanted) if asked]
        found: list[torch.Tensor | None] = [None] * len(wanted)
        for i, value in zip(chosen, self.pulled_back(problem.lams, cotangents, chosen), strict=True):
            found[i] = value
        for k in chosen:
            if k < self.buffers:
                found[k] = self.whole(k, cotangents[k], found[k])
                slots = self.views[k].gather(found[k])  # type: ignore[arg-type]
                self.views[k].scatter_(found[k], torch.zeros_like(slots))  # type: ignore[arg-type]
        return found

    def pulled_back(self, lams: Tensors, cotangents: Tensors, places: Sequence[int]) -> Found:
        """The vector-Jacobian product of all slots and outputs, by the inputs at `places`."""
        given = dict(zip(self.moving, lams, strict=True)) | dict(enumerate(cotangents[self.buffers :], self.buffers))
        pairs = [(r, given[i]) for i, r in enumerate(self.results) if i in given and r.requires_grad]
        if not pairs or not places:
            return [None] * len(places)
        outputs, vectors = zip(*pairs, strict=True)
        inputs = [self.inputs[i] for i in places]
        return torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, allow_unused=True)

    def whole(self, k: int, cotangent: torch.Tensor, pulled: torch.Tensor | None) -> torch.Tensor:
        """The cotangent of buffer k as the steps saw it: what came from behind the loop, and what they pulled back."""
        buffer = self.inputs[k]
        total = torch.empty_strided(buffer.shape, buffer.stride(), dtype=buffer.dtype, device=buffer.device)
        return total.copy_(cotangent) if pulled is None else torch.add(cotangent, pulled, out=total)

    def solution(self, seconds: float) -> BlockSolution:
        """How the last gradients were found."""
        block, sweeps = self.lowered.block, len(self.frontier)
        return BlockSolution(
            f"{block.name}_adjoint",
            block.kind,
            str(Jacobi()),
            block.length,
            sweeps=sweeps,
            steps=sweeps,
            frontier=self.frontier,
            residual=0.0,
            contraction=None,
            certificate="every slot was evaluated with all that it hangs on final",
            seconds=seconds,
        )


class AdjointProblem:
    """`l = v + J^T l`; its equations are the slots, from the last one on. See fxsolve.solvers.contract.Problem."""

    def __init__(self, adjoint: Adjoint, cotangents: Tensors) -> None:
        self.adjoint, self.cotangents = adjoint, cotangents
        self.equations = adjoint.lowered.block.length
        self.frontier = 0
        self.lams = [self.slots(k, None).clone() for k in adjoint.moving]

    def open(self, low: int, high: int, block: int) -> None:
        """There is one window, of all slots."""

    def slots(self, k: int, pulled: torch.Tensor | None) -> torch.Tensor:
        return self.adjoint.views[k].gather(self.adjoint.whole(k, self.cotangents[k], pulled))

    def sweep(self) -> None:
        moving = self.adjoint.moving
        found = self.adjoint.pulled_back(self.lams, self.cotangents, moving)
        self.values = [self.slots(k, pulled) for k, pulled in zip(moving, found, strict=True)]

    def commit(self) -> int:
        """The last open slot that changed is final now: all that it hangs on was final before."""
        if not all_finite(self.values):
            return self.commit_one()
        left = self.equations - self.frontier
        changed = torch.zeros(left, dtype=torch.bool, device=self.lams[0].device)
        for lam, value in zip(self.lams, self.values, strict=True):
            changed |= differing(value[:left], lam[:left]).reshape(left, -1).any(1)
            lam[:left] = value[:left]
        places = changed.nonzero()
        self.frontier = self.equations - (int(places[-1]) if len(places) else 0)
        return self.frontier

    def commit_one(self) -> int:
        """A guess may have overflowed, and 0 * inf is NaN: the last open slot is evaluated with all open ones at zero."""
        left = self.equations - self.frontier
        for lam in self.lams:
            lam[:left] = 0
        self.sweep()
        for lam, value in zip(self.lams, self.values, strict=True):
            lam[left - 1] = value[left - 1]
        self.frontier += 1
        return self.frontier
