"""Roll: find the repeating runs of rows of a tape, by structure.

    row 0 .. p-1 | row p .. 2p-1 | ... | row (n-1)p .. np-1      -->   n iterations of one step of p rows

Equal work has equal symbols, so a loop is a stretch in which symbol[k] == symbol[k + p]. The stretch is a loop if, in
each iteration, every input is one of

- local: a value of the same iteration;
- carried: a value of an earlier iteration, always the same distance back (the first ones may come from outside);
- invariant: one value from before the loop;
- stacked: another value from before the loop in each iteration.

Numbers that differ between iterations become columns of a table. Iterations that differ at either end are peeled: they
stay plain rows. The loop is cut where the least data crosses, so that the carried state is as small as it can be. Of all
the loops that are found, at all periods, the disjoint ones that leave the shortest program are kept: an inner loop
becomes part of the step of an outer one where that is shorter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fxsolve import prims
from fxsolve.passes.numbers import fits, vary
from fxsolve.tape import Tape

NAME = "roll"

MIN_ITERATIONS = 4
MIN_ROWS = 16  # in all: less is not worth a block
BLOCK = 16.0  # rows: what one more block costs
CANDIDATES = 48
OCCURRENCES = 6
ROUNDS = 8
CUTS = 4  # places of the cut that are tried
MAX_DISTANCE = 16  # of a carried value: it takes as many carries


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
    flow = Flow.of(tape)
    runs: list[Run] = []
    pending = [(0, len(tape))]
    while pending:
        low, high = pending.pop()
        found = shortest_program(runs_between(flow, low, high))
        runs += found
        edges = [low, *(row for run in found for row in (run.start, run.stop)), high]
        if found:
            pending += list(zip(edges[::2], edges[1::2], strict=True))
    loops = [loop_of(tape, flow, run) for run in sorted(runs, key=lambda run: run.start)]
    return [loop for loop in loops if numbers_fit(tape, loop)]


@dataclass(frozen=True)
class Run:
    """A loop without its columns and numbers."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count

    @property
    def saved(self) -> float:
        """By how many rows a program is shorter for it; of a period and its multiples the period saves more."""
        return (self.count - 1.1) * self.period - BLOCK


