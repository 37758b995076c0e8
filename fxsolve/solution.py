"""What a call leaves behind: per block how it was solved, and what was checked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockSolution:
    """How one equation block was solved.

    sweeps counts outer sweeps, steps the network or step evaluations that had to follow one another. `frontier` is the
    number of final equations after each sweep. `samples` says for each sample of a batch after how many passes its values
    did not change any more, where a block's slots hold samples. `residual` is the largest violation of an equation, in
    rounding units (eps times a first-order bound of the step); 0.0 means that every equation holds bit for bit.
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
    samples: tuple[int, ...] = ()

    @property
    def spread(self) -> str:
        """How far the samples of a batch lie apart, as a part of a sentence."""
        low, high = min(self.samples, default=0), max(self.samples, default=0)
        return f"its samples final after {low} to {high}, " if low < high else ""


@dataclass(frozen=True)
class Solution:
    """The last call: its blocks in program order, or why the original ran instead. The `seconds` of a first call are those of
    recording, compiling and choosing, too; calls that go straight to the original are not timed: theirs are those of the last
    one before them that was.
    """

    blocks: tuple[BlockSolution, ...]
    seconds: float
    fallback: str | None = None
    first: bool = False

    def __str__(self) -> str:
        if self.fallback is not None:
            return f"the original ran ({self.seconds:.4f} s): {self.fallback}"
        rows = [
            f"{b.name} {b.kind}: {b.solver}, {b.equations} equations in {b.sweeps} sweeps ({b.steps} sequential steps), "
            f"{b.spread}{b.certificate}, {b.seconds:.4f} s"
            for b in self.blocks
        ]
        return "\n".join([*rows, f"{self.seconds:.4f} s in all"])


class NotSolved(Exception):
    """Internal: a block did not reach its certificate in the sweeps that pay; the caller completes it in order."""
