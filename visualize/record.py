"""What the blocks of a compiled callable did in one run, sweep by sweep: what pictures of convergence are made from."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxsolve.codegen import Executable
from fxsolve.errors import FxsolveError
from fxsolve.ir import Chain, FixedPoint, Recurrence
from fxsolve.iterates import Iterate, Notes, keep_iterates
from fxsolve.plan import Runner
from fxsolve.prims import SlotView
from fxsolve.schedule import BlockRunner
from fxsolve.signature import signature
from fxsolve.solution import BlockSolution, NotSolved

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Inputs:
    """What a block was called with, and when it was, in seconds of the notes."""

    initial: Tensors
    stacked: Tensors
    consts: Tensors
    seconds: float


@dataclass(frozen=True)
class BlockRecord:
    """One block's run: how it was solved, and its state at first and after each sweep.

    `distances`: (sweeps + 1, equations, samples), how far each state is from the last one: the largest difference over what
    the equation holds, or 1.0 where a discrete value is another one. Row 0 is the guess before the first sweep. Samples are
    told apart where the slots of a fixed point hold a batch; else there is one. Of a chain, whose layers hold values of
    very different sizes, distances are relative to the largest value of the layer.
    """

    block: FixedPoint | Recurrence | Chain
    solution: BlockSolution
    inputs: Inputs
    iterates: Sequence[Iterate]

    @property
    def relative(self) -> bool:
        return isinstance(self.block, Chain)

    @property
    def discrete(self) -> bool:
        """Whether it holds numbers that are not real: tokens, counts, booleans."""
        return not any(s.is_floating_point() or s.is_complex() for s in self.states[-1])

    @functools.cached_property
    def states(self) -> list[list[torch.Tensor]]:
        """At first and after each sweep, for each tensor of the state (equations, samples, elements); a chain's layers."""
        found = [self.guess()]
        for iterate in self.iterates:
            found.append(self.after(iterate, found[-1]))
        return found

    @functools.cached_property
    def distances(self) -> torch.Tensor:
        last = self.states[-1]
        rows = [self.between(state, last) for state in self.states]
        return torch.stack(rows)

    @functools.cached_property
    def residuals(self) -> torch.Tensor:
        """Likewise how far each state is from what its equation makes of the state as a whole: the next sweep's one.

        Raises FxsolveError where a sweep is no plain evaluation of all equations, whose residual is not known.
        """
        steps = [each.steps for each in self.iterates]
        jacobi = self.solution.solver == "Jacobi()" and isinstance(self.block, FixedPoint)
        if not jacobi or steps != list(range(1, len(steps) + 1)):
            raise FxsolveError(
                f"the residual of {self.block.name} after each sweep is not known: only Jacobi() sweeps of a fixed point, each "
                f"of one pass, evaluate every equation at the state before. Use of='distance'"
            )
        pairs = zip(self.states, self.states[1:], strict=False)
        rows = [self.between(state, following) for state, following in pairs]
        return torch.stack([*rows, torch.zeros_like(rows[0])])

    @property
    def frontier(self) -> tuple[int, ...]:
        """The number of final equations at first and after each sweep: the solution's own. Where the block was completed in
        order after its sweeps, those equations count that these sweeps left as they are after the last of them.
        """
        if len(self.solution.frontier) == len(self.iterates):
            return (0, *self.solution.frontier)
        return tuple(self.sample_frontiers.amin(1).cummax(0).values.tolist())

    @functools.cached_property
    def sample_frontiers(self) -> torch.Tensor:
        """(sweeps + 1, samples): the leading equations of each sample that are as they are at last."""
        return (self.distances == 0).long().cumprod(1).sum(1)

    def guess(self) -> list[torch.Tensor]:
        """The state before the first sweep: a fixed point's buffers, a recurrence's initial state at every step, zeros."""
        if isinstance(self.block, FixedPoint):
            return self.in_slots(self.inputs.initial)
        if isinstance(self.block, Chain):
            return [torch.zeros_like(layer) for layer in self.iterates[-1].state]
        return [rows(c[None].expand(self.block.length, *c.shape)) for c in self.inputs.initial]

    def after(self, iterate: Iterate, before: list[torch.Tensor]) -> list[torch.Tensor]:
        """The state after a sweep. What lies outside of the sweep's window is as it was before."""
        if isinstance(self.block, FixedPoint):
            return self.in_slots(iterate.state)
        if isinstance(self.block, Chain):
            return list(iterate.state)
        found = []
        for whole, part in zip(before, iterate.state, strict=True):
            end = iterate.low + len(part)
            found.append(torch.cat([whole[: iterate.low], rows(part), whole[end:]]))
        return found

    def in_slots(self, buffers: Tensors) -> list[torch.Tensor]:
        assert isinstance(self.block, FixedPoint)
        views = [SlotView.of(s.shape, s.stride, s.offsets, b.device) for s, b in zip(self.block.slots, buffers, strict=True)]
        samples = max(len(self.solution.samples), 1)
        return [rows(view.gather(b), samples) for view, b in zip(views, buffers, strict=True)]

    def between(self, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> torch.Tensor:
        """(equations, samples)."""
        if not isinstance(self.block, Chain):
            return torch.stack([gap(a, b).amax(2) for a, b in zip(ours, theirs, strict=True)]).amax(0).cpu()
        found = []
        for a, b in zip(ours, theirs, strict=True):
            largest = float(b.abs().max()) if a is not b and b.is_floating_point() and b.numel() else 1.0
            found.append(float(gap(a, b).max()) / (largest or 1.0) if a is not b and b.numel() else 0.0)
        return torch.tensor(found, dtype=torch.float64)[:, None]


def rows(values: torch.Tensor, samples: int = 1) -> torch.Tensor:
    """(equations, ...) --> (equations, samples, elements)."""
    return values.reshape(len(values), samples, -1) if values.numel() else values.new_zeros(len(values), samples, 1)


def gap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How far apart two tensors are, element by element: for discrete ones 0.0 or 1.0, infinite where one is not finite."""
    if not a.is_floating_point() and not a.is_complex():
        return (a != b).double()
    far = (a.double() - b.double()).abs().nan_to_num(nan=torch.inf)
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, far)


class Record:
    """One run of a compiled program: its blocks that were swept, by name, and how all blocks were solved."""

    def __init__(self, blocks: Mapping[str, BlockRecord], solutions: Mapping[str, BlockSolution]) -> None:
        self.blocks, self.solutions = dict(blocks), dict(solutions)

    def block(self, name: str | None = None) -> BlockRecord:
        """A block by its name; without one that with the most equations. Raises FxsolveError."""
        if not self.blocks:
            ran = ", ".join(f"{name} by {s.solver}" for name, s in self.solutions.items())
            raise FxsolveError(
                f"nothing was swept ({ran or 'no block was solved'}); compile with solver=fxsolve.Jacobi() to see sweeps"
            )
        if name is None:
            return max(self.blocks.values(), key=lambda b: b.solution.equations)
        if name not in self.blocks:
            raise FxsolveError(f"no block {name!r} was swept; there are {', '.join(self.blocks)}")
        return self.blocks[name]


def record(compiled: Any, *args: Any, **kwargs: Any) -> Record:
    """Runs the compiled program of these arguments once and keeps what its blocks hold after each sweep.

    The program runs even where the original was found to be quicker. Nothing is written to the arguments; the random
    generators are left as they were, so a call that follows draws what was drawn here. Takes the memory of all iterates.

    Raises FxsolveError where the callable was not compiled, or its program does not solve these inputs.
    """
    executable = program_of(compiled, args, kwargs)
    with keep_iterates() as notes:
        inputs = run(executable, args, kwargs, notes)
    found = {}
    for name, runner in executable.runners.items():
        if name in notes.blocks and notes.blocks[name][-1].state and runner.solution is not None:
            found[name] = BlockRecord(equations_of(runner), runner.solution, inputs[name], notes.blocks[name])
    return Record(found, {name: r.solution for name, r in executable.runners.items() if r.solution is not None})


def program_of(compiled: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Executable:
    """The compiled program of a signature; the callable is called once where there is none yet. Raises FxsolveError."""
    compiler = getattr(compiled, "_compiler", None)
    if compiler is None:
        raise FxsolveError(f"{type(compiled).__name__} is not compiled: pass what fxsolve.compile returned")
    if compiler.entries.get(signature(args, kwargs)) is None:
        again, named = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        with torch.random.fork_rng():
            compiled(*again, **named)
    entry = compiler.entries.get(signature(args, kwargs))
    executable = None if entry is None else entry.executable or entry.rejected
    if executable is None:
        raise FxsolveError(f"there is no compiled program: {compiler.last.choice if entry is None else entry.choice}")
    return executable


def run(executable: Executable, args: tuple[Any, ...], kwargs: dict[str, Any], notes: Notes | None = None) -> dict[str, Inputs]:
    """Runs a compiled program beside its callable; returns what its blocks were called with. Raises FxsolveError."""
    seen: dict[str, Inputs] = {}

    def saw(name: str, runner: Runner, inputs: tuple[Tensors, Tensors, Tensors]) -> None:
        seen[name] = Inputs(*inputs, seconds=notes.seconds() if notes is not None else 0.0)

    with ExitStack() as stack, torch.random.fork_rng():
        for name, runner in executable.runners.items():
            hook = runner.register_forward_pre_hook(functools.partial(saw, name))
            stack.callback(hook.remove)
        try:
            executable.values(executable.inputs(pytree.tree_leaves((args, kwargs))))
        except NotSolved as why:
            raise FxsolveError(f"the compiled program does not solve these inputs: {why}") from why
    return seen


def equations_of(runner: Runner) -> FixedPoint | Recurrence | Chain:
    """The block as it was solved last."""
    if isinstance(runner, BlockRunner) and runner.fixed is not None:
        return runner.fixed.block
    return runner.block
