"""Why a recorded call is not compiled, where that shows in what it did, not in an operation."""

from __future__ import annotations

from collections.abc import Sequence

from fxsolve.capture import Recording


def side_effects(changed: Sequence[str], iterators: Sequence[str]) -> str | None:
    """Why a call that changes attributes, or may take from an iterator, is not compiled."""
    if iterators:
        return f"the function can take from an iterator, {iterators[0]}, which gives other values at each call"
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
