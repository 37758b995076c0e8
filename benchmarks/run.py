"""Measure eager, the strongest alternative and fxsolve in turns, in one process, and write JSON and a Markdown table.

    python -m benchmarks.run [--only TEXT] [--device cuda] [--tf32] [--small] [--out FILE] [--torch-compile]

Times include everything a call does: guards, stopping tests and certificates.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import fxsolve
from benchmarks import torch_compile
from benchmarks.cases import Case, Subject, cases, training
from benchmarks.machine import RESULTS, machine
from benchmarks.table import markdown
from examples.report import SEED, interleaved, once

SEEDS = 10


def summary(values: Sequence[float]) -> dict[str, float]:
    """Smallest value, quartiles, and how many values there are."""
    several = list(values) * (2 if len(values) == 1 else 1)
    low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
    return {"min": min(values), "q1": low, "median": middle, "q3": high, "n": len(values)}


def seeded(subject: Subject, program: Callable, arguments: tuple) -> Tensor:
    """One run from the same state of the generator."""
    torch.manual_seed(SEED)
    return subject.run(program, arguments)


def errors(subject: Subject, fast: Callable) -> dict[str, float]:
    """Root mean square error to a float64 run over SEEDS weights and inputs, of eager and of fxsolve."""
    squares: dict[str, list[float]] = {"eager": [], "fxsolve": []}
    for seed in range(SEEDS):
        arguments = subject.reset(seed)
        exact = seeded(subject, copy.deepcopy(subject.program).double(), tuple(value.double() for value in arguments))
        for name, program in (("eager", subject.program), ("fxsolve", fast)):
            squares[name].append((seeded(subject, program, arguments).double() - exact).square().mean().item())
    return {name: statistics.fmean(values) ** 0.5 for name, values in squares.items()}


def peak_memory(run: Callable[[], object], device: str) -> float:
    """The most bytes of tensors that one run holds at a time, above what is held before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes), default=0)


def resident() -> float:
    """The most bytes of memory that this process held until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def solved(solution) -> dict:
    """What the last call's solution says, block by block."""
    fields = ("name", "kind", "solver", "equations", "sweeps", "steps", "residual", "contraction")
    fields += ("certificate", "seconds", "fallback")
    blocks = [{field: getattr(block, field) for field in fields} for block in solution.blocks]
    return {"fallback": solution.fallback, "blocks": blocks}


def measure(case: Case, device: str, budget: float) -> dict:
    """Everything about one case; `budget` bounds the seconds spent in the interleaved rounds."""
    subject = case.make()
    arguments, run = subject.arguments, subject.run
    start = time.perf_counter()
    expected = seeded(subject, subject.program, arguments)
    warm = time.perf_counter() - start  # slow cases are warm by now
    fast = fxsolve.compile(subject.program)
    result: dict = {"date": datetime.date.today().isoformat(), "vectors": torch.backends.cpu.get_cpu_capability()}
    eager_resident = resident()
    result["first_call"] = once(lambda: run(fast, arguments), device)
    result["first_call_memory"] = resident() - eager_resident  # above eager's, if it is the process's first case
    got = seeded(subject, fast, arguments)
    result["equal_bits"] = torch.equal(got, expected)
    result["max_difference"] = (got - expected).abs().max().item()

    programs = {"eager": subject.program, "fxsolve": fast}
    variants = {"eager": lambda: run(subject.program, arguments), "fxsolve": lambda: run(fast, arguments)}
    if subject.alternative:
        name, alternative = subject.alternative
        result["alternative"] = name
        variants["alternative"] = lambda: run(alternative, arguments)
    if warm < budget:
        warm = sum(once(variant, device) for variant in variants.values())
    least = 5 if warm < budget else 2 if warm < 3 * budget else 1
    rounds = max(least, min(50, int(budget / warm)))
    seconds = interleaved(variants, rounds, device)
    result["seconds"] = {name: summary(values) for name, values in seconds.items()}
    for name in variants.keys() - {"fxsolve"}:
        ratios = [slow / quick for slow, quick in zip(seconds[name], seconds["fxsolve"])]
        result[f"over_{name}"] = summary(ratios)
    result["solution"] = solved(fast.solution)

    if run is training:
        peaks = {name: peak_memory(lambda: run(program, arguments), device) for name, program in programs.items()}  # noqa: B023
        result["peak_memory"] = peaks
        print(f"  peak memory: eager {peaks['eager'] / 2**20:.1f} MiB, fxsolve {peaks['fxsolve'] / 2**20:.1f} MiB")
    if subject.other:
        result["other_size"] = {
            "eager": once(lambda: run(subject.program, subject.other), device),
            "first_call": once(lambda: run(fast, subject.other), device),
        }
    if subject.reset:
        result["rms_error"] = errors(subject, fast)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only cases whose name contains this; merged into the file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tf32", action="store_true", help="let cuDNN round inputs to 10 bits, as torch does by itself")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of a case's rounds")
    parser.add_argument("--threads", type=int, help="torch's threads; torch's own choice if not given")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test the benchmark itself")
    parser.add_argument("--out", type=Path, help="the JSON file; the table goes next to it")
    parser.add_argument("--torch-compile", action="store_true", help="also torch.compile, a minute and four eager runs at most")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device != "cpu":  # it puts a Python call before each of torch's functions
        torch.set_default_device(options.device)
    torch.backends.cudnn.allow_tf32 = options.tf32
    out = options.out or RESULTS / f"{options.device}{'-small' if options.small else ''}.json"

    wanted = [case for case in cases(options.small) if options.only in case.name]
    if not wanted:
        sys.exit(f"no case contains {options.only!r}; there are: " + "; ".join(c.name for c in cases(options.small)))
    report: dict = {"machine": machine(options.device) | ({"tf32": True} if options.tf32 else {}), "cases": {}}
    if options.only and out.exists():
        report["cases"] = json.loads(out.read_text())["cases"]
    for case in wanted:
        result = measure(case, options.device, 0.5 if options.small else options.budget)
        if options.torch_compile:
            limit = 60 + 4 * result["seconds"]["eager"]["median"]
            arguments = (options.device, options.small, torch.get_num_threads())
            result["torch_compile"] = torch_compile.measure(case.name, *arguments, limit)
        report["cases"][case.name] = result
        over = result["over_eager"]
        print(f"{case.name}: {over['median']:.2f}x over eager ({over['q1']:.2f} to {over['q3']:.2f})")
        first, times = result["first_call"], result["first_call"] / result["seconds"]["eager"]["median"]
        memory = result["first_call_memory"] / 2**20
        print(f"  first call {first:.1f} s ({times:.2f} times eager's), {memory:.0f} MiB more")
        print(f"  sweeps {[block['sweeps'] for block in result['solution']['blocks']]}, same bits: {result['equal_bits']}")
        print(f"  torch.compile: {result.get('torch_compile', 'not asked for')}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
        out.with_suffix(".md").write_text(markdown(report))
    print(f"written: {out} and {out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
