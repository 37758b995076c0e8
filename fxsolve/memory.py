"""How much memory a run holds: the bytes of all tensors that it makes and that live at a time.

What a kernel allocates for itself and frees before it returns is not seen, nor what a CUDA graph replays.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Held(TorchDispatchMode):
    """Counts the storages that calls make, for as long as they live; `peak` is the most bytes at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in fxsolve.capture: else torch imports its whole compiler here, and each call takes longer

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [s for s in storages((result,)) if s._cdata not in self.alive]
        if made:
            given = {s._cdata for s in storages((*args, *kwargs.values()))}
            for storage in made:
                if storage._cdata not in given:  # no view of what was there before
                    self.hold(storage)
        return result

    def hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def release(_: object) -> None:
            del self.alive[key]
            self.now -= size

        self.alive[key] = weakref.ref(storage, release)
        self.now += size
        self.peak = max(self.peak, self.now)


def storages(values: Iterable[Any]) -> Iterator[torch.UntypedStorage]:
    """Those of all tensors, in lists as well."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.untyped_storage()
        elif isinstance(value, (list, tuple)):
            yield from storages(value)


def held_by(run: Callable[[], object]) -> int:
    """The most bytes that a run holds at a time, besides what is there before it."""
    with Held() as held:
        run()
    return held.peak


def size_text(count: int) -> str:
    """Bytes: 1234567 --> "1.2 MB"."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
