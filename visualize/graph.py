"""The picture of a compiled program: its dataflow graph, one cluster for each equation block.

A block's T equations are folded into one step: its inputs come in from outside, and what step t hands on to step t+1 is
a dashed edge from the step's result back to the state. Colours say when a call runs: once, in the sweeps, or for all T
at once before or after them. Tooltips show the user's source lines.
"""

from __future__ import annotations

import html
import linecache
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graphviz
from torch import fx

from fxsolve import prims
from fxsolve.chain import ChainRunner
from fxsolve.codegen import Executable
from fxsolve.errors import FxsolveError
from fxsolve.ir import CARRY, CONST, INDEX, STACKED, is_getitem, placeholders, results
from fxsolve.passes.graphs import depending_on, needed_for
from fxsolve.plan import Runner
from fxsolve.solvers import GaussSeidel

FORMATS = (".svg", ".png", ".pdf")
TEXT = (".dot", ".gv")
INSTALL = (
    "drawing needs graphviz' program `dot`, which was not found; install it with `apt install graphviz` (Debian, Ubuntu), "
    "`brew install graphviz` (macOS) or `conda install graphviz`"
)
FONT, INK, BLOCK, CARRIED = "Helvetica", "#5b6670", "#f6f8fa", "#1f6fd6"

Ends = Sequence["str | None"]  # for each value the dot node that makes it; None: a number, which is not drawn


@dataclass(frozen=True)
class Role:
    """When a node runs: what the legend says, and how it looks."""

    fill: str
    meaning: str
    shape: str = "box"


ROLES = {
    "leaf": Role("#e9edf0", "comes in: arguments, parameters, constants", "note"),
    "once": Role("#ffffff", "once, outside the blocks"),
    "noise": Role("#fff0b8", "random draws of all steps, made before the block"),
    "early": Role("#ffdcc7", "for all steps at once, before the sweeps"),
    "state": Role("#bfdcff", "state: what a step hands on, or the buffer it writes a slot of", "ellipse"),
    "swept": Role("#cdeed6", "in every sweep"),
    "late": Role("#e5d5f5", "for all steps at once, after the sweeps"),
    "in order": Role("#dfe3e6", "step after step, in order"),
    "result": Role("#e9edf0", "results", "note"),
}


def draw(executable: Executable, path: str | os.PathLike[str]) -> Path:
    """Writes the picture of a program as .svg, .png, .pdf or .dot; returns the path.

    Raises FxsolveError for another suffix, and where `dot` is missing or fails; the .dot text is then written beside.
    """
    path = Path(path)
    if path.suffix.lower() in TEXT:
        path.write_text(dot_text(executable))
    elif path.suffix.lower() not in FORMATS:
        raise FxsolveError(f"cannot draw {path.name}: the name must end in {', '.join((*FORMATS, *TEXT))}")
    else:
        try:
            drawn = svg(executable).encode() if path.suffix.lower() == ".svg" else piped(executable, path.suffix[1:].lower())
        except FxsolveError as error:
            beside = path.with_suffix(".dot")
            beside.write_text(dot_text(executable))
            raise FxsolveError(f"{error}. The graph was written as text to {beside}") from error
        path.write_bytes(drawn)
    return path


def dot_text(executable: Executable) -> str:
    """The picture in graphviz' language."""
    return Drawing(executable).digraph.source


def svg(executable: Executable) -> str:
    """The picture as an SVG element, with tooltips that every browser shows."""
    text = piped(executable, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"(?m)^<title>.*</title>\n", "", text)  # dot's own names
    return re.sub(r'<a xlink:title="([^"]*)">', r"<g><title>\1</title>", text).replace("</a>", "</g>")


def piped(executable: Executable, form: str) -> bytes:
    try:
        return Drawing(executable).digraph.pipe(format=form)
    except graphviz.ExecutableNotFound as error:
        raise FxsolveError(INSTALL) from error
    except graphviz.CalledProcessError as error:
        raise FxsolveError(f"graphviz' program `dot` failed: {error}") from error


