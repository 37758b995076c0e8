"""What a call leaves behind: per block how it was solved, and what was checked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockSolution:
    """How one equation block was solved.

    sweeps counts outer sweeps, steps the network or step evaluations that had to follow one another. `frontier` is the
    number of final equations after each sweep. `residual` is the largest violation of an equation, in rounding units
    (DESIGN: eps times a first-order bound of the step); 0.0 means that every equation holds bit for bit.
    """

    name: str
    kind: str
    solver: str
    equations: int
    sweeps: int
    steps: int
    frontier: tuple[int, ...]
    residual: float
    contraction: float | None
    certificate: str
    seconds: float
    fallback: str | None = None


@dataclass(frozen=True)
class Solution:
    """The last call: its blocks in program order, or why the original ran instead."""

    blocks: tuple[BlockSolution, ...]
    seconds: float
    fallback: str | None = None

    def __str__(self) -> str:
        if self.fallback is not None:
            return f"the original ran ({self.seconds:.4f} s): {self.fallback}"
        rows = [
            f"{b.name} {b.kind}: {b.solver}, {b.equations} equations in {b.sweeps} sweeps ({b.steps} sequential steps), "
            f"{b.certificate}, {b.seconds:.4f} s"
            for b in self.blocks
        ]
        return "\n".join([*rows, f"{self.seconds:.4f} s in all"])


class NotSolved(Exception):
    """Internal: a block did not reach its certificate in the sweeps that pay; the caller completes it in order."""
