"""A Recurrence, lowered: hoisted inputs for all steps at once, the core in parallel blocks, the readout at the end.

Steps are laid out as (C, N): position j of block n is step n*C + j, so the j-th call of the core advances all N blocks by
one step on contiguous rows. The core is batched by folding the N blocks into its own leading dimension: it makes exactly
as many calls as one eager step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxsolve.beside import BesideInOrder, BesideTheGuess, BesideTheLast, Walk
from fxsolve.bits import same_bits
from fxsolve.certificate import CONTRACTION, GOOD, KICK, LOOKS, signs, yardsticks
from fxsolve.continuity import continuous
from fxsolve.ir import CARRY, INDEX, STACKED, Recurrence, TensorType, placeholders, results
from fxsolve.passes.absorb import absorb
from fxsolve.passes.batch_step import batch_step
from fxsolve.passes.looped import looped
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from fxsolve.passes.split_step import SplitStep, split_step
from fxsolve.passes.units import unit_step
from fxsolve.solution import NotSolved
from fxsolve.solvers import Solver, drive

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Generated code for windows of `length` steps in `count` blocks of `block` steps."""

    length: int
    block: int
    count: int
    order: torch.Tensor  # (block * count,): the step at each place, clipped to the window
    pre: Callable[..., Any]
    core: Callable[..., Any]
    units: Callable[..., Any]
    post: Callable[..., Any]


@dataclass(frozen=True)
class Stretches:
    """Generated code for the steps of a walk in order, cut into `count` stretches of `block` steps, all at once."""

    block: int
    count: int
    spacing: int  # after so many steps distances are taken
    order: torch.Tensor  # (block * count,): the step at each place; the last stretch overlaps with the one before it
    places: torch.Tensor  # ((block + 1) * count,): likewise the number of steps before it, and behind the last
    index: list[list[torch.Tensor]]  # for each step of a stretch the index constants
    core: Callable[..., Any]

    def inputs(self, hoisted: Tensors, consts: Tensors) -> list[list[Any]]:
        """For each step of the stretches what the core takes besides the state; `hoisted` are those of all steps in order."""
        columns = [fold(u.index_select(0, self.order), self).unbind(0) for u in hoisted]
        return [[*(c[j] for c in columns), *self.index[j], *consts] for j in range(self.block)]