class Drawing:
    """Builds the dot graph of one executable."""

    def __init__(self, executable: Executable) -> None:
        self.executable = executable
        self.used: set[str] = set()
        self.count = 0
        self.digraph = graphviz.Digraph("program")
        self.digraph.attr(rankdir="TB", nodesep="0.2", ranksep="0.35", fontname=FONT, fontsize="11", bgcolor="white")
        self.digraph.attr("node", fontname=FONT, fontsize="10", style="filled", margin="0.09,0.05", height="0.3", width="0.3")
        self.digraph.attr("edge", fontname=FONT, fontsize="9", arrowsize="0.6", color=INK)
        self.program()
        self.digraph.attr(label=self.legend(), labelloc="b")

    # -- the program ------------------------------------------------------------------------------

    def program(self) -> None:
        program = self.executable.program
        ends: dict[fx.Node, Any] = {}
        leaves = iter(program.leaves)
        for node in program.graph.nodes:
            if node.op == "placeholder":
                leaf = next(leaves)
                if node.users:
                    ends[node] = self.node(self.digraph, "leaf", [leaf.name, typed(node)], leaf.kind)
            elif node.op == "call_module":
                groups = [[ends[n] for n in group] for group in node.args]
                runner = self.executable.runners[node.target]
                ends[node] = self.layers(runner) if isinstance(runner, ChainRunner) else self.block(runner, *groups)
            elif node.op == "call_function":
                role = "noise" if node.target in (prims.draw, prims.draws) else "once"
                self.call(self.digraph, node, role, ends)
        self.results([ends[n] for n in results(program.graph)])

    def results(self, ends: Ends) -> None:
        """One node for each result and each mutated leaf, one for all values that are guarded."""
        program = self.executable.program
        names = [f"result {i}" if len(program.outputs) > 1 else "result" for i in range(len(program.outputs))]
        names += [f"{program.leaves[i].name}, written in place" for i in program.mutated]
        for name, end in zip(names, ends, strict=False):
            self.edge(end, self.node(self.digraph, "result", [name], ""))
        guarded = ends[len(names) :]
        if guarded:
            check = self.node(self.digraph, "result", [f"{len(guarded)} checks of values that Python branched on"], "")
            for end in dict.fromkeys(guarded):
                self.edge(end, check)

    # -- one block --------------------------------------------------------------------------------

    def cluster(self, runner: Runner) -> tuple[graphviz.Digraph, str]:
        """A block's frame, and the node in it that says what it is (a node, so that edges go round it)."""
        cluster = graphviz.Digraph(f"cluster_{runner.block.name}")
        cluster.attr(label="", style="rounded,filled", fillcolor=BLOCK, color=INK, margin="12")
        tip = graphviz.escape(tooltip(runner.block.source))
        cluster.attr(tooltip=tip)
        label = graphviz.escape("\n".join(caption(runner)) + "\n").replace("\n", "\\l")
        head = f"head_{runner.block.name}"
        cluster.node(head, label, shape="plaintext", fillcolor=BLOCK, fontsize="11", tooltip=tip)
        return cluster, head

    def layers(self, runner: ChainRunner) -> list[str | None]:
        """A chain's cluster: one node for each layer, fed by the layers whose states it reads."""
        cluster, _ = self.cluster(runner)
        role = "in order" if runner.plan is None or runner.plan.in_order else "swept"
        drawn: list[str | None] = []
        for layer, state in zip(runner.layers, results(runner.block.layers), strict=True):
            ends = [drawn[n] for n in layer.states]
            drawn.append(self.node(cluster, role, [f"s{len(drawn)}: {op_label(state)}", typed(state)], tooltip(layer.source)))
            for end in ends:
                self.edge(end, str(drawn[-1]))
        self.digraph.subgraph(cluster)
        return drawn

    def block(self, runner: Runner, initial: Ends, stacked: Ends, consts: Ends) -> list[str | None]:
        """A loop's cluster; returns the ends of what the block returns."""
        step = runner.block.body
        roles = roles_of(runner)
        ends: dict[fx.Node, Any] = dict.fromkeys(placeholders(step, INDEX))
        ends |= zip(placeholders(step, CONST), consts, strict=True)
        cluster, head = self.cluster(runner)
        for node in step.nodes:
            if node.op == "placeholder" and node.name.startswith((CARRY, STACKED)):
                state = node.name.startswith(CARRY)
                what = f"state {node.name}" if state else f"row t of {node.name}"
                ends[node] = self.node(cluster, "state" if state else "leaf", [what, typed(node)], "")
            elif node.op == "call_function":
                self.call(cluster, node, roles[node], ends)
        self.digraph.subgraph(cluster)
        carries = placeholders(step, CARRY)
        for node, end in zip([*carries, *placeholders(step, STACKED)], [*initial, *stacked], strict=True):
            self.edge(end, ends[node])
        after = [ends[n] for n in results(step)]
        for node, end in zip(carries, after, strict=False):
            self.edge(head, ends[node], style="invis")
            self.edge(end, ends[node], style="dashed", constraint="false", color=CARRIED, tooltip="carried to the next step")
        return after

    # -- nodes and edges --------------------------------------------------------------------------

    def call(self, graph: graphviz.Digraph, node: fx.Node, role: str, ends: dict[fx.Node, Any]) -> None:
        """One call; taking a part of a call's results is no node of its own."""
        if is_getitem(node):
            whole, part = node.args
            end = ends[whole]  # type: ignore[index]
            ends[node] = end[int(str(part))] if isinstance(end, list) else end
            return
        ends[node] = name = self.node(graph, role, [op_label(node), typed(node)], tooltip(node.meta.get("source") or ""))
        for end in dict.fromkeys(ends[n] for n in node.all_input_nodes):
            self.edge(end, name)

    def node(self, graph: graphviz.Digraph, role: str, lines: Iterable[str], tip: str) -> str:
        self.used.add(role)
        self.count += 1
        name = f"n{self.count}"
        look = ROLES[role]
        label = graphviz.escape("\n".join(line for line in lines if line))
        tip = graphviz.escape(tip or ROLES[role].meaning)
        graph.node(name, label, shape=look.shape, fillcolor=look.fill, color=INK, tooltip=tip)
        return name

    def edge(self, tail: str | None, head: str, **look: str) -> None:
        if tail is not None:
            self.digraph.edge(tail, head, **look)

    def legend(self) -> str:
        """What the colours that occur mean, as an HTML-like label."""
        rows = "".join(
            f'<TR><TD BGCOLOR="{role.fill}" BORDER="1" COLOR="{INK}" WIDTH="26"></TD>'
            f'<TD ALIGN="LEFT">{html.escape(role.meaning)}</TD></TR>'
            for name, role in ROLES.items()
            if name in self.used and name not in ("leaf", "result")
        )
        if "state" in self.used:
            rows += (
                f'<TR><TD><FONT COLOR="{CARRIED}">- - &gt;</FONT></TD>'
                '<TD ALIGN="LEFT">carried from each step to the next</TD></TR>'
            )
        return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="3">{rows}</TABLE>>'


