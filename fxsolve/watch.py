"""One place that Python can read, what was there, and how to say that it changed.

A `Watch` reads its place by a Python expression over its owner `o` (`o['temperature']`, `o.cell_contents`), so the same
text serves the generated check of all watches together and the slow search for the one that changed.
"""

from __future__ import annotations

import ast
import enum
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

MISSING = object()
UNREADABLE = (KeyError, AttributeError, IndexError, ValueError, TypeError)
ATOMS = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), enum.Enum, np.generic, np.dtype),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
SEQUENCES = (list, tuple, torch.Size)
SETS = (set, frozenset)

# What a watch compares, as the condition under which it no longer holds.
CONDITIONS = {
    "value": "(a := {access}) is not {expected} and differs(a, {expected})",
    "identity": "{access} is not {expected}",
    "keys": "{access} != {expected}",
    "metadata": "{access} != {expected}",
    "contents": "{access} != {expected}",
}
KEYS = "o.keys()"
CLASS = "o.__class__"
METADATA = "(o.dtype, o.shape, o.stride(), o.device, o.requires_grad)"
metadata_of = operator.attrgetter("dtype", "shape", "device", "requires_grad")  # but for the strides
CONTENTS = "digest(o)"


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """The place `access` of `owner`, called `name`, held `expected`."""

    name: str
    owner: Any
    access: str
    expected: Any
    kind: Literal["value", "identity", "keys", "metadata", "contents"]

    def current(self) -> Any:
        """What is there now; MISSING if the place is gone."""
        try:
            return eval(self.access, {"o": self.owner, "digest": digest})
        except UNREADABLE:
            return MISSING

    def holds(self) -> bool:
        now = self.current()
        if self.kind == "identity":
            return now is self.expected
        if self.kind == "value":
            return not differs(now, self.expected)
        return now is not MISSING and bool(now == self.expected)

    def changed_names(self) -> list[str]:
        """The names of what changed: the watch's own, or those of the entries that came and went."""
        if self.kind != "keys":
            return [self.name]
        return [f"{self.name}.{key}" for key in sorted(self.expected ^ set(self.current()), key=str)]

    def sentence(self) -> str:
        """What changed, for the user."""
        now = self.current()
        if now is MISSING:
            return f"{self.name} was {describe(self.expected)}, is gone"
        if self.kind == "keys":
            gained, lost = set(now) - self.expected, self.expected - set(now)
            verb, names = ("gained", gained) if gained else ("lost", lost)
            return f"{self.name} {verb} {', '.join(sorted(map(str, names)))}"
        if self.kind == "contents":
            return f"the contents of {self.name} changed"
        if self.kind == "metadata":
            return f"{self.name} was {describe_metadata(self.expected)}, is {describe_metadata(now)}"
        before, after = describe(self.expected), describe(now)
        if before == after:
            return f"{self.name} was replaced by another {after.removeprefix('a ')}"
        return f"{self.name} was {before}, is {after}"


def compile_check(watches: Sequence[Watch]) -> Callable[[], bool]:
    """One function that says whether all watches hold.

    As long as the same objects are where they were, a few loops in C over all of them say so. If one of them does not, each
    watch is looked at by itself: another object may have the same value.
    """
    quick, rest = look_at_all(watches)
    first, every = one_by_one(rest), one_by_one(watches)
    return lambda: (quick() and first()) or every()


def look_at_all(watches: Iterable[Watch]) -> tuple[Callable[[], bool], list[Watch]]:
    """A function that says whether what it looks at is the same as now, and the watches that this says nothing about."""
    entries: list[tuple[dict[Any, Any], Any]] = []
    empties, sized, objects, tensors, rest = [], [], [], [], []
    for watch in watches:
        owner = watch.owner
        if not watch.holds():
            rest.append(watch)
        elif watch.access == KEYS:  # each entry has its own watch, so the same number means the same keys
            (sized if owner else empties).append(owner)
        elif watch.access == CLASS and type(owner) is watch.expected:
            objects.append(owner)
        elif watch.kind == "metadata":
            tensors.append(owner)
        elif isinstance(owner, dict) and watch.current() is watch.expected and (key := key_of(watch.access)) is not None:
            entries.append((owner, key))
        else:
            rest.append(watch)
    dicts, keys = [owner for owner, _ in entries], [key for _, key in entries]
    values, sizes = list(map(operator.getitem, dicts, keys)), list(map(len, sized))
    classes, metadata = list(map(type, objects)), list(map(metadata_of, tensors))
    strides = list(map(torch.Tensor.stride, tensors))

    def quick() -> bool:
        try:
            return (
                not any(empties)
                and list(map(len, sized)) == sizes
                and all(map(operator.is_, map(operator.getitem, dicts, keys), values))
                and all(map(operator.is_, map(type, objects), classes))
                and all(map(operator.eq, map(metadata_of, tensors), metadata))  # no lists, which the garbage collector counts
                and all(map(operator.eq, map(torch.Tensor.stride, tensors), strides))
            )
        except KeyError:
            return False

    return quick, rest


