"""What the examples share: interleaved timing, what a solution says in a few words, and the one table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fxsolve
from examples.bar import bar

SEED = 7
ROUND = 0.02  # seconds


@dataclass(frozen=True)
class Row:
    """One line of the table; times in seconds."""

    model: str
    steps: str
    sweeps: str
    eager: float
    fast: float
    certificate: str
    difference: float

    @property
    def ratio(self) -> float:
        return self.eager / self.fast


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", least: float = ROUND
) -> dict[str, list[float]]:
    """Seconds of a run of each variant, `rounds` of them, taken in turns so that all see the same machine; none of them always
    comes right after the same other one.

    A round is the mean of as many runs as take `least` seconds: the first one, after another program's, also pays for what
    that one drove out of the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants.items())
    turns = [order[(k + first) % len(order)] for first in range(rounds) for k in range(len(order))]
    with bar("timing", len(turns)) as move:
        for done, (name, run) in enumerate(turns):
            move(done, f"timing {name}")
            taken = [once(run, device)]
            while sum(taken) < least:
                taken.append(once(run, device))
            seconds[name].append(statistics.fmean(taken))
    return seconds


def once(run: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one run from the same state of the generator, the device's queue drained before and after."""
    torch.manual_seed(SEED)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def grouped(counts: Iterable[object]) -> str:
    """Counts of several blocks, equal neighbours said once: 4096, 4096, 7 --> "2 x 4096, 7"."""
    parts = [(value, len(list(run))) for value, run in groupby(counts)]
    return ", ".join(f"{n} x {value}" if n > 1 else f"{value}" for value, n in parts)


def row(model: str, solution, eager: float, fast: float, difference: float) -> Row:
    """The table's line for one model, from the solution of its last call."""
    blocks = solution.blocks
    certificate = solution.fallback or grouped(block.fallback or block.certificate for block in blocks)
    steps = grouped(block.equations for block in blocks)
    sweeps = grouped(f"{block.sweeps} {block.solver}" for block in blocks)
    return Row(model, steps, sweeps, eager, fast, certificate, difference)


def compared(
    name: str, program: Callable, arguments: tuple, rounds: int, device: str
) -> tuple[Row, Sequence[torch.Tensor], Any]:
    """A sampler eager and compiled in turns from the same seed, equal bit for bit: the table's line, its results, and what it
    was compiled to.
    """
    fast = fxsolve.compile(program)
    first = once(lambda: fast(*arguments), device)
    results = []
    for run in (fast, program):
        torch.manual_seed(SEED)
        made = run(*arguments)
        results.append(made if isinstance(made, tuple) else (made,))
    ours, theirs = results
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs)), f"{name}: the results differ"
    seconds = medians(interleaved({"eager": lambda: program(*arguments), "fast": lambda: fast(*arguments)}, rounds, device))
    print(f"{name}: first call {first:.1f} s, eager {seconds['eager']:.3f} s, fxsolve {seconds['fast']:.3f} s")
    difference = (ours[0] - theirs[0]).abs().max().item()
    return row(name, fast.solution, seconds["eager"], seconds["fast"], difference), ours, fast


def write_report(fast: Any, folder: Path, small: bool) -> None:
    """One HTML page on the last call of a compiled callable."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"report: {fast.report(folder / ('small-report.html' if small else 'report.html'))}")


def print_table(title: str, rows: Iterable[Row]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("model", "sequential steps", "sweeps"):
        table.add_column(heading)
    for heading in ("eager s", "fxsolve s", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("certificate")
    table.add_column("max difference", justify="right")
    for r in rows:
        times = (f"{r.eager:.4f}", f"{r.fast:.4f}", f"{r.ratio:.1f}x")
        table.add_row(r.model, r.steps, r.sweeps, *times, r.certificate, f"{r.difference:.1e}")
    console = Console()
    Console(width=max(console.width, 150)).print(table)
