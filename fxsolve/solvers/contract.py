"""The contract of solvers and problems, and the driver that runs them.

A triangular system of T equations can be swept in any order. A solver says in which: it cuts 1..T into *windows*, solved
one after another, and each window into *blocks*, solved in parallel (Jacobi between blocks) and in order inside a block
(Gauss-Seidel). The four classical orders are the corners of that square (Song et al. 2021, section 3):

    Gauss-Seidel  window T, block T        Jacobi     window T, block 1
    Jacobi-GS     window T, block C        GS-Jacobi  window w, block 1

A problem knows its equations: it sweeps a window once, commits what became final, and says where the frontier is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Solver:
    """An order of sweeping; subclasses say how long windows and blocks are."""

    def window_of(self, equations: int) -> int:
        return equations

    def block_of(self, equations: int) -> int:
        raise NotImplementedError


class Problem(Protocol):
    """A lowered equation block together with one call's inputs."""

    equations: int

    def open(self, low: int, high: int, block: int) -> None:
        """Starts on the window low..high-1, to be swept in parallel blocks of `block` equations."""
        ...

    def sweep(self) -> None:
        """Evaluates the window's equations that are not final, once."""
        ...

    def commit(self) -> int:
        """Freezes what is final and returns the frontier: the number of leading equations that are final."""
        ...


def windows(solver: Solver, equations: int) -> Iterator[tuple[int, int]]:
    size = max(1, solver.window_of(equations))
    for low in range(0, equations, size):
        yield low, min(low + size, equations)


def drive(problem: Problem, solver: Solver, limit: int | None = None) -> tuple[int, ...]:
    """Sweeps until every equation is final, or until `limit` sweeps are spent; returns the frontier after each sweep.

    Each sweep makes at least one more leading equation (or block of them) final, so a window of n equations needs at most
    n sweeps: reaching that number is success by theorem.
    """
    history: list[int] = []
    for low, high in windows(solver, problem.equations):
        problem.open(low, high, solver.block_of(high - low))
        frontier = low
        while frontier < high and (limit is None or len(history) < limit):
            problem.sweep()
            frontier = problem.commit()
            history.append(frontier)
    return tuple(history)
