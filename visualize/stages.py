"""What each pass of the pipeline made of a program, caught at the pipeline's own hook (fxsolve.clock).

A stage is summed up the moment it is made: counts of calls by op and by place, a picture from the first program on, with what
is new framed. The programs themselves are not kept.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import fx

from fxsolve.api import CompiledFunction, CompiledModule, restored
from fxsolve.capture import Recording
from fxsolve.clock import watching
from fxsolve.codegen import Executable
from fxsolve.errors import FxsolveError
from fxsolve.ir import Program, calls, is_getitem
from fxsolve.passes.growth import Padded
from fxsolve.passes.roll import Loop
from fxsolve.plan import Runner
from fxsolve.tape import Tape
from fxsolve.visualize.drawing import Drawing
from fxsolve.visualize.graph import embedded
from fxsolve.visualize.labels import many, op_label, op_name, typed
from fxsolve.visualize.stage import Stage
from fxsolve.visualize.stages_page import page

OUTSIDE, TAPE = "outside", "tape"  # places of calls, beside the names of blocks


@dataclass
class Stages:
    """The stages of the first calls that were watched, in order."""

    stages: list[Stage] = field(default_factory=list)
    missing: str = ""  # why there are no pictures
    keys: Counter[tuple[str, ...]] = field(default_factory=Counter)  # of the program before
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # of the stage before

    def write(self, path: str | os.PathLike[str], title: str = "fxsolve: passes", note: str = "") -> Path:
        """Writes the stages as one self-contained HTML page; returns the path."""
        Path(path).write_text(page(self.stages, title, "\n".join(filter(None, (note, self.missing)))), encoding="utf-8")
        return Path(path)

    def watch(self, name: str, seconds: float, made: Any) -> None:
        """Sums up one stage: what `fxsolve.clock.watching` calls."""
        if isinstance(made, Recording):
            self.keys, self.counts = Counter(), Counter()
        counts, new, picture = self.counts, 0, ""
        if isinstance(made, (Recording, Tape, Padded)):
            counts = tape_counts(made if isinstance(made, Tape) else made.tape)
        elif isinstance(made, (Program, Executable)):
            program = made if isinstance(made, Program) else made.program
            first = not self.keys
            counts, changed, gone = self.compared(program)
            new = len(changed)
            if first or changed or gone or isinstance(made, Executable):
                picture = self.drawn(program, {} if isinstance(made, Program) else made.runners, changed)
        changes = {key: counts[key] - self.counts[key] for key in {**self.counts, **counts}}
        changes = {key: more for key, more in changes.items() if more and self.counts}
        self.stages.append(Stage(name, seconds, said(made, counts), dict(counts), changes, new, picture))
        self.counts = counts

    def compared(self, program: Program) -> tuple[Counter[tuple[str, str]], set[fx.Node], bool]:
        """(calls by place and op, those that were not there before, whether some are gone). Calls are the same if place, op,
        type and source line are.
        """
        counts: Counter[tuple[str, str]] = Counter()
        keys: Counter[tuple[str, ...]] = Counter()
        changed: set[fx.Node] = set()
        for place, node in placed(program):
            key = (place, op_label(node, "t"), typed(node), node.meta.get("source") or "")
            counts[place, op_name(node)] += 1
            keys[key] += 1
            if self.keys and keys[key] > self.keys[key]:
                changed.add(node)
        gone = bool(self.keys - keys)
        self.keys = keys
        return counts, changed, gone

    def drawn(self, program: Program, runners: Mapping[str, Runner], changed: set[fx.Node]) -> str:
        try:
            return embedded(Drawing(program, runners, changed=changed).digraph)
        except FxsolveError as error:  # without `dot` the counts are still worth reading
            self.missing = str(error)
            return ""


@contextlib.contextmanager
def watch_passes() -> Iterator[Stages]:
    """Sums up every pass of the first calls in the body.

        with fxsolve.visualize.watch_passes() as seen:
            fast(x)
        seen.write("passes.html")
    """
    stages = Stages()
    with watching(stages.watch):
        yield stages


def passes(compiled: CompiledModule | CompiledFunction, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Path:
    """Writes an HTML page on how a callable is compiled for such arguments: the program after every pass, with what changed
    framed, and the milliseconds that each pass took. Returns the path.

    The callable is compiled anew, as at a first call: the original runs once, and the trials with it.
    """
    if not isinstance(compiled, (CompiledModule, CompiledFunction)):
        raise TypeError(f"passes takes what fxsolve.compile returned, not {type(compiled).__name__}")
    again = restored(compiled._compiler.fn, compiled._compiler.options)
    with watch_passes() as seen:
        again(*args, **kwargs)
    name = getattr(compiled._compiler.fn, "__qualname__", type(compiled._compiler.fn).__qualname__)
    return seen.write(path, f"fxsolve: passes over {name}", again.explain())


def placed(program: Program) -> Iterator[tuple[str, fx.Node]]:
    """All calls with the place that they are in."""
    graphs = {OUTSIDE: program.graph} | {name: block.body for name, block in program.blocks.items()}  # type: ignore[union-attr]
    for place, graph in graphs.items():
        yield from ((place, node) for node in calls(graph) if not is_getitem(node))


def tape_counts(tape: Tape) -> Counter[tuple[str, str]]:
    """The rows of a tape by op."""
    counts: Counter[tuple[str, str]] = Counter()
    for number, rows in Counter(tape.symbol).items():
        counts[TAPE, tape.symbols.items[number].name.split(".")[0].lstrip("_")] += rows
    return counts


def said(made: Any, counts: Counter[tuple[str, str]]) -> str:
    """What was made, in a sentence."""
    if isinstance(made, Recording) and made.refusal is not None:
        return f"{len(made.tape)} rows, and why it is not compiled: {made.refusal}"
    if isinstance(made, (Recording, Tape)):
        tape = made if isinstance(made, Tape) else made.tape
        return f"{len(tape)} rows, {len(set(tape.symbol))} distinct calls, {len(tape.leaves)} leaves"
    if isinstance(made, Padded):
        return f"the sequence that grows at {made.source} in a buffer: {len(made.tape)} rows"
    if isinstance(made, (Program, Executable)):
        where = Counter({OUTSIDE: 0})
        for (place, _), number in counts.items():
            where[place] += number
        if isinstance(made, Executable):
            plans = [f"{name}: {r.plan.kind}, {r.plan.solver}" for name, r in made.runners.items() if r.plan is not None]
            return "; ".join(some(plans))
        blocks = [f"{b.name}: {b.kind} of {b.length} equations, {many(where[b.name], 'call')}" for b in made.blocks.values()]
        return "; ".join([f"{many(where[OUTSIDE], 'call')} outside", *some(blocks)])
    if isinstance(made, list):
        loops = [f"{x.count} steps of {x.period} rows" for x in made if isinstance(x, Loop)]
        return "; ".join(some(loops)) or "nothing repeats"
    return "no sequence grows" if made is None else str(made)


def some(parts: Sequence[str], most: int = 6) -> list[str]:
    return [*parts[:most], f"and {len(parts) - most} more"] if len(parts) > most else list(parts)
