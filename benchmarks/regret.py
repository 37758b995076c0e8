"""How good the scheduler's choice is: each case by what it chose, and by every candidate, in turns in one process.

    python -m benchmarks.regret [--only TEXT] [--device cuda] [--small] [--out FILE]

Rounds in turns say which candidate is the best; the original is one, and those that reach no certificate are none. Regret is
then measured in pairs of the choice and the best right after one another: the median of the ratios, less one. So is how much
quicker than the original the choice is, beside the original with itself, which says what is noise. What the cost model
predicts for one device, after a few calls, stands beside what the next ones took: the middle one of a few such ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import fxsolve
from benchmarks.machine import RESULTS, machine
from examples.densenet.model import cifar
from examples.made.model import MADE
from examples.report import ROUND, SEED, interleaved, once
from examples.rnn.models import LinearGRUCell, LinearRNNCell, Loop, LSTMLoop
from fxsolve import GaussSeidel, GSJacobi, Jacobi, JacobiGS
from fxsolve.codegen import Executable
from fxsolve.cost import RECENT
from fxsolve.plan import Plan, Runner
from fxsolve.schedule import BlockRunner
from fxsolve.solvers import Solver
from fxsolve.trials import SWEEP_LIMIT

BUDGET = 4.0  # seconds of a case's rounds, and of each kind of pairs
ROUNDS, FEW = 5, 3  # at the least; of slow ones
PAIRS = 15  # at the least
SURE, LONGER = 0.01, 4  # how far the median may be off, and for how many budgets: two threads make some jump between two speeds
PAIR = 0.005  # seconds of each half: short, so that both meet the same machine
PREDICTIONS, MANY = 5, 25  # at the least, at the most
LOOP_SOLVERS = (GaussSeidel(4), GaussSeidel(32), *[JacobiGS(c, 3 * c // 5) for c in (8, 16, 24, 32, 48, 64, 128, 256)])
SAMPLER_SOLVERS = (Jacobi(), JacobiGS(8), GSJacobi(64))
CHAIN_SOLVERS = (GaussSeidel(), Jacobi(), JacobiGS(4), GSJacobi(8))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], tuple[Callable[..., Tensor], tuple]]
    solvers: tuple[Solver, ...]


class Tower(nn.Module):
    """Residual layers of different widths."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        sizes = [width + 3 * k for k in range(layers)]
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, n), nn.ReLU(), nn.Linear(n, width)) for n in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Causal(nn.Module):
    """A sampler over a signal: a stack of causal convolutions, called once for each new value."""

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        self.length = length
        self.convs = nn.ModuleList(nn.Conv1d(a, channels, 3) for a in (1, channels, channels))
        self.last = nn.Conv1d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (1, -1))
        for conv in self.convs:
            x = torch.relu(conv(nn.functional.pad(x, (2, 0))))
        return self.last(x)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, 1, self.length)
        for t in range(self.length):
            x[:, 0, t] = torch.tanh(self(x)[:, 0, t]) + 0.1 * torch.randn(n)
        return x


