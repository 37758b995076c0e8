"""Jacobi-GS: blocks in parallel, in order inside each block."""

from __future__ import annotations

from dataclasses import dataclass

from fxsolve.errors import ScheduleError
from fxsolve.solvers.contract import Solver


@dataclass(frozen=True)
class JacobiGS(Solver):
    """Cut 1..T into blocks of `block` equations: Jacobi between blocks, Gauss-Seidel inside (Song et al. 2021, alg. 2).

    `warmup` is for recurrences: before the first sweep the last `warmup` steps of each block are walked, which is enough
    to come close to the blocks' boundaries when the step forgets (None: the whole block).
    """

    block: int
    warmup: int | None = None

    def __post_init__(self) -> None:
        if self.block < 1 or (self.warmup is not None and not 1 <= self.warmup <= self.block):
            raise ScheduleError(f"{self}: block must be at least 1 and warmup between 1 and block")

    def block_of(self, equations: int) -> int:
        return min(self.block, equations)
