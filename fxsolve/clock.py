"""The one hook of the pipeline: it fires after every pass, with what the pass made.

Seconds are written down here, and whoever wants to print, verify or draw intermediate programs watches here and nowhere else.
Nothing is kept unless a watcher keeps it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

Watcher = Callable[[str, float, Any], None]  # (pass, seconds, what it made)
watchers: list[Watcher] = []


class Clock:
    """Called after each pass: writes down the seconds since the last one, and shows what was made to those who watch."""

    def __init__(self, timings: dict[str, float]) -> None:
        self.timings, self.mark = timings, time.perf_counter()

    def __call__(self, name: str, made: Any) -> None:
        seconds = time.perf_counter() - self.mark
        self.timings[name] = seconds
        for watcher in watchers:
            watcher(name, seconds, made)
        self.mark = time.perf_counter()  # what watchers do is no part of the next pass


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Calls `watcher(name, seconds, made)` after each pass of every first call in the body.

    made: the Recording after "record", a Tape after the passes over tapes, what `growth` and `roll` return, a Program after
    the passes over programs, the Executable after "decide", and after "time" what was chosen, in words. Passes may go on
    with the same objects, so a watcher takes what it wants at once. An exception ends the compilation, and the original runs.
    """
    watchers.append(watcher)
    try:
        yield
    finally:
        watchers.remove(watcher)
