"""Kinds of calls that do not come again: to compile each of them costs far more than it ever gives back.

A first call takes as long as many calls. So where kind after kind was compiled and never called again (a position that is
passed as a number, a length that is always another one, an attribute that is set before each call), a new kind has to come
back before it is compiled: once after ONCE such kinds, three times after 2 * ONCE, seven times after 3 * ONCE, and so on.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from fxsolve.signature import described

ONCE = 16  # kinds that were compiled and never called again
KEPT = 4096  # kinds whose sights are counted
SHOWN = 3


class Newcomers:
    """Counts what was compiled and has not come back, and how often other kinds were seen."""

    def __init__(self) -> None:
        self.once = 0
        self.reason: str | None = None  # that the first kind that had to wait was told
        self.sights: dict[int, int] = {}  # by the hash of a signature, which may hold on to arguments

    def compiled(self, key: Hashable) -> None:
        self.once += 1
        self.sights.pop(hash(key), None)

    def came_again(self) -> None:
        self.once -= 1

    def has_to_wait(self, key: Hashable) -> bool:
        """Whether this kind is not to be compiled yet; counts it."""
        needed = 2 ** (self.once // ONCE) - 1
        if not needed:
            return False
        if len(self.sights) >= KEPT:
            self.sights.clear()
        seen = self.sights[hash(key)] = self.sights.get(hash(key), 0) + 1
        return seen <= needed


def why_they_wait(keys: Iterable[Hashable], changed: str | None) -> str:
    """What makes each call a new kind, and what to do about it: by signatures, or by what changed since the last call."""
    said: dict[str, dict[str, None]] = {}
    for key in keys:
        for name, text in described(key).items():
            said.setdefault(name, {})[text] = None
    differ = [f"{name} ({listed(texts)})" for name, texts in said.items() if len(texts) > 1]
    place = changed or ("they differ in " + ", ".join(differ) if differ else "")
    return (
        f"{ONCE} kinds of calls were compiled and did not come again{': ' if place else ''}{place}; a new kind is compiled "
        f"when it comes back. Pass numbers that change as tensors, and pad or bucket lengths, so that there are few kinds"
    )


def listed(texts: Iterable[Any]) -> str:
    texts = list(texts)
    return ", ".join(texts[:SHOWN]) + (", .." if len(texts) > SHOWN else "")