class RungeKutta(nn.Module):
    """Steps of the classical Runge-Kutta method for an ODE whose right side is a small network: its state does not forget."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        path, dt = [x], 2.0 / self.steps
        for _ in range(self.steps):
            a = self.net(x)
            b = self.net(x + dt / 2 * a)
            c = self.net(x + dt / 2 * b)
            d = self.net(x + dt * c)
            x = x + dt / 6 * (a + 2 * b + 2 * c + d)
            path.append(x)
        return torch.stack(path)


def loop(kind: str, length: int, batch: int, width: int, gain: float | None) -> tuple[Callable[..., Tensor], tuple]:
    """A loop over a cell. With a gain, the recurrent weights are gain * N(0, 1/d)."""
    torch.manual_seed(0)
    cells = {
        "RNN": lambda: Loop(LinearRNNCell(width, width)),
        "GRU": lambda: Loop(LinearGRUCell(width, width)),
        "RNNCell": lambda: Loop(nn.RNNCell(width, width)),
        "LSTMCell": lambda: LSTMLoop(nn.LSTMCell(width, width)),
    }
    model = cells[kind]().eval()
    if gain is not None:
        for name, weight in model.named_parameters():
            if name in ("cell.h.weight", "cell.weight_hh"):
                nn.init.normal_(weight, std=gain / width**0.5)
    return model, (torch.randn(batch, length, width),)


def sampler(build: Callable[[], nn.Module], batch: int) -> tuple[Callable[..., Tensor], tuple]:
    torch.manual_seed(0)
    return build().eval().sample, (batch,)


def network(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[Callable[..., Tensor], tuple]:
    torch.manual_seed(0)
    return build().eval(), (torch.randn(shape),)


def cases(small: bool) -> Iterator[Case]:
    """Loops, samplers and layers, from tiny to long, from one sample to many, from contracting to chaotic."""
    shrink = 16 if small else 1
    for pixels, batch in ((16, 1), (64, 1), (256, 1), (256, 16), (256, 256)):
        made = partial(MADE, max(8, pixels // shrink), (128, 128))
        yield Case(f"MADE sampler, {pixels} slots, batch {batch}", partial(sampler, made, batch), SAMPLER_SOLVERS)
    for length, batch in ((32, 1), (256, 1), (256, 16)):
        causal = partial(Causal, max(8, length // shrink), 16)
        yield Case(f"causal convolutions, {length} slots, batch {batch}", partial(sampler, causal, batch), SAMPLER_SOLVERS)
    for layers, batch in ((6, 1), (32, 1), (32, 256)):
        tower = partial(Tower, layers, 64)
        yield Case(f"{layers} residual layers, batch {batch}", partial(network, tower, (batch, 64)), CHAIN_SOLVERS)
    dense = partial(network, partial(cifar, 22 if small else 40), (1, 3, 32, 32))
    yield Case("DenseNet-BC-40, batch 1", dense, CHAIN_SOLVERS)
    yield Case("Runge-Kutta steps, T=100, batch 4", partial(network, partial(RungeKutta, 100, 4), (4, 4)), LOOP_SOLVERS)
    loops: list[tuple[str, int, int, int, float | None]] = [
        ("GRU", 4, 1, 32, None), ("GRU", 16, 1, 32, None), ("GRU", 64, 1, 32, None), ("GRU", 256, 1, 64, None),
        ("GRU", 1024, 1, 64, None), ("GRU", 1024, 8, 64, None), ("GRU", 1024, 64, 64, None),
        ("GRU", 256, 256, 64, None), ("RNN", 32, 1, 16, 0.5), ("RNN", 512, 1, 32, 0.5),
        ("RNN", 1024, 1, 64, 0.9), ("RNN", 1024, 1, 64, 1.2), ("RNN", 1024, 1, 64, 1.5), ("RNN", 1024, 1, 64, 2.0),
        ("RNN", 1024, 16, 64, 1.2), ("RNN", 128, 256, 64, 0.9), ("RNNCell", 2048, 1, 64, 1.0), ("RNNCell", 256, 64, 128, 1.0),
        ("LSTMCell", 8, 1, 64, None), ("LSTMCell", 128, 1, 64, None), ("LSTMCell", 2048, 1, 64, None),
        ("LSTMCell", 512, 32, 64, None), ("GRU", 4096, 1, 64, None), ("RNN", 16384, 1, 32, 0.5),
    ]  # fmt: skip
    for kind, length, batch, width, gain in loops:
        gained = "" if gain is None else f", gain {gain}"
        name = f"{kind} loop, T={length}, batch {batch}, d={width}{gained}"
        size = min(length, 64) if small else length
        yield Case(name, partial(loop, kind, size, batch, width, gain), LOOP_SOLVERS)


Setting = tuple[Sequence[Plan | None], Executable | None]  # the blocks' plans, and the program; None: the original runs


class Variants:
    """A compiled callable by its own choice, and by other plans: everything else that a call does is the same."""

    def __init__(self, compiled, arguments: tuple) -> None:
        self.compiled, self.arguments = compiled, arguments
        self.compiler = compiled._compiler
        self.entry = self.compiler.last
        self.chosen, self.drift = self.entry.executable, self.entry.drift
        self.executable = self.chosen or self.entry.rejected
        self.runners: list[Runner] = list(self.executable.runners.values()) if self.executable is not None else []
        self.plans = [runner.plan for runner in self.runners]

    def choice(self) -> Setting:
        return self.plans, self.chosen

    def tried(self, solver: Solver, threads: int) -> Setting:
        plans = []
        for plan in self.plans:
            kind = plan.kind if plan is not None and plan.kind != "Repeat" else "Recurrence"
            plans.append(Plan(solver, kind, "tried", limit=SWEEP_LIMIT if kind == "Recurrence" else None, threads=threads))
        return plans, self.executable

    def take_up(self, setting: Setting) -> None:
        """What later calls run. Not to be timed."""
        plans, executable = setting
        # the choice alone may make way for the original: a slow candidate would not be timed, nor the choice after it
        self.entry.drift = self.drift if plans is self.plans else None
        if self.entry.executable is not executable:
            self.entry.executable = executable
            self.compiler.straight.clear()
        for runner, plan in zip(self.runners, plans, strict=True):
            runner.plan = plan
            if isinstance(runner, BlockRunner):
                runner.misses = runner.held = 0
                if runner.recurrence is not None and plan is not None:
                    runner.recurrence.threads = plan.threads
        self.run()  # warms up

    def run(self) -> object:
        torch.manual_seed(SEED)
        return self.compiled(*self.arguments)


def measure(case: Case, device: str, budget: float, pairs: int) -> dict:
    """Seconds of the choice and of all candidates in turns, the regret, and the cost model's prediction."""
    fn, arguments = case.make()
    chosen = fxsolve.compile(fn)
    with torch.no_grad():

        def call() -> Tensor:
            return chosen(*arguments)

        def original() -> Tensor:
            return fn(*arguments)

        interleaved({"chosen": call}, 1, device)
        predicted, measured = predictions(chosen, call, device, budget)
        programs = Variants(chosen, arguments)
        is_compiled = programs.entry.compiled
        settings = {"chosen": programs.choice(), "original": None}

        def seconds_of(name: str, least: float = ROUND) -> list[float]:
            setting, run = settings[name], call
            if setting is None:
                run = original
                once(run, device)  # warms up, as taking up a setting does
            else:
                programs.take_up(setting)
            return interleaved({name: run}, 1, device, least)[name]

        def ratios(first: str, second: str) -> list[float]:
            """Seconds of one over those of the other, which of them comes first in turns."""
            found: list[float] = []
            start = time.perf_counter()
            while len(found) < pairs or (taken := time.perf_counter() - start) < budget or (
                taken < LONGER * budget and uncertainty(found) > SURE
            ):
                if len(found) % 2:
                    (below,), (above,) = seconds_of(second, PAIR), seconds_of(first, PAIR)
                else:
                    (above,), (below,) = seconds_of(first, PAIR), seconds_of(second, PAIR)
                found.append(above / below)
            return found

        excluded: dict[str, str] = {}
        usual = torch.get_num_threads()
        for solver in case.solvers if programs.runners else ():
            for threads in sorted({1, usual}) if case.solvers is LOOP_SOLVERS and device == "cpu" else (usual,):
                name, tried = f"{solver} on {threads}", programs.tried(solver, threads)
                programs.take_up(tried)
                if chosen.solution.fallback is None and not any(b.fallback for b in chosen.solution.blocks):
                    settings[name] = tried
                else:
                    excluded[name] = str(chosen.solution)
                programs.entry.failures = 0
        once_all = [max(ROUND, *seconds_of(name)) for name in settings]
        least = ROUNDS if sum(once_all) < budget else FEW
        rounds = max(least, min(25, int(budget / sum(once_all))))
        seconds: dict[str, list[float]] = {name: [] for name in settings}
        order = list(settings)
        for _ in range(rounds):
            for name in order:
                seconds[name] += seconds_of(name)
            order = [*order[1:], order[0]]  # nobody always runs after the same one, on its threads and caches
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        best = min(medians, key=medians.__getitem__)
        over = {name: statistics.median(ratios("original", name)) for name in ("chosen", "original")}
        over_best = {"chosen": 1.0, "original": 1.0 / over["chosen"]}.get(best) or statistics.median(ratios("chosen", best))
        programs.take_up(programs.choice())
    choices = ", ".join(str(plan.solver) for plan in programs.plans if plan is not None)
    return {
        "choice": choices if is_compiled else "original",
        "best": best,
        "regret": max(0.0, over_best - 1.0),
        "over_original": over["chosen"],
        "original_over_itself": over["original"],
        "seconds": medians,
        "excluded": excluded,
        "predicted": predicted if is_compiled else None,
        "measured": measured,
    }


