"""Orders of sweeping side by side, as in Song et al. 2021, figures 2 to 4: the error against parallel steps and time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fxsolve
from fxsolve.errors import FxsolveError
from fxsolve.solution import BlockSolution
from fxsolve.solvers import GaussSeidel, Solver
from fxsolve.visualize import figure as draw
from fxsolve.visualize.record import BlockRecord, Record, record

POINTS = 400  # of a Gauss-Seidel curve


@dataclass(frozen=True)
class Curve:
    """How one solver went on: steps that had to follow one another, seconds, and the error then. `note`: what is special."""

    solver: str
    steps: Sequence[int]
    seconds: Sequence[float]
    error: Sequence[float]
    note: str = ""


def curves(
    fn: Callable[..., Any], args: Sequence[Any], solvers: Sequence[Solver] | None = None, **options: Any
) -> tuple[list[Curve], str]:
    """The figures of `compare`, and what its errors are."""
    ordered = again(fn, GaussSeidel(), args, options)
    if not ordered.solutions:
        raise FxsolveError("there is nothing to compare: no block was found in the program")
    solution = max(ordered.solutions.values(), key=lambda s: s.equations)
    chosen = usual(solution.equations) if solvers is None else solvers
    known, found, walks, refused = None, [], [], []
    for solver in chosen:
        if solver == GaussSeidel():
            walks.append(solution)
            continue
        try:
            seen = again(fn, solver, args, options)
            known = seen.block(solution.name)
        except FxsolveError as error:
            refused.append(f"{solver}: {error}")
            continue
        if isinstance(solver, GaussSeidel):
            walks.append(seen.solutions[solution.name])
        else:
            found.append(swept(known, seen.solutions[solution.name]))
    if known is None:
        raise FxsolveError(f"none of these solvers sweeps {solution.name}: {'; '.join(refused) or 'no other is given'}")
    return [in_order(known, walk) for walk in walks] + found, told(known)


def usual(length: int) -> list[Solver]:
    """Solvers that show the orders of sweeping."""
    root = max(2, round(math.sqrt(length)))
    return [GaussSeidel(), fxsolve.Jacobi(), fxsolve.JacobiGS(root), fxsolve.GSJacobi(max(2, length // 8))]


def again(fn: Callable[..., Any], solver: Solver, args: Sequence[Any], options: dict[str, Any]) -> Record:
    """The second of two runs under a solver: the first one warms up."""
    compiled = fxsolve.compile(fn, solver=solver, **options)
    record(compiled, *args)
    return record(compiled, *args)


def told(found: BlockRecord) -> str:
    if found.discrete:
        return "share of values that are not final"
    if found.relative:
        return "distance to the solution, relative to each layer"
    return "distance to the solution, largest component"


def swept(found: BlockRecord, solution: BlockSolution) -> Curve:
    """A solver's curve: the error of the state at first and after each sweep."""
    distances = found.distances
    error = distances.mean((1, 2)) if found.discrete else distances.amax((1, 2))
    steps = [0, *(each.steps for each in found.iterates)]
    seconds = [0.0, *(each.seconds - found.inputs.seconds for each in found.iterates)]
    note = "not certified" if solution.fallback else ""
    return Curve(solution.solver, steps, seconds, error.tolist(), note)


def in_order(known: BlockRecord, solution: BlockSolution) -> Curve:
    """Gauss-Seidel's curve, known from any solution: after t steps t equations are as at last, all others as at first."""
    guess = known.distances[0].amax(1)
    left = guess.flip(0).cumsum(0).flip(0) / len(guess) if known.discrete else guess.flip(0).cummax(0).values.flip(0)
    left = torch.cat([left, left.new_zeros(1)]).tolist()
    steps = sorted({round(k * len(guess) / POINTS) for k in range(POINTS + 1)})
    seconds = [solution.seconds * k / len(guess) for k in steps]
    return Curve(solution.solver, steps, seconds, [left[k] for k in steps])


def compare(
    fn: Callable[..., Any],
    args: Sequence[Any],
    path: str | os.PathLike[str],
    solvers: Sequence[Solver] | None = None,
    **options: Any,
) -> Path:
    """Draws how quickly each solver comes to the solution of the block with the most equations (Song et al. 2021, fig. 2-4).

    Left: the error against the steps that have to follow one another, right: against seconds, as measured in one run on
    this device. solvers: GaussSeidel, Jacobi, JacobiGS and GSJacobi of usual lengths if None; those that do not apply are
    left out. Where sweeps end without a certificate, and the block is completed in order, the legend says so. (The error of
    a recurrence may rise once: its certificate moves the boundaries aside, to see what becomes of that.)
    options go to `fxsolve.compile`. All runs see the same random numbers.

    Writes .svg, .png or .pdf and returns the path. Raises FxsolveError where no block can be swept.
    """
    found, what = curves(fn, args, solvers, **options)
    positive = [e for curve in found for e in curve.error if 0 < e < math.inf]
    floor = min(positive, default=1.0) / 10
    high = max(positive, default=1.0)
    with draw.drawn(path, 4.2, 1, 2, sharey=True) as (picture, ((left, right),)):
        for curve, colour in zip(found, draw.COLOURS, strict=False):
            error = [max(min(e, high), floor) for e in curve.error]
            marker = "." if len(error) <= 60 else ""
            label = f"{curve.solver}: {curve.steps[-1]} steps" + (f", {curve.note}" if curve.note else "")
            left.plot(curve.steps, error, marker=marker, color=colour, label=label)
            right.plot([1e3 * s for s in curve.seconds], error, marker=marker, color=colour)
            for axis, end in ((left, curve.steps[-1]), (right, 1e3 * curve.seconds[-1])):
                if curve.error[-1] == 0:
                    axis.plot(end, floor, "o", color=colour)
        most = max(curve.steps[-1] for curve in found)
        left.set(xlabel="steps that follow one another", ylabel=what, xscale="symlog" if most > 50 else "linear", xlim=0)
        right.set(xlabel="milliseconds on this device", xlim=0)
        left.set_yscale("log")
        ticks = [t for t in left.get_yticks() if floor * 3 < t < high * 10]
        left.set_yticks([floor, *ticks], ["0", *[f"$10^{{{round(math.log10(t))}}}$" for t in ticks]])
        left.set_ylim(floor / 2, high * 3)
        left.minorticks_off()
        for axis in (left, right):
            axis.axhline(floor, color=draw.EXACT, zorder=0)
        picture.suptitle(f"{fn_name(fn)}: how each order of sweeping comes to the solution", fontsize=10)
        picture.legend(loc="outside lower center", ncols=2, frameon=False)
    return Path(path)


def fn_name(fn: Any) -> str:
    return getattr(fn, "__qualname__", type(fn).__qualname__)
