"""The cost model: what a block would take on several devices, from what one device measured. A simulation.

A solution is a few *phases*; a phase is rounds that follow one another, of the same calls on parts that do not depend on one
another (steps of parallel blocks, slots, layers). A round on N devices takes

    calls * launch + (seconds - calls * launch) / min(N, parts)

with the seconds of a round and of an empty call as they were measured. What devices send one another is not counted. The
seconds come from the first call, scaled by what the last few calls took, and the number of rounds from the last one: on one
device, this predicts what is measured.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import fx

from fxsolve.ir import calls
from fxsolve.solvers.contract import Problem
from fxsolve.timing import seconds_of

T = TypeVar("T")
EMPTY = 200  # calls, to time one
RECENT = 5  # calls that the model is held against


@dataclass(frozen=True)
class Phase:
    """`rounds` after one another, each of `calls` calls on `parts` independent parts; seconds of a round on one device."""

    name: str
    seconds: float
    rounds: float
    calls: int
    parts: int

    def on(self, devices: int, launch: float) -> float:
        fixed = min(self.seconds, self.calls * launch)
        return self.rounds * (fixed + (self.seconds - fixed) / max(1, min(devices, self.parts)))


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step of several parts side by side: `fixed + parts * each`."""

    fixed: float
    each: float

    def of(self, parts: float) -> float:
        return self.fixed + parts * self.each


def fitted(many: Phase, few: Phase, launch: float) -> StepCost:
    """The line through the steps of two phases. If they have as many parts, the fixed share is taken for that of the calls."""
    fixed = min(many.seconds, many.calls * launch)
    if many.parts > few.parts:
        each = max(0.0, (many.seconds - few.seconds) / (many.parts - few.parts))
        fixed = max(fixed, many.seconds - many.parts * each)
    return StepCost(fixed, (many.seconds - fixed) / many.parts)


def pays_from(step: StepCost, block: int, steps: float, eager: float) -> float | None:
    """From how many equations on `steps` steps of blocks side by side are quicker than so many of eager's, `eager` seconds
    each; None where no number is enough.
    """
    saved = eager - steps * step.each / block
    return steps * step.fixed / saved if saved > 0 else None


@cache
def launch_seconds(device: torch.device) -> float:
    """How long a call takes that has next to nothing to do."""
    x = torch.zeros(1, device=device)

    def run() -> None:
        for _ in range(EMPTY):
            torch.neg(x)

    return seconds_of(run, 5) / EMPTY


def predicted(phases: Iterable[Phase], devices: int, device: torch.device) -> float:
    """Seconds of all phases on so many devices."""
    return sum(phase.on(devices, launch_seconds(device)) for phase in phases)


class Timed:
    """A problem as it is driven (see fxsolve.solvers.contract.Problem), and the seconds that each of its parts takes."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.equations = problem, problem.equations
        self.seconds: dict[str, float] = dict.fromkeys(("open", "sweep", "commit"), 0.0)

    def open(self, low: int, high: int, block: int) -> None:
        self.took("open", lambda: self.problem.open(low, high, block))

    def sweep(self) -> None:
        self.took("sweep", self.problem.sweep)

    def commit(self) -> int:
        return self.took("commit", self.problem.commit)

    def total(self) -> float:
        return sum(self.seconds.values())

    def took(self, part: str, run: Callable[[], T]) -> T:
        results: list[T] = []
        self.seconds[part] += seconds_of(lambda: results.append(run()))
        return results[0]


def makespan(costs: Iterable[float], devices: int) -> float:
    """When the last of `devices` is done with independent pieces of work, the longest ones started first (Graham 1969)."""
    costs = sorted(costs, reverse=True)
    if devices >= len(costs):
        return max(costs, default=0.0)
    busy = [0.0] * devices
    for cost in costs:
        heapq.heapreplace(busy, busy[0] + cost)
    return max(busy)


def call_count(graph: fx.Graph) -> int:
    return sum(1 for _ in calls(graph))