@dataclass(frozen=True)
class Stretch:
    """Rows whose symbols repeat: symbol[k] == symbol[k + period]."""

    start: int
    stop: int
    period: int

    @property
    def saved(self) -> float:
        """What the stretch would save if it were one loop."""
        return Run(self.start, self.period, (self.stop - self.start) // self.period).saved


@dataclass(frozen=True)
class Flow:
    """A tape's dataflow as arrays: row k takes inputs[input_start[k]:input_start[k+1]] and gives values from first[k] on."""

    symbols: np.ndarray
    inputs: np.ndarray
    input_start: np.ndarray
    first: np.ndarray  # one more than rows
    size: np.ndarray  # elements of each value
    idle: np.ndarray  # rows that compute nothing: views

    @staticmethod
    def of(tape: Tape) -> Flow:
        numel = [max(1, kind.numel) for kind in tape.types.items] + [1]  # the last one is that of absent results
        idle = np.asarray([is_view(symbol.target) for symbol in tape.symbols.items], dtype=bool)
        symbols = np.asarray(tape.symbol, dtype=np.int64)
        return Flow(
            symbols,
            np.asarray([v for inputs in tape.inputs for v in inputs], dtype=np.int64),
            np.concatenate(([0], np.cumsum([len(inputs) for inputs in tape.inputs], dtype=np.int64))),
            np.asarray([*tape.first, len(tape.value_type)], dtype=np.int64),
            np.asarray(numel, dtype=np.int64)[tape.value_type],
            idle[symbols] if len(symbols) else np.zeros(0, dtype=bool),
        )

    def step(self, start: int, period: int) -> tuple[int, int]:
        """The first value of an iteration, and how many values it makes."""
        return int(self.first[start]), int(self.first[start + period] - self.first[start])

    def matrix(self, start: int, count: int, period: int) -> np.ndarray:
        """(iterations, inputs of a step): the values that go in."""
        return self.inputs[self.input_start[start] : self.input_start[start + count * period]].reshape(count, -1)


@cache
def is_view(target: Any) -> bool:
    """Whether a call only shows its input in another way."""
    if target is prims.read:
        return True
    schema = getattr(target, "_schema", None)
    return schema is not None and any(a.alias_info is not None and not a.alias_info.is_write for a in schema.returns)


# -- which loops ------------------------------------------------------------------------------------


def shortest_program(runs: list[Run]) -> list[Run]:
    """The disjoint runs that save most in all (weighted interval scheduling), in order."""
    runs = sorted(runs, key=lambda run: run.stop)
    stops = [run.stop for run in runs]
    best: list[tuple[float, int]] = [(0.0, -1)]  # after k runs: rows saved, the last run taken
    for k, run in enumerate(runs):
        before = bisect_right(stops, run.start, hi=k)
        saved = best[before][0] + run.saved
        best.append((saved, k) if saved > best[-1][0] else best[-1])
    taken: list[Run] = []
    k = len(runs)
    while best[k][1] >= 0:
        taken.append(runs[best[k][1]])
        k = bisect_right(stops, taken[-1].start, hi=best[k][1])
    return taken[::-1]


def runs_between(flow: Flow, low: int, high: int) -> list[Run]:
    """Loops between two rows, of all periods that could save more than the loops found before them."""
    found: list[Run] = []
    tried: set[tuple[int, int]] = set()
    pending = stretches(flow.symbols[low:high], low)
    while pending:
        pending.sort(key=lambda each: (round(50 * np.log(max(each.saved, 1.0))), -each.period))
        most = pending.pop()
        inside = sum(run.saved for run in found if most.start <= run.start and run.stop <= most.stop)
        if most.saved <= max(inside * 1.02, 0.0) or (most.start, most.period) in tried:
            continue
        tried.add((most.start, most.period))
        pending += [Stretch(most.start, most.stop, most.period * multiple) for multiple in multiples(flow, most)]
        found += loops_inside(flow, most)
    return found


def stretches(symbols: np.ndarray, low: int) -> list[Stretch]:
    """The periodic stretches of symbols, for the most frequent distances of equal symbols; the first row is `low`."""
    gaps: Counter[int] = Counter()
    order = np.argsort(symbols, kind="stable")
    for back in range(1, min(OCCURRENCES + 1, len(order))):
        same = symbols[order[back:]] == symbols[order[:-back]]
        values, counts = np.unique((order[back:] - order[:-back])[same], return_counts=True)
        gaps.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    found = []
    for period, _ in gaps.most_common(CANDIDATES):
        equal = symbols[period:] == symbols[:-period]
        edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.astype(np.int8), [0]))))
        starts, stops = edges[::2] + low, edges[1::2] + period + low
        enough = np.flatnonzero(stops - starts >= max(MIN_ITERATIONS * period, MIN_ROWS))
        found += [Stretch(int(starts[k]), int(stops[k]), period) for k in enough]
    return found