def uncertainty(values: Sequence[float]) -> float:
    """How far the median may be off, as a part of it: of order statistics, whatever the distribution (one standard error)."""
    ranked, middle = sorted(values), statistics.median(values)
    off = math.isqrt(len(ranked)) // 2 + 1
    below, above = ranked[max(0, len(ranked) // 2 - off)], ranked[min(len(ranked) - 1, len(ranked) // 2 + off)]
    return (above - below) / 2 / middle


def predictions(
    chosen: Callable[..., Tensor], call: Callable[[], Tensor], device: str, budget: float
) -> tuple[float | None, float]:
    """What the cost model predicts after some calls, in seconds, and what as many more take: the middle one of such pairs."""

    def calls() -> list[float]:
        return [once(call, device) for _ in range(RECENT)]

    def pair() -> tuple[float | None, float]:
        calls()
        return chosen.predict(), statistics.median(calls())  # type: ignore[attr-defined]

    found, deadline = [pair()], time.perf_counter() + budget
    while len(found) < PREDICTIONS or (len(found) < MANY and time.perf_counter() < deadline):
        found.append(pair())
    return sorted(found, key=lambda pair: (pair[0] or 0.0) / pair[1])[len(found) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only cases whose name contains this; merged into the file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test the benchmark itself")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of a case's rounds, and of each kind of pairs")
    parser.add_argument("--out", type=Path, help="the JSON file")
    options = parser.parse_args()
    wanted = [case for case in cases(options.small) if options.only in case.name]
    if not wanted:
        sys.exit(f"no case contains {options.only!r}; there are: " + "; ".join(case.name for case in cases(options.small)))
    device = options.device
    torch.set_default_device(None if device == "cpu" else device)  # it puts a Python call before each of torch's functions
    report: dict = {"machine": machine(device), "cases": {}}
    suffix = f"{'' if device == 'cpu' else f'-{device}'}{'-small' if options.small else ''}"
    out = options.out or RESULTS / f"regret{suffix}.json"
    if options.only and out.exists():
        report["cases"] = json.loads(out.read_text())["cases"]
    for case in wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fxsolve.FallbackWarning)
            least = (0.2, FEW) if options.small else (options.budget, PAIRS)
            result = report["cases"][case.name] = measure(case, device, *least)
        print(
            f"{case.name}: {result['choice']}, best {result['best']}, regret {100 * result['regret']:.0f} %, "
            f"{result['over_original']:.2f}x over the original (itself: {result['original_over_itself']:.2f}x), "
            + "predicted / measured "
            + (f"{result['predicted'] / result['measured']:.2f}" if result["predicted"] else "-"),
            flush=True,
        )
        report["summary"] = summary(list(report["cases"].values()))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    found = report["summary"]
    middle, worst = 100 * found["median"], 100 * found["worst"]
    print(f"{len(report['cases'])} cases: regret {middle:.0f} % in median, {worst:.0f} % at worst")
    print(f"at least {found['least_over_original']:.2f}x over the original")
    print(f"written: {out}")


def summary(results: list[dict]) -> dict[str, float]:
    regrets = [result["regret"] for result in results]
    slowest = min(result["over_original"] for result in results)
    return {"median": statistics.median(regrets), "worst": max(regrets), "least_over_original": slowest}


if __name__ == "__main__":
    main()
