"""A sign of life on a long first call: what runs and for how long, on a terminal only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

try:
    from rich.console import Console
except ImportError:  # an extra: without it nothing is shown
    Console = None


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Shows `what` with a spinner while the body runs, if standard error is a terminal and rich is installed."""
    if Console is None or not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(f"fxsolve: {what}"):
        yield
