"""Folding: what is too much to read is drawn as fewer nodes, each of which stands for a run of neighbours.

The calls of a program's outside, of a step or of a chain come in the program's order. Where there are too many to be read,
these rules are applied one after another, until few enough nodes are left:

    line        neighbours from one source line become one node
    repeat      a run of nodes that comes again and again, `a b a b a b`, becomes one node, `3 x (a b)`
    function    neighbours from one function of the user's become one node
    short       the two neighbours that stand for fewest calls become one node, again and again

A node is always a stretch of the program's order, so no cycle can arise, and never mixes what runs at different times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

RULES = {  # what the legend says of each
    "line": "neighbouring calls, or layers, of one source line are one node",
    "repeat": "what repeats is one node, with how often",
    "function": "neighbouring calls of one function are one node",
    "short": "the smallest neighbouring nodes are one node",
}


@dataclass(frozen=True)
class Item:
    """One thing to draw: a call, or a layer of a chain."""

    key: Any  # the call's node, the layer's number
    role: str
    line: Hashable  # equal for what the rule `line` may join
    function: str
    source: str
    ops: tuple[str, ...]
    type: str
    changed: bool = False  # by the pass that is shown


@dataclass(frozen=True)
class Group:
    """A run of items that is drawn as one node, and the rule that joined them; "" for a single one."""

    items: tuple[Item, ...]
    token: Hashable
    rule: str = ""
    times: int = 1

    @property
    def role(self) -> str:
        return self.items[0].role

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that the items come from, in order of first sight."""
        return tuple(dict.fromkeys(item.function for item in self.items))

    @property
    def ops(self) -> Counter[str]:
        return Counter(op for item in self.items for op in item.ops)


def fold(items: Sequence[Item], limit: int) -> list[Group]:
    """The items in at most `limit` groups, if they run at so few different times."""
    groups = [Group((item,), (item.role, item.line)) for item in items]
    for rule in (lines, repeats, functions, short):
        if len(groups) <= limit:
            break
        groups = rule(groups, limit)
    return groups


def lines(groups: list[Group], limit: int) -> list[Group]:
    return joined(groups, lambda g: g.token, "line")


def functions(groups: list[Group], limit: int) -> list[Group]:
    return joined(groups, lambda g: (g.role, g.functions), "function")


def short(groups: list[Group], limit: int) -> list[Group]:
    """Joins the smallest neighbours of one role until few enough are left."""
    while len(groups) > limit:
        pairs = [n for n, (a, b) in enumerate(zip(groups, groups[1:])) if a.role == b.role]
        if not pairs:
            break
        n = min(pairs, key=lambda n: len(groups[n].items) + len(groups[n + 1].items))
        groups = [*groups[:n], join(groups[n : n + 2], None, "short"), *groups[n + 2 :]]
    return groups


def repeats(groups: list[Group], limit: int) -> list[Group]:
    """Joins what repeats, the run first that spares most nodes, until few enough are left or nothing repeats."""
    while len(groups) > limit and (found := longest_repeat(groups)) is not None:
        start, period, times = found
        stop = start + period * times
        token = ("repeat", times, *(g.token for g in groups[start : start + period]))
        groups = [*groups[:start], join(groups[start:stop], token, "repeat", times), *groups[stop:]]
    return groups


def longest_repeat(groups: Sequence[Group]) -> tuple[int, int, int] | None:
    """(start, period, times) of the repetition of one role that covers most groups, of these the one of shortest period."""
    best: tuple[int, int, int] | None = None
    for low, high in stretches(groups):
        numbers: dict[Hashable, int] = {}
        tokens = [numbers.setdefault(g.token, len(numbers)) for g in groups[low:high]]
        for period in range(1, len(tokens) // 2 + 1):
            alike = [a == b for a, b in zip(tokens, tokens[period:])]
            start = 0
            for same, run in groupby(alike):
                length = len(list(run))
                times = 1 + length // period
                if same and times > 1 and (best is None or times * period > best[1] * best[2]):
                    best = (low + start, period, times)
                start += length
    return best


def stretches(groups: Sequence[Group]) -> Iterator[tuple[int, int]]:
    """The ranges of neighbours of one role."""
    start = 0
    for _, run in groupby(groups, key=lambda g: g.role):
        stop = start + len(list(run))
        yield start, stop
        start = stop


def joined(groups: Sequence[Group], key: Callable[[Group], Hashable], rule: str) -> list[Group]:
    """Neighbours with the same key as one group."""
    return [join(list(run), token, rule) for token, run in groupby(groups, key=key)]


def join(groups: Sequence[Group], token: Hashable, rule: str, times: int = 1) -> Group:
    if len(groups) == 1:
        return groups[0]
    return Group(tuple(item for group in groups for item in group.items), token, rule, times)
