"""Dead rows and common subexpressions of a tape.

    v = f(a); w = f(a); return w          -->   v = f(a); return v
    loop: m = W * mask; y = m @ x         -->   m = W * mask; loop: y = m @ x

A row is dead when nothing that is returned, mutated or guarded needs it; random draws stay, dead or not, because the
generator must end where eager leaves it. Rows that are met again, and that need nothing but leaves and such rows, move to
the front: so a transposed or masked weight leaves the loop that computes it anew in every iteration.
"""

from __future__ import annotations

import torch

from fxsolve import prims
from fxsolve.tape import Leaf, Output, Symbol, Tape

NAME = "clean"


def clean(tape: Tape) -> Tape:
    """The same program with each value computed once, invariants first, and nothing computed in vain."""
    random = [is_random(symbol) for symbol in tape.symbols.items]
    alias, repeated = common_values(tape, random)
    live = live_rows(tape, alias, random)
    early = invariant_rows(tape, alias, repeated, random)
    order = [row for row in live if row in early] + [row for row in live if row not in early]
    return rebuilt(tape, alias, order)


def is_random(symbol: Symbol) -> bool:
    return is_random_target(symbol.target)


def is_random_target(target: object) -> bool:
    """Whether a call target draws from a generator."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()) or target in (prims.draw, prims.draws)


def common_values(tape: Tape, random: list[bool]) -> tuple[list[int], set[int]]:
    """For each value the first value that equals it, and the rows that were met again."""
    alias = list(range(len(tape.value_type)))
    seen: dict[object, int] = {}
    repeated: set[int] = set()
    for row, symbol in enumerate(tape.symbol):
        if random[symbol]:
            continue
        key = (symbol, tuple([alias[v] for v in tape.inputs[row]]), tape.numbers[row])
        if tape.numbers[row]:
            key += (tuple(map(repr, tape.numbers[row])),)  # 1 and 1.0, 0.0 and -0.0 differ
        earlier = seen.setdefault(key, row)
        if earlier != row:
            repeated.add(earlier)
            for i in range(len(tape.symbols.items[symbol].outputs)):
                alias[tape.first[row] + i] = tape.first[earlier] + i
    return alias, repeated


def live_rows(tape: Tape, alias: list[int], random: list[bool]) -> list[int]:
    wanted = [o.value for o in tape.outputs] + [v for _, v in tape.mutations] + [v for v, _ in tape.guards]
    needed = bytearray(len(tape.symbol))
    for value in wanted:
        row = tape.value_row[alias[value]]
        if row >= 0:
            needed[row] = 1
    for row in range(len(tape.symbol) - 1, -1, -1):
        if random[tape.symbol[row]]:
            needed[row] = 1
        if needed[row]:
            for value in tape.inputs[row]:
                producer = tape.value_row[alias[value]]
                if producer >= 0:
                    needed[producer] = 1
    return [row for row, mark in enumerate(needed) if mark]


def invariant_rows(tape: Tape, alias: list[int], repeated: set[int], random: list[bool]) -> set[int]:
    early: set[int] = set()
    for row in sorted(repeated):
        producers = [tape.value_row[alias[v]] for v in tape.inputs[row]]
        if all(p < 0 or p in early for p in producers):
            early.add(row)
    return early


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
