"""Guards: what Python could read while a call was recorded must still hold at each later call.

Around a recording:

    before = Guards.collect(fn, args, kwargs)
    ...                                        # record the call
    changed = before.changes()                 # what the call itself wrote: `self.steps += 1`
    guards = Guards.collect(fn, args, kwargs).without(changed)

Later calls ask `guards.check()`: None, or a sentence naming what changed. Numbers, strings and plain containers of them
are guarded by value, strictly (1, 1.0 and True differ, NaN equals NaN); tensors, modules, functions and other objects
by identity, tensors by shape, strides, dtype, device and requires_grad too, arrays also by contents. Writing into a
guarded tensor in place is no change, unless Python read numbers out of it (`with_contents`).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxsolve.hidden import state_of
from fxsolve.plainly import plainly
from fxsolve.reach import Walk
from fxsolve.watch import CONTENTS, Watch, compile_check, digest, is_plain


class Guards:
    """What was found where, for everything a callable can read."""

    def __init__(self, watches: Sequence[Watch], tensors: Mapping[str, torch.Tensor]) -> None:
        self._watches = tuple(watches)
        self._tensors = dict(tensors)
        self.iterators: list[str] = []  # by name: those that the code may take from
        self._hidden: list[tuple[str, Any, Any]] = []  # names, objects, and the states that they had
        self._check: Callable[[], bool] | None = None

    @staticmethod
    def collect(fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Guards:
        """Guards for `fn`, and for what it can read through objects among its arguments."""
        walk = Walk(home=_home(fn))
        walk.visit(fn, _root_name(fn))
        leaves, _ = pytree.tree_flatten((tuple(args), dict(kwargs or {})))
        for position, value in enumerate(leaves):
            if not isinstance(value, torch.Tensor) and not is_plain(value):
                walk.visit(value, f"argument {position}")
        walk.settle()
        guards = Guards(walk.watches, walk.tensors)
        guards.iterators = walk.iterators()
        guards._hidden = [(name, value, state_of(value)) for name, value in walk.hidden]
        return guards

    def check(self) -> str | None:
        """None when everything still holds, else a sentence that names what changed."""
        with plainly():
            if self._check is None:
                self._check = compile_check(self._watches)
            if self._check():
                return None
        return next((watch.sentence() for watch in self._watches if not watch.holds()), None)

    def changes(self) -> tuple[str, ...]:
        """The names of all that changed since the guards were collected."""
        names = [name for watch in self._watches if not watch.holds() for name in watch.changed_names()]
        return (*names, *[name for name, value, state in self._hidden if state_of(value) != state])

    def without(self, names: Iterable[str]) -> Guards:
        """The guards less those on `names` and on what is reached through them."""
        dropped = tuple(names)
        inner = tuple([name + mark for name in dropped for mark in (".", "[", "'s ")])
        kept = [watch for watch in self._watches if watch.name not in dropped and not watch.name.startswith(inner)]
        return Guards(kept, self._tensors)

    def with_contents(self, tensors: Mapping[str, torch.Tensor]) -> Guards:
        """The guards, and the contents of some tensors, by name."""
        more = [Watch(name, tensor, CONTENTS, digest(tensor), "contents") for name, tensor in tensors.items()]
        return Guards((*self._watches, *more), self._tensors)

    def with_places(self, tensors: Mapping[str, torch.Tensor]) -> Guards:
        """The guards, and where some tensors are in memory, by name."""
        more = [Watch(name, tensor, "o.data_ptr()", tensor.data_ptr(), "value") for name, tensor in tensors.items()]
        return Guards((*self._watches, *more), self._tensors)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that `fn` can reach, by path: `model.cell.weight_ih`, `closure h0`, `global W`."""
        return dict(self._tensors)

    def __len__(self) -> int:
        return len(self._watches)


def _root_name(fn: Callable[..., Any]) -> str:
    if isinstance(fn, (types.FunctionType, types.MethodType)):
        return fn.__name__
    return "partial" if isinstance(fn, functools.partial) else "model"


def _home(fn: Callable[..., Any]) -> str:
    """The top-level package that `fn` comes from: its code is walked even where it is installed."""
    inner = fn
    while isinstance(inner, (functools.partial, types.MethodType)):
        inner = inner.func if isinstance(inner, functools.partial) else inner.__func__
    scope = getattr(inner, "__globals__", {}).get("__name__") or type(inner).__module__
    top = scope.partition(".")[0]
    return "" if top in ("torch", "builtins") else top