class LoweredRecurrence:
    """A recurrence and its generated code, kept per layout."""

    def __init__(self, block: Recurrence, floor: float = 0.0, linear: bool = False) -> None:
        self.threads: int | None = None  # None: as torch is set
        self.linear = linear  # in the state: rounding in order stays what it is in eager's order
        self.floor = floor  # no component of the state is held to less than this many eps
        self.block = block = replace(block, step=absorb(block.step))
        self.split: SplitStep = split_step(block)
        self.walk = looped(reuse(self.split.core), block.carries)
        self.layouts: dict[tuple[int, int], Layout] = {}
        self.cut: dict[tuple[int, int], Stretches] = {}
        self.moves: dict[tuple[int, int], list[torch.Tensor | None]] = {}
        self.kicks: dict[tuple[int, ...], list[torch.Tensor]] = {}
        self.tables: dict[tuple[int, int, int], list[torch.Tensor]] = {}
        self.indices: dict[tuple[int, int, int], list[list[Any]]] = {}
        self.carry_types = [n.meta["type"] for n in placeholders(block.step, CARRY)]
        returned = results(self.split.core)[block.carries :]
        self.extra_types = [n.meta["type"] for n in returned]
        self.output_types = [n.meta["type"] for n in results(block.step)[block.carries :]]
        self.lead = [(n.name, bool(n.users)) for n in placeholders(self.split.post, CARRY, "n", "e")]
        self.continuous = continuous(self.split.core, block.carries)

    def layout(self, length: int, block: int, device: torch.device) -> Layout:
        key = (length, block)
        if key not in self.layouts:
            self.layouts[key] = self.lower(length, block, device)
        return self.layouts[key]

    def lower(self, length: int, block: int, device: torch.device) -> Layout:
        count = math.ceil(length / block)
        places = torch.arange(count * block).reshape(count, block).t().reshape(-1)
        pre = batch_step(self.split.pre, names(self.split.pre, STACKED, INDEX), count * block)
        post = batch_step(self.split.post, names(self.split.post, CARRY, "n", "e", "u", INDEX), count * block)
        order = places.clamp(max=length - 1).to(device)
        core = self.side_by_side(count)
        units = unit_step(core, self.block.carries)
        return Layout(length, block, count, order, generated(pre), generated(reuse(core)), generated(units), generated(post))

    def side_by_side(self, count: int) -> fx.Graph:
        """The core for `count` blocks at once."""
        core = self.split.core
        return core if count == 1 else batch_step(core, names(core, CARRY, "u", INDEX), count, fold=True)

    def stretches(self, length: int, block: int, device: torch.device) -> Stretches:
        key = (length, block)
        if key not in self.cut:
            count = math.ceil(length / block)
            starts = (torch.arange(count) * block).clamp(max=length - block)
            order = (starts + torch.arange(block)[:, None]).reshape(-1)
            order = self.place(order, length).to(device)
            columns = [torch.tensor(c, device=device)[order].view(block, count) for c in self.block.table]
            index = [[c[j] for c in columns] for j in range(block)]
            core = generated(reuse(self.side_by_side(count)))
            spacing = next(s for s in range(max(1, 2 * block // LOOKS), 0, -1) if block % s == 0)
            places = self.place(torch.cat([starts + j for j in range(block + 1)]), length + 1).to(device)
            self.cut[key] = Stretches(block, count, spacing, order, places, index, core)
        return self.cut[key]

    def place(self, step: Any, length: int) -> Any:
        """Where in stacks of `length` the step is that comes `step`-th."""
        return length - 1 - step if self.block.reverse else step

    def table(self, low: int, layout: Layout, order: torch.Tensor) -> list[torch.Tensor]:
        """The index columns in the order of a window's inputs; kept, as they never change."""
        key = (low, layout.length, layout.block)
        if key not in self.tables:
            self.tables[key] = [torch.tensor(c, device=order.device)[order] for c in self.block.table]
        return self.tables[key]

    def noise(self, layout: Layout, starts: Tensors) -> list[torch.Tensor | None]:
        """Fixed moves of a tenth or so, of either sign, for every component of every block's start."""
        key = (layout.length, layout.block)
        if key not in self.moves:
            generator = torch.Generator().manual_seed(0)
            made: list[torch.Tensor | None] = []
            for s in starts:
                size = 0.05 + 0.1 * torch.rand(s.shape, generator=generator)
                sign = 1.0 - 2.0 * (torch.rand(s.shape, generator=generator) < 0.5).float()
                made.append((size * sign).to(s.device, s.dtype) if s.is_floating_point() else None)
            self.moves[key] = made
        return self.moves[key]

    def kicked(self, state: Tensors, scales: Tensors) -> list[torch.Tensor]:
        """States KICK units away, in every component, up or down."""
        count = tuple(len(scale) for scale in scales)
        if count not in self.kicks:
            self.kicks[count] = [KICK * signs(s) for s in scales]
        pairs = zip(state, scales, self.kicks[count], strict=True)
        return [torch.addcmul(s.reshape(scale.shape), scale, kick).reshape(s.shape) for s, scale, kick in pairs]

    def in_eps(self, bounds: Tensors) -> list[torch.Tensor]:
        """Rounding units, from their multiples of eps."""
        return [(b.clamp(min=self.floor) if self.floor else b) * torch.finfo(b.dtype).eps for b in bounds]

    def rows(self, carry: int) -> int:
        """Rows of one block in the folded layout of a carry."""
        shape = self.carry_types[carry].shape
        return shape[0] if shape else 1

    def solve(
        self, solver: Solver, initial: Tensors, stacked: Tensors, consts: Tensors, limit: int | None
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """(final carries.., stacked outputs..) and the figures of a BlockSolution. Raises NotSolved without certificate."""
        problem = RecurrenceProblem(self, solver, initial, stacked, consts)
        with threads(self.threads):
            frontier = drive(problem, solver, limit)
            chaotic = problem.contraction is not None and problem.contraction >= 1.0
            if frontier and (frontier[-1] < self.block.length or chaotic):
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
        order = lowered.place(layout.order + low, self.equations)
        if layout.count == 1:  # the window's inputs stay where they are
            first = int(min(lowered.place(low, self.equations), lowered.place(high - 1, self.equations)))
            order = layout.order + first
            inputs = [x if length == self.equations else x.narrow(0, first, length) for x in self.stacked]
        else:
            inputs = [x.index_select(0, order) for x in self.stacked]
        self.table = lowered.table(low, layout, order)
        hoisted = layout.pre(*inputs, *self.table, *self.consts)
        del inputs
        self.hoisted = list(hoisted)
        self.folded = list(zip(*[fold(u, layout).unbind(0) for u in hoisted], strict=True)) or [()] * layout.block
        if layout.count == 1 and lowered.block.reverse:
            self.folded.reverse()
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
        self.met = False  # whether it ends in the one before, and every block forgets
        self.far: float | None = None  # what the last steps of a block leave of the warm-up's guess
        self.local: float | None = None  # what a block leaves of a small difference at its start

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
        before, self.walk = self.walk, Walk(self.starts, [], [])
        state, carries = self.starts, self.lowered.block.carries
        beside = None
        if carries and self.lowered.continuous:
            beside = BesideTheGuess(self) if before is None else None if self.moved else BesideTheLast(self, before)
        self.sweeps += 1
        if layout.count == 1:
            with torch.inference_mode():  # what comes out is stacked or copied outside
                made = self.lowered.walk(self.starts, self.folded, self.index, self.consts)
            self.walk = Walk(self.starts, *made)
            self.steps += layout.block
            return
        states, extras = self.walk.states, self.walk.extras
        core, consts = layout.core, self.consts
        for j, (given, index) in enumerate(zip(self.folded, self.index, strict=True)):
            out = core(*state, *given, *index, *consts)
            state = out[:carries]
            states.append(state)
            extras.append(out[carries:])
            if beside is not None and self.looked_at(j, closely=before is not None) and beside.meets(j):
                assert before is not None
                states[j:], extras[j + 1 :] = before.states[j:], before.extras[j + 1 :]
                self.met = True
                break
        self.steps += j + 1

    def commit(self) -> int:
        layout, lowered = self.layout, self.lowered
        assert self.walk is not None
        ends = self.walk.states[-1]
        if layout.count == 1 and self.check and self.carry and not lowered.linear:
            block = min(self.check, layout.length // 2)
            self.contraction = BesideInOrder(self, block).contraction() if block else 0.0
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
        state = before = guess
        carries = self.lowered.block.carries
        for j in range(self.first, layout.block):
            before = state
            state = list(layout.core(*state, *self.folded[j], *self.index[j], *self.consts)[:carries])
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

    # -- results ----------------------------------------------------------------------------------

    def close(self) -> int:
        """The window is final: keep its outputs, and its last state for the next window."""
        layout, lowered = self.layout, self.lowered
        assert self.walk is not None
        states = self.walk.states
        block, place = divmod(layout.length - 1, layout.block)
        self.pieces.append(self.outputs(self.walk))
        final = []
        for k, kind in enumerate(lowered.carry_types):
            value = states[place][k]
            if layout.count > 1:
                rows = lowered.rows(k)
                value = value[block * rows : (block + 1) * rows].reshape(kind.shape).clone()
            final.append(value)
        self.carry = final
        return self.high

    def outputs(self, walk: Walk) -> list[torch.Tensor]:
        """The stacked outputs of the window, in the order of its inputs."""
        lowered, layout = self.lowered, self.layout
        kinds = lowered.split.outputs
        post = self.readout(walk) if any(kind == "post" for kind, _ in kinds) else ()
        made = {"pre": self.hoisted, "post": post}
        out = []
        for (kind, number), type_ in zip(kinds, lowered.output_types, strict=True):
            if kind == "carry":
                out.append(self.after(number) if layout.count == 1 else self.in_order([s[number] for s in walk.states], type_))
            elif kind == "extra":
                out.append(self.in_order([e[number] for e in walk.extras], type_))
            elif layout.count == 1:
                out.append(made[kind][number])
            else:
                out.append(self.in_order(made[kind][number].split(layout.count), type_))
        return out

    def in_order(self, values: Sequence[torch.Tensor], kind: TensorType) -> torch.Tensor:
        """The C results of a sweep, (N*S0, ..) each, as (T, *S)."""
        layout, reverse = self.layout, self.lowered.block.reverse
        if layout.count == 1:
            return torch.stack(list(values[::-1] if reverse else values))
        blocks = [v.reshape(layout.count, *kind.shape) for v in values]
        run = torch.stack(blocks, 1).view(-1, *kind.shape)[: layout.length]
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


def names(graph: fx.Graph, *prefixes: str) -> list[str]:
    return [n.name for n in placeholders(graph) if n.name.startswith(prefixes)]


def fold(value: torch.Tensor, layout: Layout | Stretches) -> torch.Tensor:
    """(C*N, *S) --> (C, N*S0, ..): what call j of the core takes is row j; in order, (T, *S)."""
    if layout.count == 1:
        return value
    shape = value.shape[1:]
    if not shape:
        return value.reshape(layout.block, layout.count)
    return value.reshape(layout.block, layout.count * shape[0], *shape[1:])
