"""A FixedPoint, lowered: one network pass a sweep at eager's own shapes, the head for all slots at once.

    V = head(network(X));   X[slots >= frontier] = V[slots >= frontier]

An equation is final once it was evaluated with all its predecessors final. Slots before the frontier are frozen; the
frontier moves to one past the first slot whose new value differs in bits from the one that the pass was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxsolve.bands import Passes, bands_of
from fxsolve.bits import differing, same_bits
from fxsolve.cost import Phase, Timed, call_count
from fxsolve.ir import INDEX, STACKED, FixedPoint, placeholders
from fxsolve.iterates import note
from fxsolve.passes.batch_step import batch_step
from fxsolve.passes.layouts import without_gaps
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from fxsolve.prims import SlotView
from fxsolve.solution import NotSolved
from fxsolve.solvers import Solver, drive
from fxsolve.timing import typical, typical_seconds

Tensors = Sequence[torch.Tensor]
UNCHECKED = {"cuda": 3}  # sweeps between two stopping tests, which wait for the device; overshooting is harmless
TIES = 16  # jolts that a near tie must survive
FIRST_WINDOW = 32  # slots beyond the frontier whose heads are taken one by one, where they must be


class LoweredFixedPoint:
    """A fixed-point block and its generated code."""

    def __init__(self, block: FixedPoint) -> None:
        self.block = block
        network = with_swallowed(block.network)
        self.network: Callable[..., Any] = generated(reuse(network))
        self.bands = bands_of(block, network)
        self.single: Callable[..., Any] = generated(block.head)
        varying = [n.name for n in placeholders(block.head) if n.name.startswith((STACKED, INDEX))]
        self.head: Callable[..., Any] = generated(batch_step(without_gaps(block.head), varying, block.length))
        self.one_by_one = False  # whether final slots take the value of a single slot's head, at eager's own shapes
        self.slack = 0.0  # how far features may be from eager's, relative to the largest: then slots must not nearly tie
        self.shares = 0.0  # the passes of the last solution, those of a part of the rows counted as the part they take
        self.tables: dict[torch.device, list[torch.Tensor]] = {}
        self.views: dict[torch.device, list[SlotView]] = {}

    def features(self, buffers: Tensors, consts: Tensors) -> tuple[torch.Tensor, ...]:
        """One pass of the network: what the head reads."""
        return self.network(*buffers, *consts)[: self.block.features]

    def telling_features(self, buffers: Tensors, consts: Tensors) -> tuple[torch.Tensor, ...]:
        """The features of one pass, all NaN where the pass met a non-finite value: such a pass says nothing."""
        seen = self.network(*buffers, *consts)
        features = seen[: self.block.features]
        if all_finite(seen):
            return features
        return tuple(torch.full_like(f, torch.nan) if f.is_floating_point() else f for f in features)

    def on(self, device: torch.device) -> tuple[list[torch.Tensor], list[SlotView]]:
        """Index table and slot geometry as tensors of a device."""
        if device not in self.tables:
            self.tables[device] = [torch.tensor(c, device=device) for c in self.block.table]
            self.views[device] = [SlotView.of(s.shape, s.stride, s.offsets, device) for s in self.block.slots]
        return self.tables[device], self.views[device]

    def head_differs(self, features: Tensors, stacked: Tensors, consts: Tensors) -> str | None:
        """Whether the head for all slots at once gives other bits than the heads of single slots."""
        table, _ = self.on(features[0].device)
        together = self.head(*features, *stacked, *table, *consts)
        for t in range(self.block.length):
            alone = self.single(*features, *(x[t] for x in stacked), *(c[t] for c in self.block.table), *consts)
            for a, b in zip(alone, together, strict=True):
                if not same_bits(a.contiguous(), b[t].contiguous()):
                    return f"the head for all slots at once, which differs in bits from that of slot {t}"
        return None

    def phases(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[Phase, ...]:
        """What the phases of a sweep take: a pass of the network, and the head with the stopping test."""

        def sweep() -> tuple[FixedPointProblem, Timed]:
            problem = FixedPointProblem(self, initial, stacked, consts)
            timed = Timed(problem)
            timed.open(0, problem.equations, 1)
            timed.sweep()
            timed.commit()
            return problem, timed

        problem, timed = typical(sweep, lambda pair: pair[1].total())
        alone = typical_seconds(lambda: self.network(*problem.buffers, *consts))
        rest = max(0.0, timed.seconds["sweep"] + timed.seconds["commit"] - alone)
        parts = self.block.length * len(problem.settled)
        return (
            Phase("passes of the network", alone, 1, call_count(self.block.network), parts),
            Phase("heads and stopping tests", rest, 1, call_count(self.block.head), parts),
        )

    def solve(
        self, solver: Solver, initial: Tensors, stacked: Tensors, consts: Tensors, limit: int | None
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """(final buffers.., stacked outputs..) and the figures of a BlockSolution. Raises NotSolved at `limit` sweeps."""
        problem = FixedPointProblem(self, initial, stacked, consts)
        frontier = drive(problem, solver, limit)
        if frontier[-1] < self.block.length:
            raise NotSolved(f"{frontier[-1]} of {self.block.length} equations are final after {len(frontier)} sweeps")
        if not problem.network.certified(problem.buffers):
            return self.solve(solver, initial, stacked, consts, limit)
        if self.slack and (tie := problem.near_tie()) is not None:
            raise NotSolved(f"slot {tie} is a near tie: eager's own shapes may round it the other way")
        self.shares = problem.network.shares(problem.passes)
        figures = {
            "sweeps": problem.passes if problem.block == 1 else len(frontier),
            "steps": problem.passes,
            "frontier": frontier,
            "samples": tuple(problem.settled.tolist()),
            "residual": 0.0,
            "contraction": None,
            "certificate": "every equation holds bit for bit" + (", and no choice is a near tie" if self.slack else ""),
        }
        stacks = [o.contiguous() for o in problem.outputs]  # as eager stacks them: what sums them rounds by their strides
        return (*problem.buffers, *stacks), figures


class FixedPointProblem:
    """One call's system: see fxsolve.solvers.contract.Problem."""

    def __init__(self, lowered: LoweredFixedPoint, initial: Tensors, stacked: Tensors, consts: Tensors) -> None:
        self.lowered, self.initial, self.stacked, self.consts = lowered, initial, stacked, consts
        self.equations = lowered.block.length
        self.buffers = [b.clone() for b in initial]
        self.table, self.views = lowered.on(initial[0].device)
        self.outputs: tuple[torch.Tensor, ...] = ()
        self.network = Passes(lowered.network, lowered.bands, consts)
        self.passes = 0
        self.frontier = 0
        self.window = FIRST_WINDOW
        self.settled = torch.zeros(samples_of(lowered.block, initial), dtype=torch.long, device=initial[0].device)

    def open(self, low: int, high: int, block: int) -> None:
        self.high, self.block = high, block

    def sweep(self) -> None:
        """One pass for all slots; with blocks, one pass for each position inside a block, committing that position."""
        if self.block > 1:
            for place in range(self.block):
                self.advance(self.evaluate(self.buffers), slice(self.frontier + place, self.high, self.block))
        else:
            for _ in range(0 if self.lowered.one_by_one else UNCHECKED.get(self.buffers[0].device.type, 0)):
                self.advance(self.evaluate(self.buffers), slice(self.frontier, self.high))
        self.values = self.evaluate(self.buffers)

    def evaluate(self, buffers: Tensors) -> tuple[torch.Tensor, ...]:
        self.passes += 1
        self.seen = self.network(buffers, self.frontier)
        self.features = features = self.seen[: self.lowered.block.features]
        out = self.lowered.head(*features, *self.stacked, *self.table, *self.consts)
        if self.lowered.one_by_one:
            out = tuple(o.clone() for o in out)
            for t in range(self.frontier, min(self.frontier + self.window, self.equations)):
                for whole, value in zip(out, self.alone(t), strict=True):
                    whole[t] = value
        self.outputs = out[len(self.buffers) :]
        return out[: len(self.buffers)]

    def advance(self, values: tuple[torch.Tensor, ...], chosen: slice) -> None:
        """Some slots that are not final take their new values, as guesses."""
        for buffer, view, value, first in zip(self.buffers, self.views, values, self.initial, strict=True):
            content = view.gather(buffer).clone()
            content[chosen] = harmless(value[chosen], view.gather(first)[chosen])
            view.scatter_(buffer, content)

    def finite(self) -> bool:
        """Whether the last pass met no non-finite value: NaN spreads to the features, or to an op that swallows it."""
        return all_finite(self.seen)

    def alone(self, t: int) -> tuple[torch.Tensor, ...]:
        """The head of slot t by itself, from the features of the last pass: eager's own calls."""
        index = [column[t] for column in self.lowered.block.table]
        return self.lowered.single(*self.features, *[x[t] for x in self.stacked], *index, *self.consts)

    def commit(self) -> int:
        """Moves the frontier; where heads are taken one by one, the window of such heads follows its speed."""
        before = self.frontier
        frontier = self.advance_frontier() if self.finite() else self.commit_one()
        note(self.lowered.block.name, self.passes, lambda: [b.clone() for b in self.buffers])
        self.window = max(FIRST_WINDOW, 2 * (frontier - before))
        if frontier == self.equations and self.outputs:
            self.settle_outputs()
        return frontier

    def near_tie(self) -> int | None:
        """The first slot that comes out otherwise when the features move by the slack; None if there is none."""
        private = torch.Generator(self.features[0].device).manual_seed(0)
        slots = [view.gather(buffer) for buffer, view in zip(self.buffers, self.views, strict=True)]
        self.evaluate(self.buffers)
        features = self.features
        ties = torch.zeros(self.equations, dtype=torch.bool, device=features[0].device)
        for _ in range(TIES):
            moved = [jolted(f, self.lowered.slack, private) for f in features]
            out = self.lowered.head(*moved, *self.stacked, *self.table, *self.consts)
            for slot, value in zip(slots, out, strict=False):
                ties |= differing(value, slot).reshape(self.equations, -1).any(1)
        where = ties.nonzero()
        return int(where[0, 0]) if len(where) else None

    def settle_outputs(self) -> None:
        """What the steps return besides their slots, from the final state."""
        self.evaluate(self.buffers)
        if self.lowered.one_by_one:
            rows = [self.alone(t)[len(self.buffers) :] for t in range(self.equations)]
            self.outputs = tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def advance_frontier(self) -> int:
        low, high = self.frontier, self.high
        if self.lowered.one_by_one:
            high = min(high, low + self.window)
        wrong = None
        for buffer, view, value in zip(self.buffers, self.views, self.values, strict=True):
            changed = differing(value[low:high], view.gather(buffer)[low:high]).reshape(high - low, len(self.settled), -1)
            changed = changed[:, :, 0] if changed.shape[2] == 1 else changed.any(2)
            wrong = changed if wrong is None else wrong | changed
        assert wrong is not None
        self.settled.masked_fill_(wrong.any(0), self.passes)
        where = wrong.any(1).nonzero()
        self.frontier = low + int(where[0, 0]) + 1 if len(where) else high
        if self.frontier == self.equations and not len(where):
            return self.frontier
        for buffer, view, value, first in zip(self.buffers, self.views, self.values, self.initial, strict=True):
            new = value[low:]
            if not all_finite([new]):
                final = self.frontier - low
                new = torch.cat([new[:final], harmless(new[final:], view.gather(first)[self.frontier :])])
            view.scatter_(buffer, new, low)
        return self.frontier

    def commit_one(self) -> int:
        """A pass that met a non-finite value says nothing about the future slots: a guess may have overflowed inside.

        The first open slot is evaluated again with all open slots as eager has them at that step.
        """
        low = self.frontier
        eager = []
        for buffer, view, first in zip(self.buffers, self.views, self.initial, strict=True):
            clean = buffer.clone()
            view.scatter_(clean, view.gather(first)[low:], low)
            eager.append(clean)
        exact = self.evaluate(eager)
        guess = self.values
        for buffer, view, value, old, first in zip(self.buffers, self.views, exact, guess, self.initial, strict=True):
            rest = harmless(old[low + 1 :], view.gather(first)[low + 1 :])
            view.scatter_(buffer, torch.cat([value[low : low + 1], rest]), low)
        self.settled.fill_(self.passes)
        self.frontier = low + 1
        return self.frontier


