"""The picture of a compiled program: its dataflow graph, one cluster for each equation block.

A block's T equations are folded into one step: its inputs come in from outside, and what step t hands on to step t+1 is
a dashed edge from the step's result back to the state. `unfold=k` draws k equations one after another instead, each a
cluster of its own. Colours say when a call runs: once, in the sweeps, or for all T at once before or after them. Tooltips
show the user's source lines. What is too much to read is folded (fold.py), and the legend says so.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import graphviz

from fxsolve.codegen import Executable
from fxsolve.errors import FxsolveError
from fxsolve.visualize.drawing import Drawing
from fxsolve.visualize.roles import ROLES

FORMATS = (".svg", ".png", ".pdf")
TEXT = (".dot", ".gv")
INSTALL = (
    "drawing needs graphviz' program `dot`, which was not found; install it with `apt install graphviz` (Debian, Ubuntu), "
    "`brew install graphviz` (macOS) or `conda install graphviz`"
)


def draw(executable: Executable, path: str | os.PathLike[str], *, unfold: int = 0) -> Path:
    """Writes the picture of a program as .svg, .png, .pdf or .dot; returns the path.

    unfold: so many equations of each block are drawn one after another, and an ellipsis for the rest; 0 folds all into one.

    Raises FxsolveError for another suffix, and where `dot` is missing or fails; the .dot text is then written beside.
    Raises ValueError for an `unfold` that is no count.
    """
    path, form = Path(path), Path(path).suffix.lower()
    if form not in (*FORMATS, *TEXT):
        raise FxsolveError(f"cannot draw {path.name}: the name must end in {', '.join((*FORMATS, *TEXT))}")
    digraph = graph_of(executable, unfold)
    if form in TEXT:
        path.write_text(digraph.source, encoding="utf-8")
        return path
    try:
        drawn = embedded(digraph).encode() if form == ".svg" else piped(digraph, form[1:])
    except FxsolveError as error:
        beside = path.with_suffix(".dot")
        beside.write_text(digraph.source, encoding="utf-8")
        raise FxsolveError(f"{error}. The graph was written as text to {beside}") from error
    path.write_bytes(drawn)
    return path


def dot_text(executable: Executable, *, unfold: int = 0) -> str:
    """The picture in graphviz' language."""
    return graph_of(executable, unfold).source


def svg(executable: Executable, *, unfold: int = 0) -> str:
    """The picture as an SVG element, with tooltips that every browser shows.

    Its groups have classes: `node` and when it runs (`leaf`, `once`, `noise`, `early`, `state`, `swept`, `late`, `in-order`,
    `result`), `edge` and `carried`, `block`, `equation`, `caption`, `ellipsis`; the legend's boxes `swatch` and the like.
    """
    return embedded(graph_of(executable, unfold))


def graph_of(executable: Executable, unfold: int) -> graphviz.Digraph:
    if not isinstance(unfold, int) or isinstance(unfold, bool) or unfold < 0:
        raise ValueError(f"unfold is a number of equations, 0 for none, not {unfold!r}")
    return Drawing(executable.program, executable.runners, unfold).digraph


def embedded(digraph: graphviz.Digraph) -> str:
    """A dot graph as an SVG element for a page of its own or of others."""
    text = piped(digraph, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"(?m)^<title>.*</title>\n", "", text)  # dot's own names
    for name, role in ROLES.items():  # the legend's boxes: dot cannot give them classes
        box = f'fill="{role.fill}" stroke="transparent"'
        text = text.replace(f"<polygon {box}", f'<polygon class="swatch {name}" {box}')
    return re.sub(r'<a xlink:title="([^"]*)">', r"<g><title>\1</title>", text).replace("</a>", "</g>")


def piped(digraph: graphviz.Digraph, form: str) -> bytes:
    try:
        return digraph.pipe(format=form)
    except graphviz.ExecutableNotFound as error:
        raise FxsolveError(INSTALL) from error
    except graphviz.CalledProcessError as error:
        raise FxsolveError(f"graphviz' program `dot` failed: {error}") from error
