"""The one progress bar of the examples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

Move = Callable[..., None]


@contextlib.contextmanager
def bar(what: str, total: float) -> Iterator[Move]:
    """Inside, `move(done)` or `move(done, what)` moves a bar of this length, on a terminal; it is gone at the end.

    It is drawn when it is moved, and at no other time: nothing runs beside what is timed.
    """
    console = Console()
    if not console.is_terminal:
        yield lambda *_: None
        return
    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task(what, total=total)

        def move(done: float, now: str = what) -> None:
            progress.update(task, completed=done, description=now, refresh=True)

        move(0.0)
        yield move
