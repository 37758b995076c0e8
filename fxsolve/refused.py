"""Why a recorded call is not compiled, where that shows in what it did, not in an operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import CellType
from typing import Any

from fxsolve.capture import Recording


def holds_iterator(fn: Any, depth: int = 4) -> bool:
    """Whether a function, or one that it closes over, holds an iterator: each call takes other values from it."""
    cells = [cell.cell_contents for cell in getattr(fn, "__closure__", None) or () if cell != CellType()]
    return any(isinstance(c, Iterator) or (depth > 0 and holds_iterator(c, depth - 1)) for c in cells)


def side_effects(changed: Sequence[str], fn: Any) -> str | None:
    """Why a call that changes attributes, or takes from an iterator, is not compiled."""
    if holds_iterator(fn):
        return "the function closes over an iterator, which gives other values at each call"
    if not changed:
        return None
    return f"the call itself changes {', '.join(changed[:3])}, which a replay would not repeat"


def untrainable(recording: Recording) -> str | None:
    """Why gradients of a recorded call would not be eager's."""
    if recording.other_mode is not None:
        return (
            f"the result requires gradients, and they are switched off or on inside, at {recording.other_mode} (torch.no_grad, "
            f"a custom autograd.Function): call it under torch.no_grad() if they are not needed"
        )
    if recording.before:
        return "the result requires gradients, and the call writes into its inputs"
    return None
