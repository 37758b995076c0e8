"""Backpropagation through a block: one autograd function, whose backward solves the adjoint block.

    l_{t-1} = J_t^T l_t + K_t^T g_t                   for t = T .. 1, by the solvers of any recurrence (fxsolve.passes.adjoint)
    dx_t = (l_t, g_t)^T d(s_t, y_t)/dx_t              on the way
    dc = sum_t (l_t, g_t)^T d(s_t, y_t)/dc            one vector-Jacobian product of all T steps (fxsolve.passes.pull_back)

What lies around a block is plain autograd. Double backward is refused by name. Blocks that are solved as fixed points have
a backward of their own (fxsolve.fixed_point_gradient).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxsolve.ir import CARRY, INDEX, STACKED, Recurrence, placeholders, results
from fxsolve.passes.absorb import absorb
from fxsolve.passes.adjoint import adjoint
from fxsolve.passes.batch_step import batch_step
from fxsolve.passes.layouts import without_gaps
from fxsolve.passes.pull_back import pull_back
from fxsolve.passes.readable import generated, readable
from fxsolve.passes.reuse import reuse
from fxsolve.passes.split_step import inputs_apart
from fxsolve.plainly import plainly
from fxsolve.solvers import Solver
from fxsolve.surroundings import transformed
from fxsolve.walk_in_order import Stepwise

if TYPE_CHECKING:
    from fxsolve.fixed_point_gradient import FixedPointGradient
    from fxsolve.schedule import BlockRunner

Tensors = Sequence[torch.Tensor]
Backward = Callable[[Tensors, Tensors, Tensors, Sequence[bool]], list[Any]]
FLOOR = 1 / 16  # eps of the largest cotangent: what lies below is noise in a gradient that sums over all steps


def with_states(block: Recurrence) -> Recurrence:
    """The block, which also returns the state before each step."""
    step = type(block.step)()
    env: dict[Any, Any] = {}
    step.graph_copy(block.step, env)
    step.output(tuple(env[n] for n in [*results(block.step), *placeholders(block.step, CARRY)]))
    return replace(block, step=step, outputs=block.outputs + block.carries)


@dataclass(frozen=True)
class Solved:
    """A solved block, as autograd sees it: results, whether each of them has a gradient, and what its backward keeps.

    backward(given, kept, cotangents, wanted): the gradients of what was given, None where none is wanted or there is none.
    """

    results: Tensors
    real: Sequence[bool]
    kept: Tensors
    backward: Backward


class BlockGradient:
    """The backward of one block, and its generated code. Raises NotDifferentiable."""

    def __init__(self, block: Recurrence, runner_of: type[BlockRunner], forced: Solver | None, exactness: str) -> None:
        pre, self.block = inputs_apart(replace(block, step=absorb(without_gaps(block.step))))
        block = self.block
        self.stepwise = Stepwise(block)
        self.inputs = generated(batch_step(pre, [n.name for n in placeholders(pre, STACKED, INDEX)], block.length))
        self.indices: dict[torch.device, list[torch.Tensor]] = {}
        self.adjoint = adjoint(block)
        program = self.adjoint.program
        (reverse,) = program.blocks.values()
        assert isinstance(reverse, Recurrence)
        self.runner = runner_of(reverse, forced, exactness, None)
        self.runner.completes = True
        self.runner.floor, self.runner.linear = FLOOR, True
        self.reverse = fx.GraphModule({reverse.name: self.runner}, readable(program.graph)).forward
        returned = results(block.step)
        self.forward = with_states(block)
        self.returned = len(returned)
        self.pulls: dict[tuple[int, ...], tuple[Callable[..., Any], list[int]]] = {}

    def pulled_back(self, wanted: tuple[int, ...]) -> tuple[Callable[..., Any], list[int]]:
        """The code for the gradients of some invariants, and which of them it gives."""
        if wanted not in self.pulls:
            graph, places = pull_back(self.block, self.adjoint, wanted)
            self.pulls[wanted] = generated(reuse(graph)), places
        return self.pulls[wanted]

    def apply(self, runner: BlockRunner, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[torch.Tensor, ...]:
        hoisted = self.inputs(*stacked, *self.table(initial[0].device), *consts)
        return Solve.apply(self, runner, *initial, *hoisted, *consts)  # type: ignore[return-value]

    def table(self, device: torch.device) -> list[torch.Tensor]:
        if device not in self.indices:
            self.indices[device] = [torch.tensor(column, device=device) for column in self.block.table]
        return self.indices[device]

    def solved(self, runner: BlockRunner, given: Tensors, wanted: Sequence[bool]) -> Solved:
        values = runner.solved(*split(self.block, given))
        results, states = values[: self.returned], values[self.returned :]
        return Solved(results, [v.is_floating_point() for v in results], states, self.backward)

    def backward(self, given: Tensors, states: Tensors, cotangents: Tensors, wanted: Sequence[bool]) -> list[Any]:
        """The gradients of (initial.., hoisted inputs.., consts..), None where none is wanted."""
        return scaled(lambda small: self.of_order_one(given, states, small, wanted), cotangents)

    def of_order_one(self, given: Tensors, states: Tensors, cotangents: Tensors, wanted: Sequence[bool]) -> list[Any]:
        block, moving, asked = self.block, self.adjoint.moving, self.adjoint.asked
        _, stacked, consts = split(block, given)
        finals = [cotangents[k].contiguous() for k in moving]
        outer = [cotangents[block.carries + k] for k in asked]
        values = self.reverse(*finals, *states, *stacked, *outer, *consts)
        inputs, lams = values[len(moving) : -len(moving)], values[-len(moving) :]
        gradients: list[Any] = [None] * len(given)
        for k, value in zip(moving, values, strict=False):
            gradients[k] = None if k in self.adjoint.ended else value
        for i, value in zip(self.adjoint.reached, inputs, strict=True):
            gradients[block.carries + i] = value
        first = block.carries + block.stacked
        chosen = tuple(i for i in range(block.consts) if wanted[first + i])
        if chosen:
            found, places = self.pulled_back(chosen)
            stacks = [x.contiguous() for x in [*lams, *outer, *inputs, *states, *stacked]]
            for i, value in zip(places, found(*stacks, *consts), strict=True):
                gradients[first + i] = value
        return gradients


class Solve(torch.autograd.Function):
    """One block in the graph of autograd."""

    @staticmethod
    def forward(
        ctx: Any, gradient: BlockGradient | FixedPointGradient, runner: BlockRunner, *given: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        solved = gradient.solved(runner, given, ctx.needs_input_grad[2:])
        ctx.gradient, ctx.count, ctx.pull = gradient, len(given), solved.backward
        ctx.save_for_backward(*given, *solved.kept)
        results = tuple(handed_out(v, solved.kept) for v in solved.results)
        ctx.mark_non_differentiable(*[v for v, real in zip(results, solved.real, strict=True) if not real])
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
        given, kept, wanted = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :], ctx.needs_input_grad[2:]
        with plainly():
            if torch.is_grad_enabled() or transformed(cotangents) or not any(bool(c.any()) for c in cotangents):
                return (None, None, *by_eagers_calls(ctx.gradient, given, cotangents, wanted))
            return (None, None, *ctx.pull(given, kept, cotangents, wanted))


def by_eagers_calls(
    gradient: BlockGradient | FixedPointGradient, given: Tensors, cotangents: Tensors, wanted: Sequence[bool]
) -> list[Any]:
    """The gradients by autograd's own walk through the steps, one after another: where these are to be differentiated
    themselves (create_graph=True), come in batches (is_grads_batched=True), or are exactly zero.
    """
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [x.view_as(x) if w else x for x, w in zip(given, wanted, strict=True)]  # one tensor may be given twice
        values = gradient.stepwise(*split(gradient.block, inputs))
    pairs = [(v, c) for v, c in zip(values, cotangents, strict=True) if v.requires_grad]
    asked = [x for x, w in zip(inputs, wanted, strict=True) if w]
    if not pairs:  # what is wanted reaches no result
        return [None] * len(wanted)
    ours, theirs = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ours, asked, theirs, create_graph=create, allow_unused=True))
    return [next(found) if w else None for w in wanted]


def split(block: Recurrence, given: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """What belongs to (initial, stacked, consts)."""
    stop = block.carries + block.stacked
    return given[: block.carries], given[block.carries : stop], given[stop:]


def scaled(linear: Callable[[Tensors], list[Any]], cotangents: Tensors) -> list[Any]:
    """linear(cotangents), of cotangents that are brought to the order of one, by a power of two: without rounding."""
    exponent = order_of([c for c in cotangents if c.is_floating_point()])
    small = [c * 2.0**-exponent if c.is_floating_point() else c for c in cotangents]
    return [None if g is None else g * 2.0**exponent for g in linear(small)]


def order_of(values: Tensors) -> int:
    """The exponent of two of the largest element; 0 where there is none."""
    largest = max([float(v.abs().max()) for v in values if v.numel()], default=0.0)
    return max(-100, min(math.frexp(largest)[1], 100)) if math.isfinite(largest) and largest else 0


def handed_out(value: torch.Tensor, kept: Tensors) -> torch.Tensor:
    """A value that the user may write to: a copy, if it is kept for the backward, or is a part of something."""
    return value.clone() if value._is_view() or any(value is k for k in kept) else value


def gradients(results: Tensors, inputs: Tensors) -> list[torch.Tensor | None]:
    """A vector-Jacobian product of results, by all inputs that require gradients, with fixed random cotangents."""
    private = torch.Generator("cpu").manual_seed(0)
    outputs = [r for r in results if r.requires_grad]
    cotangents = [torch.randn(r.shape, generator=private, dtype=r.dtype, device="cpu").to(r.device) for r in outputs]
    wanted = [x for x in inputs if x.requires_grad]
    return list(torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True, allow_unused=True))


