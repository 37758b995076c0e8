"""Gauss-Seidel: the original order, one equation after the other. Always right, the fallback of everything."""

from __future__ import annotations

from dataclasses import dataclass

from fxsolve.errors import ScheduleError
from fxsolve.solvers.contract import Solver


@dataclass(frozen=True)
class GaussSeidel(Solver):
    """`s_t = h_t(s_{<t})` for t = 1..T in order: T sequential steps, of eager's own calls.

    `check` is for recurrences: with it, what does not hang on the state leaves the steps, which rounds in another way; so
    each `check` steps are walked once more, all at once, from states beside the solution, to see that they forget.
    """

    check: int | None = None

    def __post_init__(self) -> None:
        if self.check is not None and self.check < 1:
            raise ScheduleError(f"{self}: check must be at least 1")

    def block_of(self, equations: int) -> int:
        return equations

    def __repr__(self) -> str:
        return f"GaussSeidel({'' if self.check is None else f'check={self.check}'})"
