"""The shell around a callable that runs as it is: as thin as it can be.

Where the original is the choice, its result is right whatever has changed: so shapes and plain values are all that is
compared, by one dict for all kinds of calls, and signature and guards are looked at again once in a while only, as something
else may pay by then: after so many calls, each time twice as many, or when the compiled program is to have another chance.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

E = TypeVar("E")
LEAST, MOST = 64, 4096  # calls until the next look
KINDS = 1024  # of calls that are remembered: arguments may be new objects in each call
PLAIN = frozenset({int, float, bool, str, type(None)})


@dataclass
class Calls:
    left: int  # until the next look


@dataclass
class Patience:
    """How many calls there are until the next look: each time twice as many."""

    calls: int = LEAST

    def more(self) -> Calls:
        calls, self.calls = Calls(self.calls), min(2 * self.calls, MOST)
        return calls


@dataclass(slots=True)
class Straight(Generic[E]):
    """Calls of one kind go straight to the original, so many of them: `why`. `seconds`: of the one before them."""

    entry: E
    calls: Calls
    why: str
    seconds: float = 0.0


def kind_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """What calls have in common that may go straight to the original: shapes, plain values, other objects, and whether
    gradients are on. Never raises, and takes no longer than it must.
    """
    return torch.is_grad_enabled(), kinds(args), (*kwargs, kinds(kwargs.values())) if kwargs else None


def kinds(values: Iterable[Any]) -> tuple[Hashable, ...]:
    found: list[Hashable] = []
    for value in values:
        of = value.__class__
        if of is torch.Tensor:
            found.append(value.shape)
        elif of in PLAIN:
            found.append((of, value))
        elif isinstance(value, (tuple, list)):
            found.append((of, kinds(value)))
        elif isinstance(value, dict):
            found.append((of, *value, kinds(value.values())))
        else:  # what has no hash is no part of a signature: for such arguments the original runs, whatever they hold
            found.append(of if of.__hash__ is None else (of, id(value)))
    return tuple(found)
