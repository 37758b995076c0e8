"""How an equation block is solved, and what every block's runner offers to those that print, draw and choose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from fxsolve.ir import Chain, Recurrence
from fxsolve.solution import BlockSolution
from fxsolve.solvers import GaussSeidel, Solver

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Candidate:
    """A solver that was looked at: what it took, or why it was not tried or does not apply; and what was expected.

    `memory`: the most bytes that it holds at a time, beside what it is given.
    """

    solver: str
    seconds: float | None
    note: str
    expected: float | None = None
    sweeps: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Plan:
    """How a block is solved, and why."""

    solver: Solver
    kind: str
    reason: str
    candidates: tuple[Candidate, ...] = ()
    limit: int | None = None
    threads: int | None = None

    @property
    def in_order(self) -> bool:
        """Whether it evaluates the equations in order, once each: with eager's own calls."""
        return self.kind != "Repeat" and self.solver == GaussSeidel()

    @property
    def bitwise(self) -> bool:
        """Whether every equation holds bit for bit once it is solved."""
        return self.kind in ("FixedPoint", "Repeat") or (self.kind == "Chain" and self.in_order)


class Runner(torch.nn.Module):
    """One equation block in a compiled program. The first call decides its plan, later calls follow it."""

    block: Recurrence | Chain
    forced: Solver | None
    plan: Plan | None = None
    known: Plan | None = None  # what is to be done without trials: as for another size, or as in a file of plans
    solution: BlockSolution | None = None
    least: float | None = None  # seconds that eager's calls take at the least, where that is known
    own: Collection[int] = frozenset()  # storages of the tensors that the program holds: parameters, buffers, constants

    def forward(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[torch.Tensor | None, ...]:
        raise NotImplementedError

    def start_over(self) -> None:
        """Forgets the plan: the next call makes a new one."""
        self.plan = self.known = None

    def predicted(self, devices: int) -> float | None:
        """The seconds of the last call on so many devices: a simulation (fxsolve.cost). None before it is decided."""
        return None

    def outlook(self, devices: int) -> list[str]:
        """What it would take for another schedule to pay on so many devices, in lines for `explain`."""
        return []

    def lines(self) -> list[str]:
        """What `explain` says of this kind of block beside its plan and candidates."""
        return []
