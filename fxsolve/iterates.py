"""The states of blocks after each of their sweeps, kept where somebody asked for them: for pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Iterate:
    """The state of a block after a sweep. What it holds is the block's kind's own: buffers, states of steps, or of layers.

    `steps` had followed one another by then, `seconds` had gone by since the notes were opened; `low` is the first equation
    of the window that the state belongs to.
    """

    steps: int
    seconds: float
    low: int
    state: Sequence[torch.Tensor]


@dataclass
class Notes:
    """For each block, by name, its iterates in order. What noting takes is not counted in their seconds."""

    blocks: dict[str, list[Iterate]] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - self.start

    def take(self, block: str, steps: int, state: Sequence[torch.Tensor], seconds: float, low: int) -> None:
        iterates = self.blocks.setdefault(block, [])
        if iterates and iterates[-1].steps > steps:  # it is solved once more, from the start
            iterates.clear()
        iterates.append(Iterate(steps, seconds, low, state))


NOTES: ContextVar[Notes | None] = ContextVar("the iterates that are kept", default=None)


@contextmanager
def keep_iterates() -> Iterator[Notes]:
    """Inside, blocks leave their states after each sweep."""
    token = NOTES.set(notes := Notes())
    try:
        yield notes
    finally:
        NOTES.reset(token)


def note(block: str, steps: int, state: Callable[[], Sequence[torch.Tensor]], low: int = 0) -> None:
    """Keeps a block's state after a sweep, if somebody asked for it; `state` gives one that is not written to any more."""
    notes = NOTES.get()
    if notes is not None:
        seconds = notes.seconds()
        notes.take(block, steps, state(), seconds, low)
        notes.start += notes.seconds() - seconds