def key_of(access: str) -> Any:
    """The key by which a place reads a dict; None if it reads something else, or one that is not written out."""
    try:
        return ast.literal_eval(access[2:-1]) if access.startswith("o[") else None
    except (ValueError, SyntaxError):
        return None


def one_by_one(watches: Iterable[Watch]) -> Callable[[], bool]:
    """A line for each watch, no calls unless a value is a new object."""
    namespace: dict[str, Any] = {"differs": differs, "digest": digest, "UNREADABLE": UNREADABLE}
    lines = ["def check():", "    try:", "        pass"]
    owner: Any = MISSING
    for number, watch in enumerate(watches):
        if watch.owner is not owner:
            owner = namespace[f"o{number}"] = watch.owner
            lines.append(f"        o = o{number}")
        namespace[f"e{number}"] = watch.expected
        condition = CONDITIONS[watch.kind].format(access=watch.access, expected=f"e{number}")
        if watch.access == KEYS:
            condition = f"len(o) != {len(watch.expected)}"
        lines.append(f"        if {condition}: return False")
    lines += ["    except UNREADABLE:", "        return False", "    return True"]
    exec("\n".join(lines), namespace)
    return namespace["check"]


def is_plain(value: Any, depth: int = 8) -> bool:
    """Whether a value is an atom, or a container of nothing but plain values: what is watched by value."""
    if isinstance(value, ATOMS):
        return True
    if depth == 0:
        return False
    kind = type(value)
    if kind in SEQUENCES or kind in SETS:
        return all(is_plain(item, depth - 1) for item in value)
    if kind is dict:
        return all(is_plain(key) and is_plain(item, depth - 1) for key, item in value.items())
    return False


def snapshot(value: Any) -> Any:
    """A plain value that later writes into its containers do not reach."""
    kind = type(value)
    if kind is tuple:
        copied = tuple([snapshot(item) for item in value])
        return value if all(map(operator.is_, copied, value)) else copied
    if kind is list:
        return [snapshot(item) for item in value]
    if kind is dict:
        return {key: snapshot(item) for key, item in value.items()}
    return set(value) if kind is set else value


def differs(now: Any, before: Any) -> bool:
    """Whether two plain values differ in type or value: 1, 1.0 and True do, 0.0 and -0.0 do, NaN and NaN do not."""
    kind = type(before)
    if type(now) is not kind:
        return True
    if kind is float:
        return now.hex() != before.hex()
    if kind is complex:
        return differs(now.real, before.real) or differs(now.imag, before.imag)
    if kind in SEQUENCES:
        return len(now) != len(before) or any(a is not b and differs(a, b) for a, b in zip(now, before))
    if kind is dict:
        return differs(list(now), list(before)) or differs(list(now.values()), list(before.values()))
    if kind in SETS:
        return {(type(item), item) for item in now} != {(type(item), item) for item in before}
    if kind is slice:
        return differs((now.start, now.stop, now.step), (before.start, before.stop, before.step))
    if isinstance(before, np.generic):
        return now.tobytes() != before.tobytes()
    return bool(now != before)


def digest(array: np.ndarray | torch.Tensor) -> tuple[Any, ...]:
    """Shape, type and a hash of the contents of an array or tensor."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return array.shape, array.dtype.str, hash(array.tobytes())


def describe(value: Any) -> str:
    if is_plain(value):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return f"a {type(value).__name__} {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, type) or callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return f"a {type(value).__name__}"


def describe_metadata(value: tuple[Any, ...]) -> str:
    dtype, shape, stride, device, requires_grad = value
    name = str(dtype).removeprefix("torch.")
    return f"{name}{list(shape)} with strides {list(stride)} on {device}, requires_grad={requires_grad}"