def jolted(feature: torch.Tensor, slack: float, generator: torch.Generator) -> torch.Tensor:
    """A feature, each element moved up or down by `slack` times the largest one."""
    if not feature.is_floating_point():
        return feature
    finite = feature.isfinite()
    largest = torch.where(finite, feature, 0).abs().max()
    sign = torch.randint(0, 2, feature.shape, generator=generator, device=feature.device) * 2 - 1
    return torch.where(finite, feature + slack * largest * sign, feature)


SWALLOWING = frozenset(
    ("gt", "ge", "lt", "le", "eq", "ne", "isnan", "isinf", "nan_to_num", "fmax", "fmin", "nansum", "nanmean")
    + ("argmax", "argmin", "topk", "sort", "argsort", "sign", "heaviside")
)


def with_swallowed(network: fx.Graph) -> fx.Graph:
    """The network, returning after its features the operands of ops whose result hides a NaN."""
    graph, env = fx.Graph(), {}
    features = graph.graph_copy(network, env)
    hidden = [
        env[n]
        for node in network.nodes
        if getattr(node.target, "__name__", "").split(".")[0] in SWALLOWING
        for n in node.all_input_nodes
    ]
    graph.output((*features, *dict.fromkeys(hidden)))  # type: ignore[misc]
    return graph


def samples_of(block: FixedPoint, buffers: Tensors) -> int:
    """How many samples the buffers hold: the length of their first dimension where every slot spans it, otherwise 1."""
    counts = set()
    for slots, buffer in zip(block.slots, buffers, strict=True):
        spans = slots.shape[:1] == tuple(buffer.shape[:1]) and slots.stride[:1] == buffer.stride()[:1]
        counts.add(buffer.shape[0] if spans and buffer.dim() and buffer.shape[0] else 1)
    return counts.pop() if len(counts) == 1 else 1


def all_finite(values: Tensors) -> bool:
    return all(finite(v) for v in values if v.is_floating_point())


def finite(value: torch.Tensor) -> bool:
    """Whether all elements are finite. Their sum says so at once, unless it overflows."""
    return math.isfinite(float(value.sum())) or bool(value.isfinite().all())


def harmless(guess: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """Non-finite guesses are replaced by the buffer's initial content."""
    return torch.where(guess.isfinite(), guess, initial) if guess.is_floating_point() else guess
