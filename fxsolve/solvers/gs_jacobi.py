"""GS-Jacobi: windows in order, Jacobi inside a window."""

from __future__ import annotations

from dataclasses import dataclass

from fxsolve.errors import ScheduleError
from fxsolve.solvers.contract import Solver


@dataclass(frozen=True)
class GSJacobi(Solver):
    """Windows of `window` equations, one after the other; all equations of a window at once (Song et al. 2021, alg. 3)."""

    window: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ScheduleError(f"{self}: window must be at least 1")

    def window_of(self, equations: int) -> int:
        return min(self.window, equations)

    def block_of(self, equations: int) -> int:
        return 1
