"""The solvers' contract and the driver, on small triangular systems that are solved by hand."""

from __future__ import annotations

import pytest

from fxsolve import GaussSeidel, GSJacobi, Jacobi, JacobiGS, ScheduleError
from fxsolve.solvers import Solver, drive


class Chain:
    """s_t = s_{t-1} + t, s_0 = 0: every equation needs the one before it."""

    def __init__(self, equations: int) -> None:
        self.equations = equations
        self.values = [0] * equations
        self.final = 0

    def open(self, low: int, high: int, block: int) -> None:
        self.high, self.block = high, block

    def sweep(self) -> None:
        old = list(self.values)
        for start in range(self.final, self.high, self.block):
            previous = old[start - 1] if start else 0
            for t in range(start, min(start + self.block, self.high)):
                previous = self.values[t] = previous + t + 1

    def commit(self) -> int:
        self.final = min(self.final + self.block, self.high)
        while self.final < self.high and self.values[self.final] == self.values[self.final - 1] + self.final + 1:
            self.final += 1
        return self.final


@pytest.mark.parametrize(
    ("solver", "sweeps"),
    [(GaussSeidel(), 1), (Jacobi(), 12), (JacobiGS(4), 3), (JacobiGS(5), 3), (GSJacobi(3), 12), (GSJacobi(20), 12)],
    ids=str,
)
def test_every_order_solves_the_system_in_its_number_of_sweeps(solver: Solver, sweeps: int) -> None:
    problem = Chain(12)
    history = drive(problem, solver)
    assert problem.values == [sum(range(1, t + 2)) for t in range(12)]
    assert len(history) == sweeps
    assert list(history) == sorted(history) and history[-1] == 12  # the frontier never moves back


def test_a_limit_ends_the_sweeps() -> None:
    problem = Chain(12)
    assert drive(problem, Jacobi(), limit=5) == (1, 2, 3, 4, 5)
    assert problem.values[:5] == [1, 3, 6, 10, 15]


@pytest.mark.parametrize("make", [lambda: JacobiGS(0), lambda: JacobiGS(4, 5), lambda: JacobiGS(4, 0), lambda: GSJacobi(0)])
def test_sizes_that_make_no_sense(make) -> None:
    with pytest.raises(ScheduleError, match="at least 1"):
        make()
