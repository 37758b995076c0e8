"""The shell around a callable that runs as it is: as thin as it can be.

Where the original is the choice, its result is right whatever has changed: so shapes are all that is compared, and signature
and guards are looked at again once in a while only, as something else may pay by then: after so many calls that the looks
take a hundredth of their time, or when the compiled program is to have another chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

LEAST, MOST = 64, 4096  # calls until the next look
SHARE = 0.01  # of the calls' time


class Counted(Protocol):
    left: int  # calls until the next look


@dataclass
class Calls:
    left: int


class Shell:
    """Arguments of one kind, for which the original was chosen: `why`, for so many calls."""

    __slots__ = ("calls", "grad", "same", "why")

    def __init__(self, args: Sequence[Any], why: str, calls: Counted) -> None:
        self.same = same_kinds(args)
        self.grad = torch.is_grad_enabled()
        self.why, self.calls = why, calls

    def fits(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call is one of that kind, and it is not time to look at it closely."""
        calls = self.calls
        if kwargs or not calls.left or torch.is_grad_enabled() is not self.grad or not self.same(args):
            return False
        calls.left -= 1
        return True


def same_kinds(args: Sequence[Any]) -> Callable[[Sequence[Any]], bool]:
    """A function that says whether arguments are tensors of the same shapes, and equal numbers: one line, as it runs cold."""
    terms, scope = [f"len(args) == {len(args)}"], {}
    for k, value in enumerate(args):
        is_tensor = isinstance(value, torch.Tensor)
        scope |= {f"kind{k}": type(value), f"seen{k}": value.shape if is_tensor else value}
        terms.append(f"args[{k}].__class__ is kind{k} and args[{k}]{'.shape' if is_tensor else ''} == seen{k}")
    return eval(f"lambda args: {' and '.join(terms)}", scope)


def calls_between(look: float, call: float) -> Calls:
    """How many calls of so many seconds there are until the next look, which takes some seconds as well."""
    return Calls(min(max(int(look / (SHARE * call)), LEAST), MOST))


def shell_of(args: Sequence[Any], kwargs: Mapping[str, Any], why: str, calls: Counted) -> Shell | None:
    """The shell for calls like this one; None where arguments are other things than tensors, numbers and strings."""
    plain = (torch.Tensor, int, float, bool, str, type(None))
    if kwargs or any(type(a) not in plain for a in args):
        return None
    return Shell(args, why, calls)
