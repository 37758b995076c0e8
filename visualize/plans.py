"""The schedule in a report: for each block what was chosen, why, and what the other candidates took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from fxsolve.memory import size_text
from fxsolve.plan import Plan, Runner
from fxsolve.schedule import BlockRunner
from fxsolve.solution import BlockSolution
from fxsolve.training import BlockGradient
from fxsolve.visualize.amounts import count_of
from fxsolve.visualize.markup import Content, Markup, element, facts, joined, table, time

RESIDUAL = (
    "The residual is the largest violation of an equation, in units of its own rounding (0: every bit holds). Steps are those "
    "that had to follow one another. Predicted: what the cost model makes of the times that the first call measured."
)


def schedule(runners: Iterable[Runner]) -> Markup:
    """A line for each block, then each block's reasons and candidates."""
    named = list(with_backward(runners))
    if not named:
        return element("p", "No equation blocks were found: nothing in this program repeats.")
    heads = ("Block", "Kind", "#Equations", "Solver", "#Sweeps", "#Steps", "#Residual", "#Predicted", "#Measured")
    lines = table("blocks and their schedules", heads, [line(name, runner) for name, runner in named])
    return joined([lines, element("p", RESIDUAL, "soft"), *[block(name, runner) for name, runner in named]])


def with_backward(runners: Iterable[Runner]) -> Iterator[tuple[str, Runner]]:
    """The blocks by name, each followed by the adjoint that its backward pass solves."""
    for runner in runners:
        yield runner.block.name, runner
        gradient = runner.gradient if isinstance(runner, BlockRunner) else None
        if isinstance(gradient, BlockGradient):
            yield f"{runner.block.name}, backward", gradient.runner


def line(name: str, runner: Runner) -> list[Content]:
    plan, s = runner.plan, runner.solution
    kind = plan.kind if plan else runner.block.kind
    first: list[Content] = [name, kind, str(runner.block.length), str(plan.solver) if plan else "not decided yet"]
    if s is None:
        return [*first, *["-"] * 3, time(runner.predicted(1)), None]
    return [*first, str(s.sweeps), str(s.steps), f"{s.residual:.3g}", time(runner.predicted(1)), time(s.seconds)]


def block(name: str, runner: Runner) -> Markup:
    """One block: where it comes from, why its plan is what it is, and all that was tried."""
    plan, source = runner.plan, runner.block.source
    if plan is None:
        return element("h3", f"{name}: not decided yet")
    file, _, number = source.rpartition(":")
    said = [
        ("Source", f"{Path(file).name}, line {number}" if file else None),
        ("Solver", str(plan.solver)),
        ("Why", plan.reason),
        *[told(text) for text in runner.lines()],
        ("Last run", last_run(runner.solution)),
        ("Eager's own calls in order", at_least(runner.least)),
        *[told(text) for text in runner.outlook(1)],
    ]
    parts = [element("h3", f"{name}: {plan.kind} of {count_of(runner.block.length, 'equation')}"), facts(said, "said")]
    return joined([*parts, candidates(name, plan)])


def told(text: str) -> tuple[str, str]:
    """A line of `explain` as name and value."""
    name, _, value = text.strip().partition(": ")
    return name[:1].upper() + name[1:], value


def last_run(s: BlockSolution | None) -> Markup | None:
    if s is None:
        return None
    counts = f"{count_of(s.sweeps, 'sweep')}, {count_of(s.steps, 'sequential step')}, {s.spread}{s.fallback or s.certificate}, "
    return joined([counts, time(s.seconds)])


def at_least(seconds: float | None) -> Markup | None:
    return None if seconds is None else joined(["at least", time(seconds)])


def candidates(name: str, plan: Plan) -> Markup:
    """What was tried for one block; the chosen one stands out."""
    if not plan.candidates:
        return element("p", "No other schedule was timed for this block: the reason above left no choice.", "soft")
    heads = ("Candidate", "#Predicted", "#Measured", "#Sweeps", "#Memory", "Outcome")
    label = chosen_label(plan)
    order = sorted(plan.candidates, key=lambda c: (c.seconds is None, c.seconds or 0.0))
    chosen = next((i for i, c in enumerate(order) if c.seconds is not None and c.solver == label), -1)
    rows: list[list[Content]] = [
        [
            c.solver,
            time(c.expected),
            time(c.seconds),
            None if c.sweeps is None else str(c.sweeps),
            None if c.memory is None else size_text(c.memory),
            f"chosen: {c.note}" if place == chosen else c.note,
        ]
        for place, c in enumerate(order)
    ]
    return table(f"candidates for {name}", heads, rows, chosen)


def chosen_label(plan: Plan) -> str:
    """The plan's solver and threads as the scheduler writes them into its candidates."""
    return f"{plan.solver} on {count_of(plan.threads, 'thread')}" if plan.threads else str(plan.solver)
