"""Roll: find the repeating runs of rows of a tape, by structure.

    row 0 .. p-1 | row p .. 2p-1 | ... | row (n-1)p .. np-1      -->   n iterations of one step of p rows

Equal work has equal symbols, so a loop is a stretch in which symbol[k] == symbol[k + p]. The stretch is a loop if, in
each iteration, every input is one of

- local: a value of the same iteration;
- carried: a value of an earlier iteration, always the same distance back (the first ones may come from outside);
- invariant: one value from before the loop;
- stacked: another value from before the loop in each iteration.

Numbers that differ between iterations become columns of a table. Iterations that differ at either end are peeled: they
stay plain rows. The loop is cut where the least data crosses, so that the carried state is as small as it can be.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from fxsolve.tape import Tape

NAME = "roll"

MIN_ITERATIONS = 4
MIN_ROWS = 16  # in all: less is not worth a block
CANDIDATES = 48
OCCURRENCES = 6
SAME = 1.02  # a period must save 2 % more than a shorter one to be preferred


@dataclass(frozen=True)
class Loop:
    """`count` iterations of `period` rows from row `start` on; `inputs` classifies the step's inputs, one a column."""

    start: int
    period: int
    count: int
    columns: tuple[Column, ...]
    numbers: np.ndarray  # (count, numbers of a step), object dtype: ints and floats as recorded

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count


@dataclass(frozen=True)
class Column:
    """One input of one row of the step: where its value comes from in each iteration."""

    kind: str  # local, carried, invariant or stacked
    position: int = 0  # local, carried: which value of the iteration
    distance: int = 0  # carried: how many iterations back
    value: int = -1  # invariant
    values: tuple[int, ...] = ()  # stacked: one an iteration; carried: the first `distance` ones


def roll(tape: Tape) -> list[Loop]:
    """The loops of a tape in order, disjoint; the rest are plain rows."""
    symbols = np.asarray(tape.symbol, dtype=np.int64)
    loops: list[Loop] = []
    pending = [(0, len(tape.symbol))]
    while pending:
        low, high = pending.pop()
        if high - low < MIN_ITERATIONS:
            continue
        found = best_loops(tape, symbols, low, high)
        loops += found
        edges = [low, *(row for loop in found for row in (loop.start, loop.stop)), high]
        if found:
            pending += list(zip(edges[::2], edges[1::2], strict=True))
    return sorted(loops, key=lambda loop: loop.start)


def best_loops(tape: Tape, symbols: np.ndarray, low: int, high: int) -> list[Loop]:
    """The loops of one period, between two rows, that save the most sequential work."""
    best: list[Loop] = []
    saved = 0.0
    for possible, period, runs in candidate_periods(symbols[low:high]):
        if possible <= saved * SAME:
            break
        loops = [loop for start, length in runs if (loop := verified(tape, low + start, length, period)) is not None]
        now = sum(savings(loop.count * period, period) for loop in loops)
        if now > saved * SAME:
            best, saved = loops, now
    return best


def savings(rows: int, period: int) -> float:
    """Rows that a rolled loop covers less those that stay sequential: a loop of few long steps is worth less."""
    return rows * (1 - period / rows)


