"""A Recurrence, solved: parallel blocks that are walked until they meet, or one walk in order, with its certificate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from fxsolve.beside import BesideInOrder, BesideTheGuess, BesideTheLast, Walk
from fxsolve.bits import same_bits
from fxsolve.certificate import CONTRACTION, GOOD, LOOKS, yardsticks
from fxsolve.cost import Phase, Timed, call_count
from fxsolve.ir import CARRY, TensorType
from fxsolve.iterates import note
from fxsolve.lowered import Layout, LoweredRecurrence, fold
from fxsolve.replay import kept
from fxsolve.solution import NotSolved
from fxsolve.solvers import Solver, drive
from fxsolve.timing import typical

Tensors = Sequence[torch.Tensor]


def solve(
    lowered: LoweredRecurrence, solver: Solver, initial: Tensors, stacked: Tensors, consts: Tensors, limit: int | None
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """(final carries.., stacked outputs..) and the figures of a BlockSolution. Raises NotSolved without certificate."""
    problem = RecurrenceProblem(lowered, solver, initial, stacked, consts)
    with threads(lowered.threads):
        frontier = drive(problem, solver, limit)
        chaotic = problem.contraction is not None and problem.contraction >= 1.0
        if frontier and (frontier[-1] < lowered.block.length or chaotic):
            raise NotSolved(problem.why_not())
        values, certificate = problem.finish()
    figures = {
        "sweeps": len(frontier),
        "steps": problem.steps,
        "frontier": frontier,
        "residual": problem.residual,
        "contraction": problem.contraction,
        "certificate": certificate,
    }
    return values, figures


def phases(
    lowered: LoweredRecurrence, solver: Solver, initial: Tensors, stacked: Tensors, consts: Tensors, limit: int | None
) -> tuple[Phase, ...]:
    """What the phases of a solution take. Raises NotSolved without certificate."""

    def solution() -> tuple[RecurrenceProblem, Timed]:
        problem = RecurrenceProblem(lowered, solver, initial, stacked, consts)
        timed = Timed(problem)
        drive(timed, solver, limit)
        timed.took("commit", problem.finish)
        return problem, timed

    with threads(lowered.threads):
        problem, timed = typical(solution, lambda pair: pair[1].total())
    length, count = lowered.block.length, problem.layout.count
    split, steps = lowered.split, max(1, problem.steps)
    return (
        Phase("inputs of all steps", timed.seconds["open"], 1, call_count(split.pre), length),
        Phase("steps", timed.seconds["sweep"] / steps, steps, call_count(split.core), count),
        Phase("checks and results", timed.seconds["commit"], 1, call_count(split.post), length),
    )


class RecurrenceProblem:
    """One call's system: see fxsolve.solvers.contract.Problem."""

    def __init__(self, lowered: LoweredRecurrence, solver: Solver, initial: Tensors, stacked: Tensors, consts: Tensors) -> None:
        self.lowered, self.consts = lowered, consts
        self.stacked = stacked
        self.equations = lowered.block.length
        self.warmup = getattr(solver, "warmup", None)
        self.check = getattr(solver, "check", None)
        self.carry = list(initial)
        self.device = (
            initial[0].device if initial else (stacked or consts)[0].device if stacked or consts else torch.device("cpu")
        )
        self.steps = 0
        self.residual = 0.0
        self.violation = math.inf
        self.contraction: float | None = None
        self.pieces: list[list[torch.Tensor]] = []

    # -- the contract -----------------------------------------------------------------------------

    def open(self, low: int, high: int, block: int) -> None:
        self.low, self.high = low, high
        lowered, length = self.lowered, high - low
        self.layout = layout = lowered.layout(length, block, self.device)
        first = int(min(lowered.place(low, self.equations), lowered.place(high - 1, self.equations)))
        order = layout.order + first if layout.count == 1 else lowered.place(layout.order + low, self.equations)
        self.table = lowered.table(low, layout, order)
        if layout.count == 1 or lowered.hoists_first:  # the window's inputs stay where they are
            inputs = [x if length == self.equations else x.narrow(0, first, length) for x in self.stacked]
        else:
            inputs = [x.index_select(0, order) for x in self.stacked]
        hoisted = list(layout.pre(*inputs, *self.table, *self.consts))
        del inputs
        if layout.count > 1 and lowered.hoists_first:
            for k, u in enumerate(hoisted):
                hoisted[k] = u.index_select(0, order - first)
                del u
        self.hoisted: list[Any] = hoisted
        self.index = self.core_index(low)
        # the step of a block at which its warm-up begins
        self.first = layout.block - min(self.warmup or layout.block, layout.block)
        self.starts = self.spread(self.carry)
        self.sweeps = 0
        self.trails: dict[int, torch.Tensor] = {}
        self.walk: Walk | None = None  # the last sweep
        self.moved = True  # whether the next sweep starts beside the boundaries that were found
        self.moved_again = False
        self.settling = math.inf  # the violation that the last sweep left, if it was not moved
        self.final = 1  # the leading blocks that start from their true states
        self.at_once = False  # whether all steps of the last sweep were walked at once, as a CUDA graph
        self.met = False  # whether it ends in the one before, and every block forgets
        self.far: float | None = None  # what the last steps of a block leave of the warm-up's guess
        self.local: float | None = None  # what a block leaves of a small difference at its start, at the most
        self.ratios = torch.zeros(layout.count, device=self.device)  # of each block

    def core_index(self, low: int) -> list[list[Any]]:
        """For each call of the core the index constants: numbers in order, tensors of one number a block in parallel."""
        layout, kept = self.layout, self.lowered.indices
        key = (low, layout.length, layout.block)
        if key not in kept and layout.count == 1:
            places = [self.lowered.place(low + j, self.equations) for j in range(layout.block)]
            kept[key] = [[c[place] for c in self.lowered.block.table] for place in places]
        elif key not in kept:
            columns = [t.view(layout.block, layout.count) for t in self.table]
            kept[key] = [[c[j] for c in columns] for j in range(layout.block)]
        return kept[key]

    def sweep(self) -> None:
        """Walks all blocks from their starts, until the walk meets that of the sweep before."""
        layout = self.layout
        if self.sweeps == 0 and layout.count > 1:
            self.warm_up()
        self.sweeps += 1
        if layout.count == 1:
            with torch.inference_mode():  # what comes out is stacked or copied outside
                self.walk = Walk(self.starts, *self.in_one_go())
            self.steps += layout.block
            return
        before, whole = self.walk, self.graph_walk(0, self.starts)
        self.walk, self.at_once = whole or Walk(self.starts, [], []), whole is not None
        carries, beside = self.lowered.block.carries, None
        if carries and self.lowered.continuous:
            beside = BesideTheGuess(self) if before is None else None if self.moved else BesideTheLast(self, before)
        if whole is not None:
            for j in filter(self.looked_at, range(layout.block)):
                if beside is not None and beside.meets(j):
                    self.end_in(before, j)
            return
        state = self.starts
        states, extras = self.walk.states, self.walk.extras
        core, consts = layout.core, self.consts
        for j, (given, index) in enumerate(zip(self.folded, self.index, strict=True)):
            out = core(*state, *given, *index, *consts)
            state = out[:carries]
            states.append(state)
            extras.append(out[carries:])
            if beside is not None and self.looked_at(j, closely=before is not None) and beside.meets(j):
                self.end_in(before, j)
                break
            if before is not None:  # it is needed no more, and what is kept leaves the caches
                before.states[j] = before.extras[j] = ()
        self.steps += j + 1

    def end_in(self, before: Walk | None, step: int) -> None:
        """From that step on, the states are those of the sweep before."""
        assert self.walk is not None and before is not None
        self.walk.states[step:], self.walk.extras[step + 1 :] = before.states[step:], before.extras[step + 1 :]
        self.met = True

    def in_one_go(self) -> tuple[list[Any], list[Any]]:
        """(states, extras) after each step of a walk in order: of a CUDA graph where there is one."""
        layout, index, reverse, steps = self.layout, self.index, self.lowered.block.reverse, self.lowered.walk
        carried, hoisted = len(self.starts), len(self.starts) + len(self.hoisted)

        def walk(*inputs: torch.Tensor) -> tuple[list[Any], list[Any]]:
            rows = rows_of(inputs[carried:hoisted], layout, reverse)
            return steps(list(inputs[:carried]), rows, index, inputs[hoisted:])

        inputs = [*self.starts, *self.hoisted, *self.consts]
        replay = self.lowered.replay((self.low, self.high, layout.block, 0), layout.block, walk, inputs)
        states, extras = walk(*inputs) if replay is None else replay(*inputs)
        return list(states), list(extras)

    def graph_walk(self, first: int, starts: Tensors) -> Walk | None:
        """A walk of the blocks from step `first` on, as a CUDA graph; None where there is none."""
        layout, index = self.layout, self.index[first:]
        carried, hoisted = len(starts), len(starts) + len(self.hoisted)

        def walk(*inputs: torch.Tensor) -> list[list[torch.Tensor]]:
            state: Tensors = inputs[:carried]
            states, extras = [], []
            for given, columns in zip(rows_of(inputs[carried:hoisted], layout, False)[first:], index, strict=True):
                out = layout.core(*state, *given, *columns, *inputs[hoisted:])
                state = out[:carried]
                states.append(state)
                extras.append(out[carried:])
            return [[torch.stack(column) for column in zip(*each, strict=True)] for each in (states, extras)]

        inputs, steps = [*starts, *self.hoisted, *self.consts], layout.block - first
        replay = self.lowered.replay((self.low, self.high, layout.block, first), steps, walk, inputs)
        if replay is None:
            return None
        self.steps += steps
        columns = [[stack.unbind(0) for stack in stacks] for stacks in kept(replay(*inputs))]
        states, extras = (list[Tensors](zip(*each, strict=True)) or [()] * steps for each in columns)
        return Walk(list(starts), states, extras)

    @cached_property
    def folded(self) -> list[tuple[torch.Tensor, ...]]:
        """For each step of the parallel blocks what the core takes of the hoisted values."""
        return rows_of(self.hoisted, self.layout, self.lowered.block.reverse)

    def commit(self) -> int:
        layout, lowered = self.layout, self.lowered
        assert self.walk is not None
        note(lowered.block.name, self.steps, self.walked, self.low)
        ends = self.walk.states[-1]
        if layout.count == 1 and layout.length > 1 and self.carry and lowered.continuous and not lowered.linear:
            self.check = min(self.check or layout.length, layout.length // 2)
            self.contraction = BesideInOrder(self, self.check).contraction()
            if not self.contraction < CONTRACTION:
                raise NotSolved(self.why_not())
        if self.met or layout.count == 1:
            return self.close()
        if self.sweeps == 1 and self.lowered.continuous and self.carry:
            self.moved = False
            self.starts = self.shifted(ends)
            return self.low + layout.block  # the other blocks started beside their true states
        expected = [e[: -self.lowered.rows(k)] for k, e in enumerate(ends)]
        used = [s[self.lowered.rows(k) :] for k, s in enumerate(self.starts)]
        if all(same_bits(a, b) for a, b in zip(expected, used, strict=True)):
            return self.close()
        self.final = self.agreeing_blocks(expected, used)
        # settled, but nothing was told: the boundaries were far off before. Once more, now from close by.
        self.moved = self.lowered.continuous and not self.moved_again and self.violation <= GOOD
        if self.moved:
            self.moved_again, self.settling = True, math.inf
        self.starts = self.shifted(self.beside(ends) if self.moved else ends)
        return self.low + min(self.final * layout.block, layout.length - 1)

    # -- parts ------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Walks the last `warmup` steps of each block from a guess, for the blocks' boundaries.

        The guess is the initial state, moved in every component and differently in each block: what is left of the move
        at the boundary tells how the step forgets. The boundaries are moved once more, by `KICK` units: the next sweep
        starts close to where this one does, and how the two come together tells what becomes of a small difference.
        """
        layout = self.layout
        noise = self.lowered.noise(layout, self.starts)
        guess = [s if n is None else s + n * s.abs().clamp(min=1.0) for s, n in zip(self.starts, noise, strict=True)]
        self.guess, self.guessed = guess, {}
        state: Tensors = guess
        before: Tensors = guess
        carries, whole = self.lowered.block.carries, self.graph_walk(self.first, guess)
        for j in range(self.first, layout.block):
            before = state
            if whole is not None:
                state = whole.states[j - self.first]
            else:
                state = layout.core(*state, *self.folded[j], *self.index[j], *self.consts)[:carries]
                self.steps += 1
            if self.looked_at(j):
                self.guessed[j] = state  # the others may go: what is kept leaves the caches
        if self.lowered.continuous:
            self.units = self.units_at(layout.block - 1, before)
            self.scales = yardsticks(self.units, layout.count)
            state = self.beside(state)
        self.starts = self.shifted(state)

    def looked_at(self, step: int, closely: bool = False) -> bool:
        """Whether distances are taken after this step of a block; `closely` where a walk may end."""
        spacing = 2 if closely and step >= self.first else max(1, self.layout.block // LOOKS)
        return (step - self.first) % spacing == 0 or step == self.layout.block - 1

    def beside(self, state: Tensors) -> list[torch.Tensor]:
        """States KICK units away, in every component; those that start a final block stay."""
        moved = self.lowered.kicked(state, self.scales)
        if self.final > 1:
            for k, (s, there) in enumerate(zip(state, moved, strict=True)):
                stay = (self.final - 1) * self.lowered.rows(k)
                there[:stay] = s[:stay]
        return moved

    def units_at(self, step: int, before: Tensors) -> list[torch.Tensor]:
        """The rounding units of the states after step `step` of each block, given those before it."""
        return self.lowered.in_eps(self.layout.units(*before, *self.folded[step], *self.index[step], *self.consts))

    def spread(self, carry: Tensors) -> list[torch.Tensor]:
        """One carry as the start of every block, folded."""
        count = self.layout.count
        if count == 1:
            return list(carry)
        return [c.repeat(count, *(1 for _ in c.shape[1:])) if c.dim() else c.repeat(count) for c in carry]

    def shifted(self, ends: Tensors) -> list[torch.Tensor]:
        """The end of each block as the start of the next one."""
        firsts = [c if c.dim() else c.reshape(1) for c in self.carry]
        return [torch.cat([f, e[: e.shape[0] - f.shape[0]]]) for f, e in zip(firsts, ends, strict=True)]

    def agreeing_blocks(self, expected: list[torch.Tensor], used: list[torch.Tensor]) -> int:
        """How many leading blocks start from final states (bit for bit)."""
        wrong = torch.zeros(self.layout.count - 1, dtype=torch.bool, device=self.device)
        for a, b in zip(expected, used, strict=True):
            wrong |= (a != b).reshape(self.layout.count - 1, -1).any(1)
        where = wrong.nonzero()
        return 1 + (int(where[0, 0]) if len(where) else self.layout.count - 1)

    def why_not(self) -> str:
        contraction = "unknown" if self.contraction is None else f"{self.contraction:.2g}"
        if self.layout.count == 1:
            return f"a change survives {self.check} steps by a factor of {contraction} (below {CONTRACTION} is needed)"
        return (
            f"the boundaries of the blocks differ by {self.violation:.3g} rounding units (8 are allowed) and a change at a "
            f"block's start survives to its end by a factor of {contraction} (below 0.5 is needed)"
        )

    def walked(self) -> list[torch.Tensor]:
        """The states after the steps of the last sweep, as the steps follow one another, (T, *S)."""
        assert self.walk is not None
        kinds = enumerate(self.lowered.carry_types)
        found = [self.in_order([s[k] for s in self.walk.states], kind) for k, kind in kinds]
        return [f.flip(0) for f in found] if self.lowered.block.reverse else found

    # -- results ----------------------------------------------------------------------------------

    def close(self) -> int:
        """The window is final: keep its outputs, and its last state for the next window."""
        layout, lowered = self.layout, self.lowered
        assert self.walk is not None
        states = self.walk.states
        block, place = divmod(layout.length - 1, layout.block)
        self.__dict__.pop("folded", None)
        self.hoisted = [u if kept else None for u, kept in zip(self.hoisted, lowered.outlives, strict=True)]
        self.pieces.append(self.outputs(self.walk))
        final = []
        for k, kind in enumerate(lowered.carry_types):
            value = states[place][k]
            if layout.count > 1:
                rows = lowered.rows(k)
                value = value[block * rows : (block + 1) * rows].reshape(kind.shape)
            final.append(value.clone())
        self.carry = final
        return self.high

    def outputs(self, walk: Walk) -> list[torch.Tensor]:
        """The stacked outputs of the window, in the order of its inputs."""
        lowered, layout = self.lowered, self.layout
        kinds = lowered.split.outputs
        post = self.readout(walk) if any(kind == "post" for kind, _ in kinds) else ()
        made = {"pre": self.hoisted, "post": post}
        extras = [list(column) for column in zip(*walk.extras, strict=True)]
        walk.extras.clear()
        out = []
        for place, ((kind, number), type_) in enumerate(zip(kinds, lowered.output_types, strict=True)):
            if kind == "carry":
                out.append(self.after(number) if layout.count == 1 else self.in_order([s[number] for s in walk.states], type_))
            elif kind == "extra":
                again = (kind, number) in kinds[place + 1 :]
                out.append(self.in_order(list(extras[number]) if again else extras[number], type_))
            elif layout.count == 1:
                out.append(made[kind][number])
            else:
                out.append(self.in_order(list(made[kind][number].split(layout.count)), type_))
        return out

    def in_order(self, values: list[torch.Tensor], kind: TensorType) -> torch.Tensor:
        """The C results of a sweep, (N*S0, ..) each, as (T, *S). They go from the list once they are copied."""
        layout, reverse = self.layout, self.lowered.block.reverse
        if layout.count == 1:
            return torch.stack(values[::-1] if reverse else values)
        run = torch.stack([v.reshape(layout.count, *kind.shape) for v in values], 1).view(-1, *kind.shape)[: layout.length]
        values.clear()
        return run.flip(0) if reverse else run

    def trail(self, carry: int) -> torch.Tensor:
        """The states of a walk in order, in the order of the inputs, (T + 1, *S)."""
        assert self.walk is not None
        if carry not in self.trails:
            row = [self.walk.starts[carry], *(s[carry] for s in self.walk.states)]
            self.trails[carry] = torch.stack(row[::-1] if self.lowered.block.reverse else row)
        return self.trails[carry]

    def before(self, carry: int) -> torch.Tensor:
        """The states before the steps, in the layout's order, (C * N, *S)."""
        assert self.walk is not None
        if self.layout.count == 1:
            return self.trail(carry)[1:] if self.lowered.block.reverse else self.trail(carry)[:-1]
        row = [self.walk.starts[carry], *(s[carry] for s in self.walk.states[:-1])]
        return torch.stack(row).view(-1, *self.lowered.carry_types[carry].shape)

    def after(self, carry: int) -> torch.Tensor:
        """The states after the steps, in the layout's order."""
        assert self.walk is not None
        if self.layout.count == 1:
            return self.trail(carry)[:-1] if self.lowered.block.reverse else self.trail(carry)[1:]
        return torch.stack([s[carry] for s in self.walk.states]).view(-1, *self.lowered.carry_types[carry].shape)

    def extra(self, number: int) -> torch.Tensor:
        """What the steps give besides, in the layout's order."""
        assert self.walk is not None
        row = [e[number] for e in self.walk.extras]
        row = row[::-1] if self.layout.count == 1 and self.lowered.block.reverse else row
        return torch.stack(row).view(-1, *self.lowered.extra_types[number].shape)

    def readout(self, walk: Walk) -> Sequence[torch.Tensor]:
        """What the steps return that their state does not need, for all steps at once."""
        stacks = {CARRY: self.before, "n": self.after, "e": self.extra}
        lead = [stacks[name[0]](int(name[1:])) if read else None for name, read in self.lowered.lead]
        return self.layout.post(*lead, *self.hoisted, *self.table, *self.consts)

    def finish(self) -> tuple[tuple[torch.Tensor, ...], str]:
        pieces = self.pieces[::-1] if self.lowered.block.reverse else self.pieces
        outputs = [p[0] if len(p) == 1 else torch.cat(p) for p in zip(*pieces, strict=True)]
        if self.residual == 0.0:
            certificate = "every equation holds bit for bit"
            if self.check and self.contraction is not None:
                certificate += f", contraction {self.contraction:.1g} in {self.check} steps"
        else:
            certificate = (
                f"every equation holds to {self.residual:.2g} rounding units, contraction {self.contraction:.1g} a block"
            )
        return (*self.carry, *outputs), certificate


def rows_of(hoisted: Tensors, layout: Layout, reverse: bool) -> list[tuple[torch.Tensor, ...]]:
    """For each call of the core, what it takes of the values that were hoisted for all steps."""
    rows: list[tuple[torch.Tensor, ...]] = list(zip(*[fold(u, layout).unbind(0) for u in hoisted], strict=True))
    rows = rows or [()] * layout.block
    return rows[::-1] if reverse and layout.count == 1 else rows


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Runs with `count` threads: handing tiny calls to several costs more than it saves, above all on a busy machine."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
