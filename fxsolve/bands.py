"""Passes that get shorter: once the first rows of a buffer are final, a pass computes the rest alone.

The rows of an image, the time of a signal: the axis of the buffer that its slots fill in order. A few *levels* cut it; when
the frontier has passed one, the next pass at hand also returns what later passes read of the final rows (fxsolve.passes.band),
and these compute a band only. A level is used if its pass gave the same bits as the pass before, and was quicker. And as
kernels may take other ways at other sizes, a solution ends with one pass of all rows, which must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import fx

from fxsolve.bits import same_bits
from fxsolve.ir import FixedPoint, TensorType, placeholders
from fxsolve.passes.band import Band, NotBanded, Rows, band
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from fxsolve.timing import seconds_of

Tensors = Sequence[torch.Tensor]
LEVELS = 8  # parts that the axis is cut into
PAYS = 0.95  # of the time of the level before
TRIALS = 2


@dataclass
class Level:
    """Passes whose rows before `low` are final. `usable`: whether it pays; None: not known yet."""

    low: int
    band: Band
    run: Callable[..., Any] | None = None
    usable: bool | None = None
    share: float = 1.0  # of the time of a pass of all rows


class Bands:
    """The levels of a fixed-point block, and their code."""

    def __init__(self, block: FixedPoint, network: fx.Graph) -> None:
        self.block, self.network = block, network
        self.axis, self.open = open_rows(block)
        self.size: int = placeholders(network)[0].meta["type"].shape[self.axis]
        lows = sorted({self.size * k // LEVELS for k in range(1, LEVELS)} - {0})
        self.levels = [Level(low, band(network, self.axis, low)) for low in lows]
        self.keepers: dict[int, tuple[Callable[..., Any], tuple[Rows, ...]]] = {}

    def level_at(self, frontier: int) -> int:
        """The highest level that may be used once so many slots are final; -1: all rows."""
        low = self.open[frontier] if frontier < len(self.open) else self.open[-1]
        return max((i for i, level in enumerate(self.levels) if level.low <= low and level.usable is not False), default=-1)

    def leave(self) -> None:
        """From now on, passes are of all rows."""
        for level in self.levels:
            level.usable = False

    def keeping(self, at: int) -> tuple[Callable[..., Any], tuple[Rows, ...]]:
        """The pass of a level that also returns what higher levels read of the final rows."""
        if at not in self.keepers:
            names = list(dict.fromkeys(rows.name for level in self.levels[at + 1 :] for rows in level.band.halos))
            low = self.levels[at].low if at >= 0 else 0
            found = band(self.network, self.axis, low, names)
            self.keepers[at] = generated(found.graph), found.kept
        return self.keepers[at]


class Passes:
    """The network's passes of one solution."""

    def __init__(self, whole: Callable[..., Any], bands: Bands | None, consts: Tensors) -> None:
        self.whole, self.bands, self.consts = whole, bands, consts
        self.at = -1  # the level
        self.halos: list[torch.Tensor] = []
        self.last: list[torch.Tensor] = []  # all rows of the results, when the level was reached
        self.spared = 0.0  # passes of all rows that those of bands did without

    def __call__(self, buffers: Tensors, frontier: int) -> Sequence[torch.Tensor]:
        """What the network returns, once so many slots of the buffers are final."""
        if self.bands is not None and (above := self.bands.level_at(frontier)) > self.at:
            return self.climbed(self.bands, above, buffers)
        self.spared += 0.0 if self.bands is None or self.at < 0 else 1.0 - self.bands.levels[self.at].share
        return self.run(buffers)

    def shares(self, passes: int) -> float:
        """So many passes, and the last one of all rows, in passes of all rows."""
        return passes - self.spared + (self.spared > 0)

    def run(self, buffers: Tensors) -> Sequence[torch.Tensor]:
        if self.bands is None or self.at < 0:
            return self.whole(*buffers, *self.consts)
        level = self.bands.levels[self.at]
        assert level.run is not None
        return filled(self.last, level.band, level.run(*buffers, *self.consts, *self.halos))

    def climbed(self, bands: Bands, above: int, buffers: Tensors) -> Sequence[torch.Tensor]:
        """A pass of this level, and the next one's halos; where that level is new, whether it can be used."""
        new = self.at not in bands.keepers
        keep, known = bands.keeping(self.at)
        values = keep(*buffers, *self.consts, *self.halos)
        count = len(values) - len(known)
        seen = list(values[:count]) if self.at < 0 else filled(self.last, bands.levels[self.at].band, values[:count])
        if new and not all(same_bits(a, b) for a, b in zip(seen, self.run(buffers), strict=True)):
            bands.leave()
            return self.run(buffers)
        kept = {rows.name: (rows.first, value) for rows, value in zip(known, values[count:], strict=True)}
        level, halos = bands.levels[above], []
        for rows in level.band.halos:
            first, value = kept[rows.name]
            halos.append(value.narrow(rows.dim, rows.first - first, rows.stop - rows.first).clone())
        if level.usable is None:
            level.usable = self.tried(level, halos, buffers, seen)
        if level.usable:
            self.at, self.halos, self.last = above, halos, seen
        return seen

    def tried(self, level: Level, halos: Tensors, buffers: Tensors, seen: Tensors) -> bool:
        """Whether a level's pass gives the same bits as this one's, sooner."""
        inputs = [*buffers, *self.consts, *halos]
        values = Typed(fx.GraphModule({}, level.band.graph)).run(*inputs)
        if not all(same_bits(a, b) for a, b in zip(filled(seen, level.band, values), seen, strict=True)):
            return False
        run = level.run = generated(reuse(level.band.graph))
        ours = theirs = float("inf")
        for _ in range(TRIALS):  # in turns: what else the machine does should hit both
            theirs = min(theirs, seconds_of(lambda: self.run(buffers)))
            ours = min(ours, seconds_of(lambda: filled(seen, level.band, run(*inputs))))
        level.share = ours / theirs * (self.bands.levels[self.at].share if self.bands is not None and self.at >= 0 else 1.0)
        return ours < PAYS * theirs

    def certified(self, buffers: Tensors) -> bool:
        """Whether a pass of all rows gives the same bits, the buffers being final. If not, no level is used any more."""
        if self.bands is None or self.at < 0:
            return True
        short, whole = self.run(buffers), self.whole(*buffers, *self.consts)
        same = all(same_bits(a, b) for a, b in zip(short, whole, strict=True))
        if not same:
            self.bands.leave()
        self.bands = None
        return same


