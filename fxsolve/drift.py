"""Which of a callable's two programs takes its calls: the first call's race is small, and inputs may change character.

The one that was chosen leads. Now and then the two take calls in turns, and what a typical call of each takes decides who
leads from then on:

- once the compiled program has lost as much time against the original as LOST of the original's calls take;
- where the two are close, or the original leads, after so many calls, each time so many more.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from fxsolve.shell import Calls

PAYS = 0.8  # of the original's seconds: what is nearly as quick may be slower another time, where other work fills the caches
CLOSE = 0.67  # of the original's seconds: what takes more, and less than these, may come out otherwise another time
LOST, AT_ONCE = 1.5, 0.5  # in calls of the original: in all, and what one call counts at the most: machines are noisy
TURNS = 3
CLEARLY, AT_A_GLANCE = 1.5, 3.0  # times as long, which ends it: after a turn of each, and after the first call of each
LONG = 0.1  # seconds: such a call is a turn by itself
WARM_UP, CALLS = 1, 3  # of a turn: the first call after another program's finds the caches full of that one
FIRST, LONGER, MOST = 16, 4, 4096  # calls until the two take turns: at first, by what they grow, and at the most


@dataclass
class Drift:
    """`original`, `compiled`: seconds that a call of each took, or takes at the least."""

    original: float
    compiled: float
    compiled_leads: bool = True
    calls: Calls = field(default_factory=lambda: Calls(FIRST))  # until the two take turns
    patience: int = LONGER * FIRST  # how many there are next
    lost: float = 0.0  # by the compiled program, in calls of the original
    turn: list[float] = field(default_factory=list)  # the calls of the present turn
    turns: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})  # True: the compiled program's

    def __post_init__(self) -> None:
        if not self.compiled_leads:  # it was not chosen
            self.calls, self.patience = Calls(self.patience), LONGER * self.patience

    @staticmethod
    def unknown() -> Drift:
        """Where nobody knows what the two take: the next calls tell."""
        return Drift(math.inf, math.inf, calls=Calls(0))

    @property
    def left(self) -> int:
        return max(0, self.calls.left)  # several threads may have taken one too many

    @property
    def compiled_is_next(self) -> bool:
        if self.left:
            return self.compiled_leads
        ours, theirs = self.turns[True], self.turns[False]
        return len(ours) <= len(theirs)

    def ran(self, compiled: bool, seconds: float) -> None:
        if not self.left:
            self.take(compiled, seconds)
            return
        if not compiled or self.compiled > CLOSE * self.original:
            self.calls.left -= 1
        if compiled:
            self.lost = max(0.0, self.lost + min(seconds / self.original - 1.0, AT_ONCE))
            if self.lost >= LOST:
                self.calls.left = 0

    def take(self, compiled: bool, seconds: float) -> None:
        """A call of somebody's turn: of the first turn of each, which is one call, or of one of the others."""
        ours, theirs = self.turns[True], self.turns[False]
        self.turn.append(seconds)
        glance = not (ours and theirs)
        if not glance and self.turn[0] < LONG and len(self.turn) < WARM_UP + CALLS:
            return
        self.turns[compiled].append(statistics.median(self.turn[WARM_UP:] or self.turn))
        self.turn.clear()
        if len(ours) != len(theirs):
            return
        self.compiled, self.original = (statistics.median(turns[1:] or turns) for turns in (ours, theirs))
        far = max(self.compiled, self.original) / min(self.compiled, self.original)
        if far > (AT_A_GLANCE if glance else CLEARLY) or len(ours) > TURNS:
            self.compiled_leads = self.compiled <= (1.0 if self.compiled_leads else PAYS) * self.original
            self.calls, self.patience, self.lost = Calls(self.patience), min(LONGER * self.patience, MOST), 0.0
            ours.clear()
            theirs.clear()

    @property
    def why(self) -> str:
        """Why the original takes a call."""
        if not self.left:
            return "the original and the compiled program take calls in turns, to see which is quicker by now"
        return f"the original runs: it takes {self.original:.4f} s, the compiled program {self.compiled:.4f} s"
