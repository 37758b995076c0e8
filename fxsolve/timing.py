"""How long a run takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
RUNS, ENOUGH = 7, 0.1  # runs, seconds: of which a typical one is taken


def seconds_of(run: Callable[[], Any], repeats: int = 1) -> float:
    """The best of a few runs, in seconds, the device's queue drained after each."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def typical(run: Callable[[], T], seconds: Callable[[T], float]) -> T:
    """What the median of several runs gave, by the seconds that each says it took. One before them warms up."""
    run()
    deadline = time.perf_counter() + ENOUGH
    found = [run()]
    while len(found) < RUNS and time.perf_counter() < deadline:
        found.append(run())
    found = sorted(found, key=seconds)
    return found[len(found) // 2]


def typical_seconds(run: Callable[[], Any]) -> float:
    """The median of several runs."""
    return typical(lambda: seconds_of(run), float)
