"""A sign of life on a long first call: what runs and for how long, on a terminal only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Shows `what` with a spinner while the body runs, if standard error is a terminal and rich is installed."""
    console = terminal()
    if console is None:
        yield
        return
    with console.status(f"fxsolve: {what}"):
        yield


def terminal() -> Any:
    """A console on standard error, if there is a terminal to show something on."""
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console  # here, as it is an extra, and takes its time to import
    except ImportError:
        return None
    return Console(stderr=True)
