"""The first section of a report: what was checked about the last call, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from fxsolve.memory import size_text
from fxsolve.plan import Runner
from fxsolve.solution import BlockSolution, Solution
from fxsolve.visualize.amounts import ratio_text
from fxsolve.visualize.markup import Content, Markup, details, element, facts, html, joined, pane, time

ORIGINAL, COMPILED, LEAST = "original", "compiled", "original, at the least"  # keys of the first call's timings
RUNS_COMPILED = "Choice: calls of this kind run the compiled program."
NOT_CALLED = "The plan is made at the first call: call it once with real inputs, then write the report again."


def summary(
    solution: Solution | None,
    runners: Sequence[Runner],
    choice: str,
    timings: Mapping[str, float],
    memory: Mapping[str, int],
    explanation: str,
) -> Markup:
    """Certificate, figures of the last call and of the first one, and `explain()` as it prints."""
    text = pane("explain()", Markup(f"<pre>{escape(explanation)}</pre>"), "code wrapped")
    parts = [certificate(solution), figures(solution, runners, timings, memory)]
    if choice and (solution is None or choice != solution.fallback):
        parts.append(element("p", RUNS_COMPILED if choice == COMPILED else f"Choice: {choice}."))
    rows = [(name, time(seconds)) for name, seconds in stages(timings).items()]
    if rows:
        parts.append(details("What the first call spent its time on", facts(rows, "stages")))
    return joined([*parts, details("The same as text: explain()", text)])


def certificate(solution: Solution | None) -> Markup:
    """What was checked about the last call's result."""
    if solution is None:
        return panel("Not called yet", ", so nothing is compiled and there is nothing to certify.", NOT_CALLED)
    if solution.fallback is not None or not solution.blocks:
        why = solution.fallback or "no call was solved"
        return panel("The original computed the last result", ", so there is nothing to certify.", why)
    said = [
        Markup(f"<p><strong>{html(text[:1].upper() + text[1:])}</strong> ({html(names_of(blocks))})</p>")
        for text, blocks in ((text, list(group)) for text, group in groupby(solution.blocks, statement))
    ]
    return Markup(f"<div class='certificate'>{joined(said)}</div>")


def panel(title: str, rest: str, why: str) -> Markup:
    return Markup(f"<div class='certificate none'><p><strong>{html(title)}</strong>{html(rest)}</p>{element('p', why)}</div>")


def statement(block: BlockSolution) -> str:
    return block.fallback or block.certificate


def names_of(blocks: Sequence[BlockSolution]) -> str:
    return blocks[0].name if len(blocks) == 1 else f"{blocks[0].name} to {blocks[-1].name}"


def figures(
    solution: Solution | None, runners: Sequence[Runner], timings: Mapping[str, float], memory: Mapping[str, int]
) -> Markup:
    """The last call in numbers, beside the original's time from the first call."""
    if solution is None:
        return Markup("")
    blocks = solution.blocks
    measured, least = timings.get(ORIGINAL), timings.get(LEAST)
    original, compiled = measured or least, timings.get(COMPILED)
    first = solution.seconds >= sum(stages(timings).values()) > 0
    pairs: list[tuple[str, Content]] = [
        ("Blocks", str(len(runners)) if runners else None),
        ("Equations", str(sum(b.equations for b in blocks)) if blocks else None),
        ("Sequential steps", str(sum(b.steps for b in blocks)) if blocks else None),
        ("Sweeps", ", ".join(dict.fromkeys(str(b.sweeps) for b in blocks)) if len(blocks) <= 4 else None),
        ("First call, compiling included" if first else "Last call", time(solution.seconds)),
        ("Original, in the trial" if measured else "Original, at the least", time(original)),
        ("Compiled, in the trial", time(compiled)),
        *[(f"Memory, {name}", size_text(count)) for name, count in memory.items()],
    ]
    if blocks and original:
        ratio = ratio_text(original / (compiled or sum(b.seconds for b in blocks)))
        pairs.append(("Original over compiled", Markup(f"<span class='time'>{ratio}</span>")))
    return facts(pairs)


def stages(timings: Mapping[str, float]) -> dict[str, float]:
    """The stages of the first call."""
    return {name: seconds for name, seconds in timings.items() if name not in (ORIGINAL, COMPILED, LEAST)}
