"""`bench`: the original and the compiled program, timed in turns."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxsolve.bits import same_bits
from fxsolve.cli.subject import Subject, compiled_of, subject_of
from fxsolve.cli.target import UsageError
from fxsolve.progress import progress
from fxsolve.timing import seconds_of

LEAST = 3  # runs of each that are taken however long they last


def bench(options: argparse.Namespace) -> None:
    path = None if options.json is None else Path(options.json)
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"--json {path}: there is no folder {path.parent}; make it first")
    subject = subject_of(options)
    start = time.perf_counter()
    fast = compiled_of(subject, options)
    first = time.perf_counter() - start
    with progress("the original and the compiled program in turns"):
        original, compiled = in_turns(subject, [subject.program, fast], options.runs, options.seconds)
    theirs, ours = (subject.run(program, subject.fresh()) for program in (subject.program, fast))
    figures = {
        "target": subject.name,
        "inputs": options.inputs,
        "gradients": subject.trains,
        "machine": machine(),
        "compile_seconds": first,
        "original_seconds": quartiles(original),
        "compiled_seconds": quartiles(compiled),
        "ratio": quartiles([a / b for a, b in zip(original, compiled)]),
        "max_difference": difference(theirs, ours),
        "same_bits": all(map(alike, theirs, ours)),
        "solution": str(fast.solution),
    }
    print(table(figures))
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def in_turns(subject: Subject, programs: Sequence[Any], runs: int, seconds: float) -> list[list[float]]:
    """Seconds of each run of each program; all start from the same seed and inputs, copied outside of the time."""
    taken: list[list[float]] = [[] for _ in programs]
    end = time.perf_counter() + seconds
    for number in range(runs):
        if number >= LEAST and time.perf_counter() > end:
            break
        for program, times in zip(programs, taken):
            inputs = subject.fresh()
            times.append(seconds_of(lambda: subject.run(program, inputs)))  # noqa: B023
    return taken


def quartiles(values: Sequence[float]) -> dict[str, float]:
    several = list(values) * (2 if len(values) == 1 else 1)
    low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
    return {"q1": low, "median": middle, "q3": high, "runs": len(values)}


def alike(a: Any, b: Any) -> bool:
    """Whether two leaves of a result are the same, tensors bit for bit."""
    return same_bits(a.detach().contiguous(), b.detach().contiguous()) if isinstance(a, Tensor) else a == b


def difference(theirs: Sequence[Any], ours: Sequence[Any]) -> float:
    """The largest distance of two results' numbers; infinite where one alone is not finite."""
    largest = 0.0
    for a, b in zip(theirs, ours, strict=True):
        if alike(a, b):
            continue
        if not isinstance(a, Tensor):
            return float("inf")
        a, b = a.detach(), b.detach()
        apart = (a.to(torch.complex128) - b.to(torch.complex128)).abs()[~((a == b) | (a.isnan() & b.isnan()))]
        largest = max([largest, *apart.nan_to_num(nan=torch.inf).flatten().tolist()])
    return largest


def machine() -> dict[str, Any]:
    found: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "processors": os.cpu_count()}
    found |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "fxsolve": metadata.version("fxsolve")}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def table(figures: dict[str, Any]) -> str:
    """The figures as a person reads them, times in milliseconds."""
    where, solution = figures["machine"], figures["solution"]
    rows = [("", "median", "quartiles", "runs")]
    for name, key in (("original, ms", "original_seconds"), ("compiled, ms", "compiled_seconds"), ("ratio", "ratio")):
        scale, of = 1 if key == "ratio" else 1e3, figures[key]
        low, middle, high = (f"{scale * of[q]:.3g}" for q in ("q1", "median", "q3"))
        rows.append((name, middle, f"{low} to {high}", str(of["runs"])))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    apart = "none, the same bits" if figures["same_bits"] else f"{figures['max_difference']:.2g}"
    kind = "forward and backward" if figures["gradients"] else "forward"
    device = where.get("gpu", f"{where['processors']} processors")
    lines += ["", f"max difference: {apart}"]
    lines += [f"compiling, with the first two runs: {figures['compile_seconds']:.2f} s", f"last call: {solution}"]
    head = f"{figures['target']}, {kind}; {device}, {where['threads']} threads, torch {where['torch']}"
    return "\n".join([head, "", *lines])
