"""What can go wrong, said in the user's terms: what happened, where, and what to do next."""

from __future__ import annotations

import sys


class FxsolveError(RuntimeError):
    """Base of every error that fxsolve raises on its own account."""


class CaptureError(FxsolveError):
    """The program could not be recorded as dataflow (a value left torch, an unknown tensor came in, ...)."""


class ScheduleError(FxsolveError):
    """A forced solver does not apply to a block, or its options make no sense for it."""


class VerificationError(FxsolveError):
    """A solution differs from eager's by more than the promised bound."""


class FallbackWarning(UserWarning):
    """The original ran instead of the compiled program; the text says why and where."""


def users_level() -> int:
    """The `stacklevel` with which the caller's warning points at the user's line: the first one outside of fxsolve."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "fxsolve":
        level, frame = level + 1, frame.f_back
    return level