class Typed(fx.Interpreter):
    """Runs a graph and notes the types of its values."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["type"] = TensorType.of(result) if isinstance(result, torch.Tensor) else None
        return result


def filled(last: Tensors, part: Band, values: Tensors) -> list[torch.Tensor]:
    """All rows of the results: those of a band after those that were final before."""
    return [a if rows is None else put(a, rows, b) for a, rows, b in zip(last, part.results, values, strict=True)]


def put(whole: torch.Tensor, rows: Rows, part: torch.Tensor) -> torch.Tensor:
    fresh = whole.clone()
    fresh.narrow(rows.dim, rows.first, whole.shape[rows.dim] - rows.first).copy_(part)
    return fresh


def open_rows(block: FixedPoint) -> tuple[int, list[int]]:
    """The axis that the slots fill in order, and the first row along it that is not final when so many slots are.

    Raises NotBanded.
    """
    if block.buffers != 1:
        raise NotBanded("it has several buffers")
    kind: TensorType = placeholders(block.network)[0].meta["type"]
    best, found = 0.0, None
    for axis, (size, step) in enumerate(zip(kind.shape, kind.stride, strict=True)):
        rows = [offset // step % size for offset in block.slots[0].offsets]
        lowest = list(accumulate(reversed(rows), min))[::-1]
        final = sum(lowest) / (len(lowest) * size)
        if final > best:
            best, found = final, (axis, lowest)
    if found is None:
        raise NotBanded("its slots fill no axis in order")
    return found


def bands_of(block: FixedPoint, network: fx.Graph) -> Bands | None:
    try:
        return Bands(block, network)
    except NotBanded:
        return None