def candidate_periods(symbols: np.ndarray) -> list[tuple[float, int, list[tuple[int, int]]]]:
    """(savings, period, its periodic stretches (start, rows)), best first; within 2 % the shorter period comes first."""
    gaps: Counter[int] = Counter()
    order = np.argsort(symbols, kind="stable")
    for back in range(1, OCCURRENCES + 1):
        if len(order) <= back:
            break
        same = symbols[order[back:]] == symbols[order[:-back]]
        distance = (order[back:] - order[:-back])[same]
        values, counts = np.unique(distance, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            gaps[value] += count
    found = []
    for period, _ in gaps.most_common(CANDIDATES):
        equal = stretches(symbols[period:] == symbols[:-period])
        enough = max(MIN_ITERATIONS * period, MIN_ROWS)
        runs = [(start, length + period) for start, length in equal if length + period >= enough]
        if runs:
            found.append((sum(savings(rows, period) for _, rows in runs), period, runs))
    most = max((possible for possible, _, _ in found), default=0.0)
    return sorted(found, key=lambda each: (round(50 * (1 - each[0] / most)), each[1]))


def stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """Start and length of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), (edges[1::2] - edges[::2]).tolist(), strict=True))


def verified(tape: Tape, start: int, rows: int, period: int) -> Loop | None:
    """The largest loop inside a periodic stretch of symbols whose dataflow repeats as well, cut where least crosses."""
    narrowed = narrow(tape, start, rows, period)
    if narrowed is None:
        return None
    start, rows = narrowed
    shift = cheapest_cut(tape, start, rows // period, period)
    narrowed = narrow(tape, start + shift, rows - shift, period)
    if narrowed is None:
        return None
    start, rows = narrowed
    count = rows // period
    inputs = input_matrix(tape, start, count, period)
    columns = classify(inputs, tape.first[start], values_per_step(tape, start, period))
    if columns is None:
        return None
    numbers = np.empty((count, sum(len(tape.numbers[start + j]) for j in range(period))), dtype=object)
    for r in range(count):
        first = start + r * period
        numbers[r, :] = [n for row in tape.numbers[first : first + period] for n in row]
    return Loop(start, period, count, tuple(columns), numbers)


def narrow(tape: Tape, start: int, rows: int, period: int) -> tuple[int, int] | None:
    """The part of a stretch in which the dataflow repeats; whole iterations may be lost at either end."""
    for _ in range(4):
        count = rows // period
        if count < MIN_ITERATIONS:
            return None
        step_values = values_per_step(tape, start, period)
        inputs = input_matrix(tape, start, count, period)
        first = tape.first[start]
        low, high = consistent_range(inputs, first, step_values)
        if high - low < MIN_ITERATIONS:
            return None
        if (low, high) == (0, count):
            return start, rows
        start, rows = start + low * period, (high - low) * period
    return None


def values_per_step(tape: Tape, start: int, period: int) -> int:
    return sum(len(tape.symbols.items[tape.symbol[start + j]].outputs) for j in range(period))


def input_matrix(tape: Tape, start: int, count: int, period: int) -> np.ndarray:
    """(iterations, inputs of a step): the values that go in."""
    flat = [v for row in tape.inputs[start : start + count * period] for v in row]
    return np.asarray(flat, dtype=np.int64).reshape(count, -1)


def consistent_range(inputs: np.ndarray, first: int, step_values: int) -> tuple[int, int]:
    """The iterations, around the middle one, in which every column keeps its kind."""
    count = len(inputs)
    low, high = 0, count
    base = first + step_values * np.arange(count)
    middle = count // 2
    for column in inputs.T:
        relative = column - base
        if column[middle] >= first:
            good = relative == relative[middle]
            distance = max(0, -(int(relative[middle]) // step_values))
            good[:distance] |= column[:distance] < first
        elif column[middle] == column[max(middle - 1, 0)] or column[middle] == column[min(middle + 1, count - 1)]:
            good = column == column[middle]
        else:
            good = column < first
        bad_before = np.flatnonzero(~good[:middle])
        bad_after = np.flatnonzero(~good[middle:])
        low = max(low, int(bad_before[-1]) + 1 if len(bad_before) else 0)
        high = min(high, middle + int(bad_after[0]) if len(bad_after) else count)
    return low, high


def classify(inputs: np.ndarray, first: int, step_values: int) -> list[Column] | None:
    """The kind of each column; None if a column is none of the kinds."""
    count = len(inputs)
    base = first + step_values * np.arange(count)
    columns = []
    for column in inputs.T:
        relative = column - base
        last = int(relative[-1])
        if column[-1] >= first:
            distance = max(0, -(last // step_values))
            if not (relative[distance:] == last).all() or (column[:distance] >= first).any():
                return None
            position = last + distance * step_values
            kind = "carried" if distance else "local"
            columns.append(Column(kind, position, distance, values=tuple(column[:distance].tolist())))
        elif (column == column[0]).all():
            columns.append(Column("invariant", value=int(column[0])))
        elif (column < first).all() and len(np.unique(column)) == count:
            columns.append(Column("stacked", values=tuple(column.tolist())))
        else:
            return None
    return columns


def cheapest_cut(tape: Tape, start: int, count: int, period: int) -> int:
    """How many rows to shift the cut between iterations, so that the fewest bytes cross it."""
    step_values = values_per_step(tape, start, period)
    first = tape.first[start]
    inputs = input_matrix(tape, start, count, period)[-1] - (first + step_values * (count - 1))
    consumer = np.repeat(np.arange(period), [len(tape.inputs[start + j]) for j in range(period)])
    producer_of = np.repeat(
        np.arange(period), [len(tape.symbols.items[tape.symbol[start + j]].outputs) for j in range(period)]
    )
    inside = inputs >= -step_values * (count - 1)
    distance = np.maximum(0, -(inputs // step_values))[inside]
    position = (inputs % step_values)[inside]
    consumer = consumer[inside]
    size = np.asarray([max(1, tape.type_of(first + v).numel) for v in range(step_values)])
    cuts = np.arange(period)[:, None]
    crossing = distance + (producer_of[position][None, :] < cuts) - (consumer[None, :] < cuts)
    reach = np.zeros((period, step_values), dtype=np.int64)
    for edge in range(len(position)):
        np.maximum(reach[:, position[edge]], crossing[:, edge], out=reach[:, position[edge]])
    cost = (reach * size).sum(axis=1)
    return int(cost.argmin())
