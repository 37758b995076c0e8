"""What speaks for a compiled program before it is timed, and its race with the original."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from fxsolve.codegen import Executable
from fxsolve.drift import PAYS
from fxsolve.timing import seconds_of

TURNS, CLEAR_AFTER, CLEARLY = 25, 5, 1.5
TRIAL_SECONDS, TURN = 0.5, 0.005
FEW, PATIENCE = 3, 1.5  # turns that there are at the least, for so many seconds more
LONG = 0.1  # seconds: what takes less has a run to warm up in each turn


def in_order(executable: Executable) -> bool:
    """Whether every block makes just eager's own calls: no other schedule was certified. (A chain spares memory on the way.)"""
    plans = [r.plan for r in executable.runners.values()]
    return all(plan is None or (plan.in_order and plan.kind != "Chain") for plan in plans)


def quick_enough(executable: Executable) -> tuple[float, float] | None:
    """The seconds that the original takes at the least, and those of the blocks' first solutions, if these are less, and no
    race is needed to see that: by far less, or less than so many seconds that a race would cost too much; else None. (Their
    backward has its own time.)
    """
    runners = list(executable.runners.values())
    least = sum(r.least or 0.0 for r in runners)
    ours = sum(r.solution.seconds for r in runners if r.solution is not None)
    share = PAYS if least > LONG else 1.0 / CLEARLY
    return (least, ours) if ours <= share * least else None


def race(*prepare: Callable[[], Callable[[], Any]], turns: int = TURNS) -> list[float]:
    """The seconds of each one's typical run, each prepared anew; in turns, so that what else the machine does hits all.

    A turn is as many runs as take TURN seconds; a short one is run once before that, as the first run after another program's
    finds the caches full of that one. It ends as soon as one is clearly ahead.
    """
    taken: list[list[float]] = [[] for _ in prepare]
    deadline = time.perf_counter() + TRIAL_SECONDS
    while True:
        for seconds, made in zip(taken, prepare, strict=True):
            runs = [seconds_of(made())]
            if runs[0] < LONG:
                runs.clear()
            while sum(runs) < TURN:
                runs.append(seconds_of(made()))
            seconds.append(statistics.median(runs))
        medians = list(map(statistics.median, taken))
        clear = len(taken[0]) >= CLEAR_AFTER and max(medians) > CLEARLY * min(medians)
        late = time.perf_counter() - deadline
        enough = late > 0.0 and len(taken[0]) >= FEW  # one run alone may have met whatever else the machine does
        if clear or enough or late > PATIENCE or len(taken[0]) == turns:
            return medians
