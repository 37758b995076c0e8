"""Whether a compiled program still pays: inputs may change character, and need more sweeps than those of the first call.

After a few calls in a row that took clearly longer than the original did, the original takes over for some calls; then the
compiled program gets another chance, each time after a longer rest. If the original is slow by then as well, it was the
machine, and the compiled program goes on at once.
"""

from __future__ import annotations

from dataclasses import dataclass

LATE = 1.5  # times the original's seconds at its best: machines are noisy
CALLS = 3
FIRST_REST = 16


@dataclass
class Drift:
    """`original`: the seconds that the original took, or takes at the least."""

    original: float
    late: int = 0  # calls in a row that took clearly longer
    quickest: float = 0.0  # of them
    rest: int = 0  # calls that the original still takes
    patience: int = FIRST_REST

    def compiled_ran(self, seconds: float) -> None:
        if seconds <= LATE * self.original:
            self.late = 0
            return
        self.late += 1
        self.quickest = seconds if self.late == 1 else min(self.quickest, seconds)
        if self.late == CALLS:
            self.late, self.rest, self.patience = 0, self.patience, 4 * self.patience

    def original_ran(self, seconds: float) -> None:
        self.rest -= 1
        if seconds > self.quickest:
            self.original, self.rest = seconds, 0

    @property
    def why(self) -> str:
        return (
            f"the original runs, {self.rest} more calls: {CALLS} compiled ones in a row took {self.quickest:.4f} s or more, "
            f"the original {self.original:.4f} s"
        )