def roles_of(runner: Runner) -> dict[fx.Node, str]:
    """When each call of a block's step runs under the block's plan."""
    step, plan = runner.block.body, runner.plan
    nodes = [n for n in step.nodes if n.op == "call_function"]
    if plan is None or plan.in_order or plan.kind == "Repeat":
        return dict.fromkeys(nodes, "in order")
    if plan.kind == "FixedPoint":
        return {n: "state" if n.target is prims.write else "swept" for n in nodes}
    carries = placeholders(step, CARRY)
    stateful = depending_on(step, carries)
    core = needed_for(results(step)[: len(carries)], lambda n: n in stateful)
    walked = "in order" if isinstance(plan.solver, GaussSeidel) else "swept"
    return {n: walked if n in core else "late" if n in stateful else "early" for n in nodes}


def caption(runner: Runner) -> list[str]:
    """The label of a block's cluster."""
    block, plan, solution = runner.block, runner.plan, runner.solution
    drawn = "one a layer" if isinstance(runner, ChainRunner) else "one step drawn"
    lines = [f"{block.name}: {plan.kind if plan else block.kind}, {block.length} equations, {drawn}"]
    lines.append(f"solver: {plan.solver}" if plan else "not decided yet")
    if solution is not None:
        lines.append(f"last run: {solution.sweeps} sweeps, {solution.steps} sequential steps")
        lines.append(solution.certificate)
    lines.append(f"{Path(block.source).name}" if block.source else "")
    return [line for line in lines if line]


def op_label(node: fx.Node) -> str:
    """A call's name, and that it depends on the number of its step."""
    if node.target is prims.draws:
        count, specs = node.args
        kinds = ", ".join(dict.fromkeys(str(spec[0]) for spec in specs))  # type: ignore[union-attr, index]
        return f"{count} draws: {kinds}"
    if node.target is prims.write:
        return "write slot t"
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0].lstrip("_")
    indexed = any(n.op == "placeholder" and n.name.startswith(INDEX) for n in node.all_input_nodes)
    return f"{name} at t" if indexed else name


def typed(node: fx.Node) -> str:
    """The type of a value; of several results, the first and how many more there are."""
    kind = node.meta.get("type")
    if not isinstance(kind, tuple):
        return str(kind) if kind is not None else ""
    return f"{len(kind)} x {kind[0]}" if len(set(kind)) == 1 and len(kind) > 1 else ", ".join(map(str, kind[:2]))


def tooltip(source: str) -> str:
    """The user's `file:line` and what stands there."""
    file, _, line = source.rpartition(":")
    text = linecache.getline(file, int(line)).strip() if line.isdigit() else ""
    return f"{source}\n{text}" if text else source
