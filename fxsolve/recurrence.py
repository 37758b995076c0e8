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

from fxsolve.bits import same_bits
from fxsolve.ir import CARRY, INDEX, STACKED, Recurrence, TensorType, placeholders, results
from fxsolve.passes.absorb import absorb
from fxsolve.passes.batch_step import batch_step
from fxsolve.passes.readable import generated
from fxsolve.passes.split_step import SplitStep, split_step
from fxsolve.passes.units import unit_step
from fxsolve.solution import NotSolved
from fxsolve.solvers import Solver, drive

TOLERANCE = 8.0  # units; RNN noise is about one (DESIGN.md section 5)
GOOD = 2.0  # units; about what one step's own rounding leaves
CONTRACTION = 0.5
TELLING = 1000.0  # units; a smaller disturbance says nothing about what a block forgets
REACH = 100.0  # times a small disturbance may grow inside a block before it dies out
LOOKS = 12  # steps of a block at which a twin's distance is taken

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


class LoweredRecurrence:
    """A recurrence and its generated code, kept per layout."""

    def __init__(self, block: Recurrence) -> None:
        self.threads: int | None = None  # None: as torch is set
        self.block = block = replace(block, step=absorb(block.step))
        self.split: SplitStep = split_step(block)
        self.layouts: dict[tuple[int, int], Layout] = {}
        self.moves: dict[tuple[int, int], list[torch.Tensor | None]] = {}
        self.tables: dict[tuple[int, int, int], list[torch.Tensor]] = {}
        self.carry_types = [n.meta["type"] for n in placeholders(block.step, CARRY)]
        returned = results(self.split.core)[block.carries :]
        self.extra_types = [n.meta["type"] for n in returned]
        self.output_types = [n.meta["type"] for n in results(block.step)[block.carries :]]
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
        core = self.split.core
        if count > 1:
            core = batch_step(core, names(core, CARRY, "u", INDEX), count, fold=True)
        units = unit_step(core, self.block.carries)
        order = places.clamp(max=length - 1).to(device)
        return Layout(length, block, count, order, generated(pre), generated(core), generated(units), generated(post))

    def table(self, low: int, layout: Layout, device: torch.device) -> list[torch.Tensor]:
        """The index columns of a window in the layout's order; kept, as they never change."""
        key = (low, layout.length, layout.block)
        if key not in self.tables:
            columns = [torch.tensor(c[low : low + layout.length], device=device) for c in self.block.table]
            self.tables[key] = [c[layout.order] for c in columns]
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
        self.carry = list(initial)
        self.device = (
            initial[0].device if initial else (stacked or consts)[0].device if stacked or consts else torch.device("cpu")
        )
        self.steps = 0
        self.residual = 0.0
        self.violation = math.inf
        self.contraction: float | None = None
        self.local = math.inf
        self.pieces: list[list[torch.Tensor]] = []

    # -- the contract -----------------------------------------------------------------------------

    def open(self, low: int, high: int, block: int) -> None:
        self.low, self.high = low, high
        lowered, length = self.lowered, high - low
        self.layout = layout = lowered.layout(length, block, self.device)
        natural = layout.count == 1 and length == self.equations
        order = layout.order + low
        self.inputs = [x if natural else x.index_select(0, order) for x in self.stacked]
        self.table = lowered.table(low, layout, self.device)
        hoisted = layout.pre(*self.inputs, *self.table, *self.consts)
        self.hoisted = list(hoisted)
        self.folded = list(zip(*[fold(u, layout).unbind(0) for u in hoisted], strict=True)) or [()] * layout.block
        self.index = self.core_index(low)
        self.first_sweep = True
        self.polished = False
        self.guess: list[torch.Tensor] | None = None
        self.earlier: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None  # another run: its start and ends
        self.starts = self.spread(self.carry)

    def core_index(self, low: int) -> list[list[Any]]:
        """For each call of the core the index constants: numbers in order, tensors of one number a block in parallel."""
        layout = self.layout
        if layout.count == 1:
            return [[c[low + j] for c in self.lowered.block.table] for j in range(layout.block)]
        columns = [t.view(layout.block, layout.count) for t in self.table]
        return [[c[j] for c in columns] for j in range(layout.block)]

    def sweep(self) -> None:
        layout = self.layout
        if self.first_sweep and layout.count > 1:
            self.warm_up()
        self.first_sweep = False
        start = layout.block - (self.warmup or layout.block)
        self.states: list[list[torch.Tensor]] = []
        self.extras: list[list[torch.Tensor]] = []
        self.middle = self.starts
        state = self.starts
        carries = self.lowered.block.carries
        core, consts = layout.core, self.consts
        for j in range(layout.block):
            if j == start:
                self.middle = state
            out = core(*state, *self.folded[j], *self.index[j], *consts)
            state = list(out[:carries])
            self.states.append(state)
            self.extras.append(list(out[carries:]))
        self.steps += layout.block

    def commit(self) -> int:
        layout = self.layout
        ends = self.states[-1]
        expected = [e[: -self.lowered.rows(k)] for k, e in enumerate(ends)]
        used = [s[self.lowered.rows(k) :] for k, s in enumerate(self.starts)]
        if layout.count == 1 or all(same_bits(a, b) for a, b in zip(expected, used, strict=True)):
            return self.close()
        if self.lowered.continuous and self.certified(expected, used, ends):
            return self.close()
        agreeing = self.agreeing_blocks(expected, used)
        self.earlier = (self.starts, ends)
        self.starts = self.shifted(ends)
        return self.low + min(agreeing * layout.block, layout.length - 1)

    # -- parts ------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Walks the last `warmup` steps of each block from a guess, for the blocks' boundaries.

        The guess is the initial state, moved in every component and differently in each block: what is left of the move
        at the boundary tells how the step forgets.
        """
        layout = self.layout
        length = self.warmup or layout.block
        noise = self.lowered.noise(layout, self.starts)
        guess = [s if n is None else s + n * s.abs().clamp(min=1.0) for s, n in zip(self.starts, noise, strict=True)]
        state = guess
        carries = self.lowered.block.carries
        for j in range(layout.block - length, layout.block):
            state = list(layout.core(*state, *self.folded[j], *self.index[j], *self.consts)[:carries])
        self.guess = guess
        self.earlier = (guess, state)
        self.starts = self.shifted(state)
        self.steps += length

    def spread(self, carry: Tensors) -> list[torch.Tensor]:
        """One carry as the start of every block, folded."""
        count = self.layout.count
        if count == 1:
            return list(carry)
        return [c.repeat(count, *(1 for _ in c.shape[1:])) if c.dim() else c.repeat(count) for c in carry]

    def shifted(self, ends: list[torch.Tensor]) -> list[torch.Tensor]:
        """The end of each block as the start of the next one."""
        firsts = [c if c.dim() else c.reshape(1) for c in self.carry]
        return [torch.cat([f, e[: e.shape[0] - f.shape[0]]]) for f, e in zip(firsts, ends, strict=True)]

    def certified(self, expected: list[torch.Tensor], used: list[torch.Tensor], ends: list[torch.Tensor]) -> bool:
        """Whether the boundary equations hold to rounding and every block forgets: DESIGN.md section 5."""
        if self.earlier is None:
            return False
        before = self.states[-2] if self.layout.block > 1 else self.starts
        last = self.layout.block - 1
        bounds = self.layout.units(*before, *self.folded[last], *self.index[last], *self.consts)
        self.units = units = [b * torch.finfo(v.dtype).eps for b, v in zip(bounds, ends, strict=True)]
        self.violation = 0.0
        for k, unit in enumerate(units):
            off = unit[: -self.lowered.rows(k)]
            self.violation = max(self.violation, worst((expected[k] - used[k]).abs(), off))
        disturbed, survived = self.earlier
        start = self.middle if disturbed is self.guess else self.starts
        ratio = self.forgetting(in_units(start, disturbed, units, self.layout), in_units(ends, survived, units, self.layout))
        if ratio is not None:
            self.contraction = ratio
        if self.violation > TOLERANCE or self.contraction is None or self.contraction >= CONTRACTION:
            return False
        if self.violation > GOOD and not self.polished:
            self.polished = True  # certified, but what is left is more than rounding: one more sweep takes it away
            return False
        if not self.twins_forget():
            self.contraction = max(self.contraction, self.local, CONTRACTION)
            return False
        self.residual = max(self.residual, self.violation)
        return True

    def twins_forget(self) -> bool:
        """Whether a small difference dies out in every block, and never grows far on the way.

        Twins of all blocks start `TELLING` units beside them, in every component, and walk the same steps. What the far
        guess of the warm-up forgets, the trajectory itself may keep (a running maximum, a saturated gate).
        """
        layout = self.layout
        carries = self.lowered.block.carries
        scales = [self.yardstick(k) for k in range(carries)]
        state = []
        for start, scale in zip(self.starts, scales, strict=True):
            before = torch.cat([scale[:1], scale[:-1]])  # a block starts where the one before it ends
            state.append(start + (TELLING * before * signs(before)).reshape(start.shape))
        spacing = max(1, layout.block // LOOKS)
        gaps = []
        for j in range(layout.block):
            state = list(layout.core(*state, *self.folded[j], *self.index[j], *self.consts)[:carries])
            if (layout.block - 1 - j) % spacing == 0:
                own = self.states[j]
                far = [((a - b).abs().reshape(u.shape) / u).max() for a, b, u in zip(state, own, scales, strict=True)]
                gaps.append(torch.stack(far).max())
        self.steps += layout.block
        gap = torch.stack(gaps).nan_to_num(nan=math.inf, posinf=math.inf) / TELLING
        self.local = float(gap[-1])
        return self.local < CONTRACTION and float(gap.max()) <= REACH

    def yardstick(self, carry: int) -> torch.Tensor:
        """(blocks, components): the unit at each block's end, and a hundredth of the state's mean unit where that is more."""
        unit = self.units[carry].reshape(self.layout.count, -1)
        return torch.maximum(unit, 0.01 * unit.mean(1, keepdim=True)).clamp(min=torch.finfo(unit.dtype).tiny)

    def forgetting(self, disturbed: torch.Tensor, survived: torch.Tensor) -> float | None:
        """What is left of a disturbance at a block's end: the worst block's ratio; (blocks, components), in units.

        A component that was hardly moved says nothing about itself. Where that happens by chance, here and there, the
        others speak; where it happens to a quarter of a block or of a component's blocks, nothing was measured (None).
        """
        weak = ~(disturbed >= TELLING)
        if float(weak.double().mean(0).max()) > 0.25 or float(weak.double().mean(1).max()) > 0.25:
            return None
        least = torch.where(weak, math.inf, disturbed).amin(1)
        return float((survived.amax(1) / least).max())

    def agreeing_blocks(self, expected: list[torch.Tensor], used: list[torch.Tensor]) -> int:
        """How many leading blocks start from final states (bit for bit)."""
        wrong = torch.zeros(self.layout.count - 1, dtype=torch.bool, device=self.device)
        for a, b in zip(expected, used, strict=True):
            wrong |= (a != b).reshape(self.layout.count - 1, -1).any(1)
        where = wrong.nonzero()
        return 1 + (int(where[0, 0]) if len(where) else self.layout.count - 1)

    def why_not(self) -> str:
        contraction = "unknown" if self.contraction is None else f"{self.contraction:.2g}"
        return (
            f"the boundaries of the blocks differ by {self.violation:.3g} rounding units (8 are allowed) and a change at a "
            f"block's start survives to its end by a factor of {contraction} (below 0.5 is needed)"
        )

    # -- results ----------------------------------------------------------------------------------

    def close(self) -> int:
        """The window is final: keep its outputs, and its last state for the next window."""
        layout, lowered = self.layout, self.lowered
        block, place = divmod(layout.length - 1, layout.block)
        self.pieces.append(self.outputs())
        final = []
        for k, kind in enumerate(lowered.carry_types):
            value = self.states[place][k]
            if layout.count > 1:
                rows = lowered.rows(k)
                value = value[block * rows : (block + 1) * rows].reshape(kind.shape).clone()
            final.append(value)
        self.carry = final
        return self.high

    def outputs(self) -> list[torch.Tensor]:
        """The stacked outputs of the window, in the order of its steps."""
        lowered = self.lowered
        kinds = lowered.split.outputs
        post = self.readout() if any(kind == "post" for kind, _ in kinds) else ()
        made = {"pre": self.hoisted, "post": post}
        out = []
        for kind, number in kinds:
            if kind == "carry":
                out.append(self.in_order([s[number] for s in self.states], lowered.carry_types[number]))
            elif kind == "extra":
                out.append(self.in_order([e[number] for e in self.extras], lowered.extra_types[number]))
            else:
                value = made[kind][number]
                rows = [value[j * self.layout.count : (j + 1) * self.layout.count] for j in range(self.layout.block)]
                whole = self.layout.count == 1
                out.append(value if whole else self.in_order(rows, lowered.output_types[len(out)]))
        return out

    def in_order(self, values: list[torch.Tensor], kind: TensorType) -> torch.Tensor:
        """The C results of a sweep, (N*S0, ..) each, as (T, *S)."""
        layout = self.layout
        if layout.count == 1:
            return torch.stack(values)
        first = values[0]
        out = torch.empty((layout.count, layout.block, *kind.shape), dtype=first.dtype, device=first.device)
        for j, value in enumerate(values):
            out[:, j].copy_(value.reshape(layout.count, *kind.shape))
        return out.view(-1, *kind.shape)[: layout.length]

    def readout(self) -> Sequence[torch.Tensor]:
        """What the steps return that their state does not need, for all steps at once."""
        layout, lowered = self.layout, self.lowered
        shape = (layout.block * layout.count,)
        before = [[start, *[s[k] for s in self.states[:-1]]] for k, start in enumerate(self.starts)]
        after = [[s[k] for s in self.states] for k in range(len(self.starts))]
        extras = [[e[k] for e in self.extras] for k in range(len(lowered.extra_types))]
        kinds = [*lowered.carry_types, *lowered.carry_types, *lowered.extra_types]
        lead = [torch.stack(v).view(*shape, *t.shape) for v, t in zip([*before, *after, *extras], kinds, strict=True)]
        return layout.post(*lead, *self.hoisted, *self.table, *self.consts)

    def finish(self) -> tuple[tuple[torch.Tensor, ...], str]:
        outputs = [p[0] if len(p) == 1 else torch.cat(p) for p in zip(*self.pieces, strict=True)]
        if self.residual == 0.0:
            certificate = "every equation holds bit for bit"
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


def fold(value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(C*N, *S) --> (C, N*S0, ..): what call j of the core takes is row j; in order, (T, *S)."""
    if layout.count == 1:
        return value
    shape = value.shape[1:]
    if not shape:
        return value.reshape(layout.block, layout.count)
    return value.reshape(layout.block, layout.count * shape[0], *shape[1:])


