"""How the blocks of a program converged: for each the frontier, and a heat map where something is known cell by cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from fxsolve.chain import ChainRunner
from fxsolve.ir import FixedPoint, TensorType, placeholders
from fxsolve.layers import Sweeps
from fxsolve.plan import Runner
from fxsolve.schedule import BlockRunner
from fxsolve.solution import BlockSolution
from fxsolve.visualize.chart import frontier_chart, heat_map
from fxsolve.visualize.markup import Markup, element, joined

BLOCKS = 12  # that are drawn


def convergence(runners: Iterable[Runner]) -> Markup:
    """The charts of all blocks that were swept; a block that ran in order has nothing to show."""
    swept = [r for r in runners if r.solution is not None and r.solution.steps and not in_order(r)]
    if not swept:
        return element("p", "Nothing was swept: every block ran in order, so there is no convergence to show.")
    parts: list[Markup] = []
    for runner in swept[:BLOCKS]:
        assert runner.solution is not None
        parts.append(element("h3", f"{runner.block.name}: {runner.solution.solver}"))
        parts.append(Markup(f"<div class='charts'>{joined(charts(runner, runner.solution))}</div>"))
    if len(swept) > BLOCKS:
        parts.append(element("p", f"and {len(swept) - BLOCKS} more blocks", "soft"))
    return joined(parts)


def in_order(runner: Runner) -> bool:
    return runner.plan is None or runner.plan.in_order


def charts(runner: Runner, s: BlockSolution) -> Iterator[Markup]:
    yield figure(
        frontier_chart(s.frontier, s.equations, s.name, s.sweeps),
        "Leading equations that are final after each sweep. Dashed: one equation a sweep, as the original program goes.",
    )
    if isinstance(runner, ChainRunner) and runner.sweeps is not None and runner.sweeps.rounds:
        yield evaluations(runner.sweeps, s)
    block = runner.fixed.block if isinstance(runner, BlockRunner) and runner.fixed is not None else None
    if block is not None and s.frontier:
        yield slots(block, s)
    if s.spread:
        yield samples(s.samples)


def figure(chart: Markup, caption: str) -> Markup:
    return Markup(f"<figure>{chart}{element('figcaption', caption)}</figure>")


def evaluations(sweeps: Sweeps, s: BlockSolution) -> Markup:
    """Which layers each sweep evaluated."""
    cells: list[list[float | None]] = [[None] * len(sweeps.rounds) for _ in range(s.equations)]
    for number, blocks in enumerate(sweeps.rounds):
        for layer in (layer for block in blocks for layer in block):
            cells[layer][number] = 1.0
    count = sum(cell is not None for row in cells for cell in row)
    return figure(
        heat_map(cells, f"{s.name}: layers evaluated in each sweep", "sweeps", "layers", "", ""),
        f"Filled: layers (down) that a sweep (across) evaluated, {count} evaluations in all; the others read nothing that had "
        "changed.",
    )


def slots(block: FixedPoint, s: BlockSolution) -> Markup:
    """After which sweep each slot was known to be final, in the places that the slots have in their buffer."""
    final = final_after(s.frontier, s.equations, s.sweeps)
    places, told = slot_places(block)
    rows, columns = 1 + max(row for row, _ in places), 1 + max(column for _, column in places)
    cells: list[list[float | None]] = [[None] * columns for _ in range(rows)]
    for (row, column), sweep in zip(places, final, strict=True):
        if sweep is not None:
            cells[row][column] = (sweep - 1) / max(1, s.sweeps - 1)
    return figure(
        heat_map(cells, f"{s.name}: the sweep that made each slot final", "", "", "sweep 1", f"sweep {s.sweeps}"),
        f"The sweep after which each slot was known to be final{told}.",
    )


def final_after(frontier: Sequence[int], equations: int, sweeps: int) -> list[int | None]:
    """For each equation the sweep after which the frontier had passed it."""
    every = sweeps / max(1, len(frontier))
    final: list[int | None] = []
    for number, reached in enumerate(frontier, 1):
        final += [round(number * every)] * (reached - len(final))
    return final + [None] * (equations - len(final))


def slot_places(block: FixedPoint) -> tuple[list[tuple[int, int]], str]:
    """(row, column) of each slot: rows and columns of an image where its slots are that; else in order, line by line."""
    kind = next(n.meta["type"] for n in placeholders(block.network))
    indices = [indices_of(offset, kind) for offset in block.slots[0].offsets]
    varying = [axis for axis in range(len(kind.shape)) if len({index[axis] for index in indices}) > 1]
    if len(varying) == 2 and len({(index[varying[0]], index[varying[1]]) for index in indices}) == block.length:
        return [(index[varying[0]], index[varying[1]]) for index in indices], ""
    width = math.isqrt(block.length - 1) + 1
    return [divmod(slot, width) for slot in range(block.length)], f"; slots in order, {width} a line"


def indices_of(offset: int, kind: TensorType) -> list[int]:
    """The index of the element at an offset."""
    index = [0] * len(kind.shape)
    for axis in sorted(range(len(kind.shape)), key=lambda a: -kind.stride[a]):
        if kind.shape[axis] > 1:
            index[axis], offset = divmod(offset, kind.stride[axis])
    return index


def samples(passes: Sequence[int]) -> Markup:
    """After how many passes each sample of a batch was final."""
    width = math.isqrt(len(passes) - 1) + 1
    low, high = min(passes), max(passes)
    shades: list[float | None] = [(p - low) / max(1, high - low) for p in passes]
    cells = [shades[start : start + width] for start in range(0, len(shades), width)]
    return figure(
        heat_map(cells, "passes until each sample was final", "", "", f"{low} passes", f"{high} passes"),
        f"The passes after which each of the {len(passes)} samples of the batch was final; samples in order, {width} a line.",
    )
