"""The generated code of a Recurrence: hoisted inputs for all steps at once, the core for parallel blocks, the readout.

Steps are laid out as (C, N): position j of block n is step n*C + j, so the j-th call of the core advances all N blocks by
one step on contiguous rows. The core is batched by folding the N blocks into its own leading dimension: it makes exactly
as many calls as one eager step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxsolve.certificate import KICK, LOOKS, signs
from fxsolve.continuity import continuous
from fxsolve.cost import call_count
from fxsolve.ir import CARRY, INDEX, STACKED, Recurrence, placeholders, results
from fxsolve.passes.absorb import absorb
from fxsolve.passes.batch_step import batch_step
from fxsolve.passes.layouts import without_gaps
from fxsolve.passes.looped import looped
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from fxsolve.passes.split_step import SplitStep, split_step
from fxsolve.passes.units import unit_step
from fxsolve.replay import NotReplayable, Replay, replayable

Tensors = Sequence[torch.Tensor]
Window = tuple[int, int, int, int]  # its first and last step, the length of blocks, from which step of a block on
LARGEST = 65536  # calls that a CUDA graph is made of: each takes memory and time to record


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
        self.block = block = replace(block, step=absorb(without_gaps(block.step)))
        self.split: SplitStep = split_step(block)
        self.walk = looped(reuse(self.split.core), block.carries)
        self.calls = call_count(self.split.core)
        self.own: Collection[int] = frozenset()  # see fxsolve.replay
        self.replays: dict[Window, Replay | None] = {}  # walks on a GPU; None: cannot be recorded
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
        read = [bool(n.users) for n in placeholders(self.split.post, "u")]
        self.outlives = [r or ("pre", k) in self.split.outputs for k, r in enumerate(read)]  # of the hoisted values
        self.hoists_first = hoists_first(self.split.pre)

    def layout(self, length: int, block: int, device: torch.device) -> Layout:
        key = (length, block)
        if key not in self.layouts:
            self.layouts[key] = self.lower(length, block, device)
        return self.layouts[key]

    def lower(self, length: int, block: int, device: torch.device) -> Layout:
        count = math.ceil(length / block)
        places = torch.arange(count * block).reshape(count, block).t().reshape(-1)
        rows = length if self.hoists_first else count * block
        pre = batch_step(self.split.pre, names(self.split.pre, STACKED, INDEX), rows)
        post = batch_step(self.split.post, names(self.split.post, CARRY, "n", "e", "u", INDEX), count * block)
        order = places.clamp(max=length - 1).to(device)
        core = self.side_by_side(count)
        units = unit_step(core, self.block.carries)
        made = generated(reuse(pre)), generated(reuse(core)), generated(units), generated(post)
        return Layout(length, block, count, order, *made)

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

    def replay(self, window: Window, steps: int, walk: Callable[..., Any], inputs: Tensors) -> Replay | None:
        """The CUDA graph of a walk of so many steps, which its first call records; None where there is none."""
        if window not in self.replays:
            try:
                small = steps * self.calls <= LARGEST
                self.replays[window] = Replay(walk, inputs, self.own) if small and replayable(inputs) else None
            except NotReplayable:
                self.replays[window] = None
        return self.replays[window]

    def forget_replays(self, block: int) -> None:
        """Lets go of all CUDA graphs but those of blocks of that length."""
        self.replays = {window: replay for window, replay in self.replays.items() if window[2] == block}

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
            generator = torch.Generator("cpu").manual_seed(0)
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


def hoists_first(pre: fx.Graph) -> bool:
    """Whether there is less to put in order after the invariants were taken out of the steps than before."""
    if any(n.users for n in placeholders(pre, INDEX)):
        return False
    inputs, hoisted = ([n.meta["type"] for n in nodes] for nodes in (placeholders(pre, STACKED), dict.fromkeys(results(pre))))
    return sum(math.prod(k.shape) for k in inputs) >= sum(math.prod(k.shape) for k in hoisted)


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