def in_units(a: list[torch.Tensor], b: list[torch.Tensor], units: list[torch.Tensor], layout: Layout) -> torch.Tensor:
    """|a - b| in units, as (blocks, components of the whole state); infinite where a value is not finite."""
    parts = []
    for x, y, unit in zip(a, b, units, strict=True):
        gap = (x - y).abs()
        ratio = torch.where(gap == 0, 0.0, gap / unit).nan_to_num(nan=math.inf, posinf=math.inf)
        parts.append(ratio.double().reshape(layout.count, -1))
    return torch.cat(parts, 1)


def signs(like: torch.Tensor) -> torch.Tensor:
    """Plus and minus ones, in a fixed irregular pattern."""
    place = torch.arange(like.numel(), device=like.device)
    return (1.0 - 2.0 * ((place * 40503) >> 7 & 1)).to(like.dtype).view(like.shape)


def narrows(node: fx.Node) -> bool:
    """Whether a call casts to a coarser floating point type: a step of its rounding is a discontinuity for its operand's."""
    kinds = [n.meta.get("type") for n in node.all_input_nodes]
    size = node.meta["type"].dtype.itemsize if isinstance(node.meta.get("type"), TensorType) else 0
    floats = [k.dtype.itemsize for k in kinds if isinstance(k, TensorType) and k.dtype.is_floating_point]
    return size > 0 and any(f > size for f in floats)


