"""Dead rows and repeated invariants of a tape.

    v = f(a); w = g(a); return w          -->   w = g(a); return w
    loop: x[:, tensor([0, 2])]            -->   i = tensor([0, 2]); loop: x[:, i]
    loop: m = W * mask; y = m @ x         -->   m = W * mask; loop: y = m @ x

A row is dead when nothing that is returned, mutated or guarded needs it (a loop of which every other result is used keeps
the rest, to stay a loop); random draws stay, dead or not, because the
generator must end where eager leaves it. Rows that are met again, and that need nothing but leaves and such rows, are
computed once, at the front: so a transposed or masked weight leaves the loop that computes it anew in every iteration.
Rows with numbers stay where they are, because a number may be the loop's own index; what does not change in a step is
found once the step is known (fxsolve.passes.hoist_invariants).
"""

from __future__ import annotations

import numpy as np
import torch

from fxsolve import prims
from fxsolve.tape import Leaf, Output, Symbol, Tape

NAME = "clean"
SMALL = 64  # elements
EDGE = 2  # iterations at either end of a loop that may differ


def clean(tape: Tape) -> Tape:
    """The same program with repeated invariants computed once, first, and nothing computed in vain."""
    random = [is_random(symbol) for symbol in tape.symbols.items]
    alias, early = repeated_invariants(tape, random)
    live = live_rows(tape, alias, random)
    order = [row for row in live if row in early] + [row for row in live if row not in early]
    return rebuilt(tape, alias, order)


def is_random(symbol: Symbol) -> bool:
    return is_random_target(symbol.target)


def is_random_target(target: object) -> bool:
    """Whether a call target draws from a generator."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()) or target in (prims.draw, prims.draws)


def repeated_invariants(tape: Tape, random: list[bool]) -> tuple[list[int], set[int]]:
    """For each value the first one that is known to equal it (small constants too), and the rows that move to the front."""
    alias = list(range(len(tape.value_type)))
    equal: dict[object, int] = {}
    for leaf in tape.leaves:
        if leaf.kind == "constant" and leaf.tensor.numel() <= SMALL:
            key = (tape.value_type[leaf.value], tuple(map(repr, leaf.tensor.flatten().tolist())))
            alias[leaf.value] = equal.setdefault(key, leaf.value)
    met: dict[object, list[int]] = {}
    invariant = [not (random[s] or numbers) for s, numbers in zip(tape.symbol, tape.numbers, strict=True)]
    for row, inputs in enumerate(tape.inputs):
        if not invariant[row]:
            continue
        producers = [tape.value_row[alias[v]] for v in inputs]
        if not all(p < 0 or invariant[p] for p in producers):
            invariant[row] = False
            continue
        rows = met.setdefault((tape.symbol[row], tuple([alias[v] for v in inputs])), [])
        rows.append(row)
        set_alias(tape, alias, row, rows[0])
    early: set[int] = set()
    for rows in met.values():
        producers = [tape.value_row[alias[v]] for v in tape.inputs[rows[0]]]
        if len(rows) > 1 and all(p < 0 or p in early for p in producers):
            early.add(rows[0])
        else:
            for row in rows:
                set_alias(tape, alias, row, row)
    return alias, early


def set_alias(tape: Tape, alias: list[int], row: int, other: int) -> None:
    """Makes the results of a row those of another one."""
    for i in range(len(tape.symbols.items[tape.symbol[row]].outputs)):
        alias[tape.first[row] + i] = tape.first[other] + i


def live_rows(tape: Tape, alias: list[int], random: list[bool]) -> list[int]:
    """The rows that are needed, and those that are not but would be missed: see `missed_rows`."""
    wanted = [o.value for o in tape.outputs] + [v for _, v in tape.mutations] + [v for v, _ in tape.guards]
    needed = np.asarray([random[symbol] for symbol in tape.symbol], dtype=bool)
    needed[[row for v in wanted if (row := tape.value_row[alias[v]]) >= 0]] = True
    mark_producers(tape, alias, needed)
    missed = missed_rows(tape, alias, needed)
    if missed.any():
        needed |= missed
        mark_producers(tape, alias, needed)
    return np.flatnonzero(needed).tolist()


def mark_producers(tape: Tape, alias: list[int], needed: np.ndarray) -> None:
    """Marks what the marked rows need."""
    marks = bytearray(needed.astype(np.uint8).tobytes())
    for row in range(len(tape) - 1, -1, -1):
        if marks[row]:
            for value in tape.inputs[row]:
                producer = tape.value_row[alias[value]]
                if producer >= 0:
                    marks[producer] = 1
    needed[:] = np.frombuffer(marks, dtype=np.uint8)


def missed_rows(tape: Tape, alias: list[int], needed: np.ndarray) -> np.ndarray:
    """Dead rows whose like, from the same line, are needed here and there: without them a loop would lose its rhythm.

    (Not where only the first or last ones are needed: those become iterations of their own.)
    """
    first = np.asarray(tape.first, dtype=np.int64)
    own = np.asarray(alias, dtype=np.int64)[first] == first if len(first) else np.zeros(0, dtype=bool)
    likes = np.asarray(tape.symbol, dtype=np.int64) * len(tape.sources.items) + np.asarray(tape.source, dtype=np.int64)
    found = np.zeros(len(tape), dtype=bool)
    for like in np.intersect1d(likes[needed], likes[own & ~needed]):
        rows = np.flatnonzero((likes == like) & own)
        if needed[rows][EDGE:-EDGE].any():
            found[rows] = True
    return found


def rebuilt(tape: Tape, alias: list[int], order: list[int]) -> Tape:
    """A tape of the given rows, values numbered anew."""
    new = Tape(symbols=tape.symbols, types=tape.types, sources=tape.sources)
    value = [-1] * len(tape.value_type)
    for leaf in tape.leaves:
        value[leaf.value] = new.new_value(tape.value_type[leaf.value])
        new.leaves.append(Leaf(value[leaf.value], leaf.kind, leaf.name, leaf.tensor, leaf.position))
    for row in order:
        inputs = tuple([value[alias[v]] for v in tape.inputs[row]])
        results = new.append(tape.symbol[row], inputs, tape.numbers[row], tape.source[row])
        first = tape.first[row]
        for i, result in enumerate(results):
            value[first + i] = result
    new.outputs = [Output(value[alias[o.value]], o.leaf, o.region, o.cell) for o in tape.outputs]
    new.mutations = [(leaf, value[alias[v]]) for leaf, v in tape.mutations]
    new.guards = [(value[alias[v]], expected) for v, expected in tape.guards]
    return new
