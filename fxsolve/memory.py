"""How much memory a run holds: the bytes of all tensors that it makes and that live at a time.

What a kernel allocates for itself and frees before it returns is not seen, nor what a CUDA graph replays.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Held(TorchDispatchMode):
    """Counts the storages that calls make, for as long as they live; `peak` is the most bytes at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [s for s in storages(result) if s._cdata not in self.alive]
        if made:
            given = {s._cdata for s in storages((args, kwargs))}
            for storage in made:
                if storage._cdata not in given:  # no view of what was there before
                    self.hold(storage)
        return result

    def hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.release, key, size).atexit = False

    def release(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in (values,) if isinstance(values, torch.Tensor) else pytree.tree_leaves(values):
        if isinstance(value, torch.Tensor):
            yield value.untyped_storage()


def held_by(run: Callable[[], object]) -> int:
    """The most bytes that a run holds at a time, besides what is there before it."""
    with Held() as held:
        run()
    return held.peak


def size_text(count: int) -> str:
    """Bytes: 1234567 --> "1.2 MB"."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