def multiples(flow: Flow, stretch: Stretch) -> list[int]:
    """Multiples of a period at which the dataflow may repeat where it does not repeat at the period itself."""
    count = (stretch.stop - stretch.start) // stretch.period
    first, size = flow.step(stretch.start, stretch.period)
    inputs = flow.matrix(stretch.start, count, stretch.period)
    changes = turns(inputs, first, size)
    guesses: Counter[int] = Counter()
    for back in range(1, 4):
        guesses.update((changes[back:] - changes[:-back]).tolist())
    middle = count // 2
    guesses.update(kind.distance for kind in kinds(inputs, first, size, middle) if kind.distance > MAX_DISTANCE)
    for column in inputs.T:
        again = np.flatnonzero(column[middle + 1 :] == column[middle])
        if len(again):
            guesses[int(again[0]) + 1] += 1
    likely = [(gap, times) for gap, times in guesses.items() if 1 < gap <= count // MIN_ITERATIONS]
    return [gap for gap, _ in sorted(likely, key=lambda guess: (-guess[1], guess[0]))[:4]]


# -- one loop ---------------------------------------------------------------------------------------


def loops_inside(flow: Flow, stretch: Stretch) -> list[Run]:
    """The disjoint loops of a stretch whose symbols repeat."""
    found, period = [], stretch.period
    pending = [(stretch.start, stretch.stop)]
    while pending:
        low, high = pending.pop()
        count = (high - low) // period
        if count < MIN_ITERATIONS or high - low < MIN_ROWS:
            continue
        begin, end = steadiest(flow.matrix(low, count, period), *flow.step(low, period))
        run = verified(flow, low, high, period, begin, end)
        if run is not None:
            found.append(run)
            pending += [(low, run.start), (run.stop, high)]
        elif end - begin < count:
            pending += [(low, low + begin * period), (low + end * period, high)]
    return [run for run in found if not flow.idle[run.start : run.start + run.period].all()]


def steadiest(inputs: np.ndarray, first: int, size: int) -> tuple[int, int]:
    """The longest stretch of iterations without a turn."""
    edges = np.concatenate(([0], turns(inputs, first, size), [len(inputs)]))
    longest = int(np.diff(edges).argmax())
    return int(edges[longest]), int(edges[longest + 1])


def turns(inputs: np.ndarray, first: int, size: int) -> np.ndarray:
    """The iterations in which a column does not go on as it did.

    It goes with the loop, stands still, or takes other values, from before the stretch or from inside of it.
    """
    step = np.diff(inputs, axis=0)
    course = np.where(step == size, 0, np.where(step == 0, 1, np.where(inputs[1:] < first, 2, 3)))
    return np.flatnonzero((course[1:] != course[:-1]).any(axis=1)) + 1


def verified(flow: Flow, start: int, stop: int, period: int, begin: int, end: int) -> Run | None:
    """The loop around iterations `begin` to `end` of a stretch of symbols, cut where least crosses."""
    run = around(flow, start, stop, period, begin, end)
    if run is None:
        return None
    tries = []
    for shift in cheapest_cuts(flow, run)[:CUTS]:
        # The rows before the cut may complete an iteration with rows that the first try left over.
        cut = run.start + shift
        first = start + (cut - start) % period
        begin = (cut - first) // period
        tries.append(around(flow, first, stop, period, begin, begin + run.count - (shift > 0)))
    run = max((run for run in tries if run is not None), key=lambda run: run.count, default=None)
    columns = None if run is None or run.count * period < MIN_ROWS else columns_of(flow, run)
    return run if columns is not None and all(c.distance <= MAX_DISTANCE for c in columns) else None


def around(flow: Flow, start: int, stop: int, period: int, begin: int, end: int) -> Run | None:
    """The iterations around `begin` to `end` in which the dataflow repeats.

    What comes from before the loop is told from what comes from the loop by where the loop starts; so the steady part is
    tried by itself, and then with iterations before it, if all of the stretch is not one loop.
    """
    count, middle = (stop - start) // period, (begin + end) // 2
    run = narrow(flow, start, count, period, middle)
    if begin and (run is None or run.count < end - begin):
        run = narrow(flow, start + begin * period, count - begin, period, middle - begin)
    for _ in range(MAX_DISTANCE):
        if run is None or run.start - period < start:
            break
        wider = Run(run.start - period, period, run.count + 1)
        if columns_of(flow, wider) is None:
            break
        run = wider
    return run


def narrow(flow: Flow, start: int, count: int, period: int, middle: int) -> Run | None:
    """The iterations around one of a stretch in which the dataflow repeats; whole ones may be lost at either end."""
    for _ in range(ROUNDS):
        if count < MIN_ITERATIONS:
            return None
        middle = min(middle, count - 1)
        low, high = consistent_range(flow.matrix(start, count, period), *flow.step(start, period), middle)
        if (low, high) == (0, count):
            return Run(start, period, count)
        start, count, middle = start + low * period, high - low, middle - low
    return None


@dataclass(frozen=True)
class Kind:
    """Where a column's value in one iteration comes from, and in which iterations it is of that kind."""

    distance: int  # -1: from before the loop
    position: int
    good: np.ndarray


def kinds(inputs: np.ndarray, first: int, size: int, middle: int) -> list[Kind]:
    """The kind of each column, judged by one iteration."""
    count = len(inputs)
    base = first + size * np.arange(count)
    found = []
    for column in inputs.T:
        value = column[middle]
        if value >= first:
            relative = column - base
            distance = max(0, -(int(relative[middle]) // size))
            good = relative == relative[middle]
            good[:distance] |= column[:distance] < first
            found.append(Kind(distance, int(relative[middle]) + distance * size, good))
        elif value == column[max(middle - 1, 0)] or value == column[min(middle + 1, count - 1)]:
            found.append(Kind(-1, 0, column == value))
        else:
            found.append(Kind(-1, 0, column < first))
    return found


def consistent_range(inputs: np.ndarray, first: int, size: int, middle: int) -> tuple[int, int]:
    """The iterations around one in which every column keeps its kind."""
    low, high = 0, len(inputs)
    for column in kinds(inputs, first, size, middle):
        before = np.flatnonzero(~column.good[:middle])
        after = np.flatnonzero(~column.good[middle:])
        low = max(low, int(before[-1]) + 1 if len(before) else 0)
        high = min(high, middle + int(after[0]) if len(after) else high)
    return low, high


def columns_of(flow: Flow, run: Run) -> list[Column] | None:
    """The columns of a loop; None if one is none of the kinds."""
    inputs = flow.matrix(run.start, run.count, run.period)
    columns = []
    found = kinds(inputs, *flow.step(run.start, run.period), run.count // 2)
    for column, kind in zip(inputs.T, found, strict=True):
        if not kind.good.all():
            return None
        if kind.distance >= 0:
            name = "carried" if kind.distance else "local"
            columns.append(Column(name, kind.position, kind.distance, values=tuple(column[: kind.distance].tolist())))
        elif (column == column[0]).all():
            columns.append(Column("invariant", value=int(column[0])))
        elif not cycles(column):
            columns.append(Column("stacked", values=tuple(column.tolist())))
        else:
            return None
    return columns


def cycles(column: np.ndarray) -> bool:
    """Whether values come round again and again: then the iterations of one round are the step, each with its own."""
    again = np.flatnonzero(column[1:] == column[0])
    lag = int(again[0]) + 1 if len(again) else len(column)
    return lag <= len(column) // MIN_ITERATIONS and bool((column[lag:] == column[:-lag]).all())


def cheapest_cuts(flow: Flow, run: Run) -> list[int]:
    """How many rows to shift the cut between iterations, so that the fewest elements cross it.

    A value that row p makes and row q takes `distance` iterations later crosses a cut before row c
    `distance + [p < c] - [q < c]` times; of several takers the latest counts.
    """
    first, size = flow.step(run.start, run.period)
    rows = np.arange(run.start, run.start + run.period)
    consumer = np.repeat(np.arange(run.period), np.diff(flow.input_start)[rows])
    producer = np.repeat(np.arange(run.period), np.diff(flow.first)[rows])
    inputs = flow.matrix(run.start, run.count, run.period)[-1] - (first + size * (run.count - 1))
    inside = inputs >= -size * (run.count - 1)
    inputs, consumer = inputs[inside], consumer[inside]
    distance, value = np.maximum(0, -(inputs // size)), inputs % size
    order = np.lexsort((consumer, distance, value))
    last = order[np.flatnonzero(np.diff(value[order], append=-1))]
    weight = flow.size[first + value[last]]
    crossing = np.zeros(run.period + 1, dtype=np.int64)
    crossing[0] = (weight * distance[last]).sum()
    np.add.at(crossing, producer[value[last]] + 1, weight)
    np.add.at(crossing, consumer[last] + 1, -weight)
    cost = np.cumsum(crossing)[: run.period]
    return np.flatnonzero(cost == cost.min()).tolist()


def loop_of(tape: Tape, flow: Flow, run: Run) -> Loop:
    """A run with its columns and numbers."""
    columns = columns_of(flow, run)
    assert columns is not None
    rows = tape.numbers[run.start : run.stop]
    width = sum(len(numbers) for numbers in rows[: run.period])
    numbers = np.empty(run.count * width, dtype=object)
    numbers[:] = [n for row in rows for n in row]
    return Loop(run.start, run.period, run.count, tuple(columns), numbers.reshape(run.count, width))


def numbers_fit(tape: Tape, loop: Loop) -> bool:
    """Whether every number that varies may vary."""
    rows = range(loop.start, loop.start + loop.period)
    holes = [(tape.symbols.items[tape.symbol[row]], k) for row in rows for k in range(len(tape.numbers[row]))]
    return all(fits(*hole) or not vary(column.tolist()) for column, hole in zip(loop.numbers.T, holes, strict=True))
