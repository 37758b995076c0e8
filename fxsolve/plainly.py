"""Our own calls of torch, whatever modes the user's code runs under."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def plainly() -> AbstractContextManager[None]:
    """A context in which torch's functions run as they are written: no default device, no other mode of the user's between.

    Such a mode also costs a Python call before each of torch's. The user's function is never called in here.
    """
    return torch._C.DisableTorchFunction()


def overridable() -> AbstractContextManager[None]:
    """The contrary, inside of it: torch's functions may be called on what stands for tensors."""
    return torch._C._EnableTorchFunction()