def worst(difference: torch.Tensor, unit: torch.Tensor) -> float:
    """The largest difference in units; infinite where something differs and the unit is zero or a value is not finite."""
    ratio = torch.where(difference == 0, 0.0, difference / unit)
    return float(torch.nan_to_num(ratio, nan=math.inf).max()) if ratio.numel() else 0.0


DISCONTINUOUS = (
    "maximum", "minimum", "fmax", "fmin", "amax", "amin", "cummax", "cummin",  # a running extreme holds what it met
    "angle", "atan2", "frac", "sgn", "threshold", "hardshrink", "copysign", "nextafter", "bucketize", "searchsorted",
    "fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask", "quantize_per_tensor",
    "gt", "lt", "ge", "le", "eq", "ne", "sign", "floor", "ceil", "round", "trunc", "heaviside", "argmax", "argmin",
    "topk", "sort", "argsort", "floor_divide", "fmod", "remainder", "logical_not", "logical_and", "logical_or", "isnan",
)  # fmt: skip


def continuous(core: fx.Graph, carries: int) -> bool:
    """Whether the state is all floating point and no discontinuous op stands on its path."""
    kinds = [n.meta["type"] for n in placeholders(core, CARRY)]
    if any(not k.dtype.is_floating_point for k in kinds):
        return False
    for node in core.nodes:
        if node.op == "call_function":
            name = getattr(node.target, "__name__", "").split(".")[0]
            kind = node.meta.get("type")
            whole = isinstance(kind, TensorType) and not kind.dtype.is_floating_point
            if name in DISCONTINUOUS or whole or narrows(node):
                return False
    return True
