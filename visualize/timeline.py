"""The schedule of the last call along time, on so many devices: what the cost model (fxsolve.cost) adds up, drawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxsolve.chain import ChainRunner
from fxsolve.cost import Phase, launch_seconds
from fxsolve.errors import FxsolveError
from fxsolve.plan import Runner
from fxsolve.schedule import BlockRunner
from fxsolve.visualize import figure as draw

LANES = 16  # devices that are drawn
ROUNDS = 120  # of a phase that are told apart
OUTSIDE = "outside of the blocks"


@dataclass(frozen=True)
class Bar:
    """`device` works on `phase` of `block` from `start` to `end`, in seconds."""

    block: str
    phase: str
    device: int
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """The bars of a call on so many devices, and when the last one ends; that is what `predict(devices)` says."""

    bars: tuple[Bar, ...]
    devices: int
    total: float
    spans: dict[str, tuple[float, float]]  # of the blocks


def planned(compiled: Any, devices: int = 1) -> Timeline:
    """The figures of `timeline`."""
    total = compiled.predict(devices)
    compiler = getattr(compiled, "_compiler", None)
    if total is None or compiler is None or compiler.last is None:
        raise FxsolveError("there is no timeline yet: call it once first; a program without blocks has none")
    executable = compiler.last.executable or compiler.last.rejected
    bars: list[Bar] = []
    spans: dict[str, tuple[float, float]] = {}
    start = 0.0
    for name, runner in executable.runners.items():
        for bar in bars_of(name, runner, devices, start):
            bars.append(bar)
        end = start + (runner.predicted(devices) or 0.0)
        spans[name], start = (start, end), end
    if start < total:
        bars.append(Bar(OUTSIDE, OUTSIDE, 0, start, total))
    return Timeline(tuple(bars), devices, total, spans)


def bars_of(name: str, runner: Runner, devices: int, start: float) -> Iterator[Bar]:
    if isinstance(runner, ChainRunner):
        yield from layers(name, runner, devices, start)
        return
    assert isinstance(runner, BlockRunner)
    phases, launch = runner.counted(), launch_seconds(runner.device)
    took = [phase.on(devices, launch) for phase in phases]
    if runner.fixed is None:
        for phase, seconds in zip(phases, took, strict=True):
            yield from rounds(name, phase, devices, start, seconds, round(phase.rounds))
            start += seconds
        return
    sweeps = max(1, round(phases[-1].rounds))  # of a pass and its heads, in turns
    for _ in range(sweeps):
        for phase, seconds in zip(phases, took, strict=True):
            yield from rounds(name, phase, devices, start, seconds / sweeps, 1)
            start += seconds / sweeps


def rounds(name: str, phase: Phase, devices: int, start: float, seconds: float, count: int) -> Iterator[Bar]:
    """Bars of equal rounds, one for each; if there are too many to be told apart, one for all."""
    count = count if count <= ROUNDS else 1
    for device in range(min(devices, phase.parts, LANES)):
        for k in range(count):
            yield Bar(name, phase.name, device, start + seconds * k / count, start + seconds * (k + 1) / count)


def layers(name: str, runner: ChainRunner, devices: int, start: float) -> Iterator[Bar]:
    """The layers of a chain: in order on one device, or sweep by sweep, the longest block first, on the device that is free."""
    if runner.sweeps is None or runner.plan is None or runner.plan.in_order:
        scale = (runner.predicted(devices) or 0.0) / (sum(runner.seconds) or 1.0)
        for seconds in runner.seconds:
            yield Bar(name, "layers in order", 0, start, start + seconds * scale)
            start += seconds * scale
        return
    if runner.preparing:
        yield Bar(name, "weights laid side by side", 0, start, start + runner.preparing)
        start += runner.preparing
    for number, costs in enumerate(runner.costs(devices)):
        free = [start] * min(devices, max(1, len(costs)))
        for cost in sorted(costs, reverse=True):
            device = min(range(len(free)), key=free.__getitem__)
            if device < LANES:
                yield Bar(name, f"layers, {'even' if number % 2 else 'odd'} sweeps", device, free[device], free[device] + cost)
            free[device] += cost
        start = max(free)


def timeline(compiled: Any, path: str | os.PathLike[str], devices: int = 1) -> Path:
    """Draws what the last call would do on so many devices, block after block: a simulation from what was measured here.

    A lane is a device, a bar a round of a phase (a sweep's pass, a step of all parallel blocks, a layer); the total is what
    `predict(devices)` says. What devices send one another is not counted.

    Writes .svg, .png or .pdf and returns the path. Raises FxsolveError before the first call, and where no block was solved.
    """
    draw.checked(path)
    found = planned(compiled, devices)
    lanes = min(devices, LANES)
    unit, name = (1.0, "s") if found.total >= 1 else (1e3, "ms") if found.total >= 1e-3 else (1e6, "µs")
    phases = list(dict.fromkeys(bar.phase for bar in found.bars))
    with draw.drawn(path, 1.5 + 0.26 * lanes + 0.2 * -(-len(phases) // 3)) as (picture, ((axis,),)):
        for phase, colour in zip(phases, draw.COLOURS * len(phases), strict=False):
            for lane in range(lanes):
                mine = [b for b in found.bars if b.phase == phase and b.device == lane]
                if not mine:
                    continue
                wide = min(b.end - b.start for b in mine) > found.total / 400
                spans = [(b.start * unit, (b.end - b.start) * unit) for b in mine]
                line = {"edgecolor": "white", "linewidth": 0.5} if wide else {"linewidth": 0}
                axis.broken_barh(spans, (lane - 0.4, 0.8), facecolor=colour, label=phase if lane == 0 else None, **line)
        for block, (start, end) in found.spans.items():
            if end - start > found.total / 12:
                axis.text((start + end) / 2 * unit, -0.75, block, ha="center", va="center", fontsize=8)
            axis.axvline(end * unit, color=draw.INK, linewidth=0.6, linestyle=":")
        axis.set(xlabel=f"time in {name}, simulated from what was measured on this device", xlim=(0, found.total * unit))
        axis.set_yticks(range(lanes), [f"device {n + 1}" for n in range(lanes)])
        axis.set_ylim(lanes - 0.4, -1.1)
        more = f" ({lanes} of them drawn)" if devices > lanes else ""
        axis.set_title(f"{found.total * unit:.3g} {name} on {devices} device{'s' * (devices > 1)}{more}")
        picture.legend(loc="outside lower center", ncols=3, frameon=False)
    return Path(path)
