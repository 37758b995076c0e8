"""Drawings: what is a node, what is folded into one, what unfolding shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import graphviz
import pytest
import torch
from torch import nn

import fxsolve
from examples.densenet.model import DenseNet
from fxsolve.visualize.fold import Item, fold
from fxsolve.visualize.labels import function_at
from fxsolve.visualize.roles import ROLES

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz' dot is not installed")
MOST_SECONDS, MOST_BYTES = 5.0, 1_000_000


class Rnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(4, 8)

    def forward(self, x):
        h, outs = x.new_zeros(x.shape[0], 8), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            outs.append(h)
        return torch.stack(outs, 1)


class Pixels(nn.Module):
    """A causal network over images, as PixelCNNs have it, and its sampling loop."""

    def __init__(self, side: int, layers: int) -> None:
        super().__init__()
        self.side = side
        self.convs = nn.ModuleList(nn.Conv2d(1 if n == 0 else 4, 4, 3, padding=1) for n in range(layers))
        self.out = nn.Conv2d(4, 1, 1)
        with torch.no_grad():
            for n, conv in enumerate(self.convs):
                conv.weight[:, :, 2] = 0
                conv.weight[:, :, 1, 1 if n == 0 else 2 :] = 0

    def forward(self, x):
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.out(x)

    @torch.no_grad()
    def sample(self, count: int):
        x = torch.zeros(count, 1, self.side, self.side)
        for i in range(self.side):
            for j in range(self.side):
                x[:, :, i, j] = torch.bernoulli(torch.sigmoid(self(x)[:, :, i, j]))
        return x


class Steps(nn.Module):
    """A step of many calls: a stack of like layers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def deep(self, h):
        for layer in self.layers:
            h = torch.tanh(layer(h))
            h = h * 0.5
        return h

    def forward(self, x):
        h, outs = x.new_zeros(x.shape[0], 8), []
        for t in range(x.shape[1]):
            h = self.deep(h + x[:, t])
            outs.append(h)
        return torch.stack(outs, 1)


@pytest.fixture(scope="module")
def rnn():
    torch.manual_seed(0)
    compiled = fxsolve.compile(Rnn(), solver=fxsolve.JacobiGS(block=8))
    with torch.no_grad():
        compiled(torch.randn(2, 32, 4))
    return compiled


@pytest.fixture(scope="module")
def sampler():
    torch.manual_seed(0)
    compiled = fxsolve.compile(Pixels(32, 4).sample, solver=fxsolve.Jacobi(), verify="never")
    compiled(1)
    return compiled


@pytest.fixture(scope="module")
def densenet():
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
    compiled = fxsolve.compile(DenseNet(stem, 8, (6, 12, 48, 32), growth=4, classes=10).eval())
    with torch.no_grad():
        compiled(torch.randn(1, 3, 32, 32))
    return compiled


def nodes(text: str) -> dict[str, tuple[str, str]]:
    """Name, label and class of the nodes in a dot text, of those that stand for something."""
    found = re.findall(r'^\s*"?([\w-]+)"? \[label="((?:[^"\\]|\\.)*)" class="(node [^"]*)"', text, re.M)
    return {name: (label.replace("\\n", "\n"), kind.removeprefix("node ")) for name, label, kind in found}


def named(text: str, start: str) -> str:
    """The one node whose label starts so."""
    (name,) = [name for name, (label, _) in nodes(text).items() if label.startswith(start)]
    return name


def edges(text: str) -> set[tuple[str, str, str]]:
    """(tail, head, class) of the edges that are seen."""
    found = re.findall(r'^\s*"?([\w-]+)"? -> "?([\w-]+)"? \[(.*)\]', text, re.M)
    kinds = [(tail, head, re.search(r'class="([^"]*)"', rest)) for tail, head, rest in found]
    return {(tail, head, kind[1]) for tail, head, kind in kinds if kind is not None}


def drawn(compiled, path: Path, unfold: int = 0) -> str:
    return compiled.draw(path / "graph.dot", unfold=unfold).read_text()


def test_core_imports_nothing_for_drawing() -> None:
    heavy = {"fxsolve.visualize", "graphviz", "matplotlib", "rich", "PIL", "sklearn", "pandas"}
    loaded = f"{heavy} & (set(sys.modules) - before)"
    code = f"import gc, sys, torch; before = set(sys.modules); import fxsolve; print({loaded}, gc.isenabled())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set() True\n"


def test_a_block_says_what_it_is(rnn, tmp_path: Path) -> None:
    text, solution = drawn(rnn, tmp_path), rnn.solution.blocks[0]
    assert "subgraph cluster_block0" in text
    kind, solver = "Recurrence, 32 equations, one step drawn", f"solver: {solution.solver}"
    for said in (kind, solver, solution.certificate, "test_draw.py:"):
        assert said in text


def test_every_call_of_a_small_program_is_a_node(rnn, tmp_path: Path) -> None:
    found = nodes(drawn(rnn, tmp_path))
    executable = rnn._compiler.last.executable
    step = executable.runners["block0"].block.step
    inside = [n for n in step.nodes if n.op == "call_function" and "getitem" not in str(n.target)]
    in_block = [kind for name, (_, kind) in found.items() if name.startswith("block0-")]
    assert len(in_block) == len(inside) + 1  # and the state
    assert {kind for _, kind in found.values()} <= set(ROLES)
    assert [label.partition("\n")[0] for label, kind in found.values() if kind == "state"] == ["state s0"]
    assert {"early", "swept"} <= set(in_block)


def test_what_is_carried_goes_back_to_the_state(rnn, tmp_path: Path) -> None:
    text = drawn(rnn, tmp_path)
    state = named(text, "state s0")
    (carried,) = [(tail, head) for tail, head, kind in edges(text) if kind == "edge carried"]
    assert carried[1] == state and nodes(text)[carried[0]][0].startswith("tanh")


def test_slot_buffers_and_noise_are_marked(sampler, tmp_path: Path) -> None:
    text = drawn(sampler, tmp_path)
    draws, row = named(text, "1024 draws: uniform"), named(text, "row t of x0")
    assert nodes(text)[draws][1] == "noise" and (draws, row, "edge") in edges(text)
    for label in ("buffer s0: slot t is written", "write slot t"):
        name = named(text, label)
        assert nodes(text)[name][1] == "state"
        assert re.search(rf'"{name}" \[label="[^"]*"[^\n]*shape=cylinder', text)


def test_unfold_draws_equations_one_after_another(rnn, tmp_path: Path) -> None:
    text, folded = drawn(rnn, tmp_path, 3), drawn(rnn, tmp_path)
    assert re.findall(r"subgraph \"cluster_(block0-t\d+)\"", text) == ["block0-t1", "block0-t2", "block0-t3"]
    each = [sum(name.startswith(f"block0-t{t}-") for name in nodes(text)) for t in (1, 2, 3)]
    assert each == [sum(name.startswith("block0-") for name in nodes(folded))] * 3
    carried = [(tail, head) for tail, head, kind in edges(text) if kind == "edge carried"]
    assert {(tail[:9], head[:9]) for tail, head in carried} == {
        ("block0-t1", "block0-t2"),
        ("block0-t2", "block0-t3"),
        ("block0-t3", "block0-re"),
    }
    assert "29 more equations like these" in text
    outs = {tail for tail, head, _ in edges(text) if nodes(text).get(head, ("", ""))[0].startswith("permute")}
    assert {name[:9] for name in outs} == {"block0-t1", "block0-t2", "block0-t3", "block0-re"}


def test_unfold_of_all_equations_needs_no_ellipsis(rnn, tmp_path: Path) -> None:
    text = drawn(rnn, tmp_path, 100)
    assert len(re.findall(r"subgraph \"cluster_block0-t", text)) == 32 and "more equations" not in text


@pytest.mark.parametrize("unfold", [-1, 1.5, True, "3"])
def test_unfold_is_a_count(unfold, rnn, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unfold is a number of equations"):
        rnn.draw(tmp_path / "graph.dot", unfold=unfold)


def test_a_program_that_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiled = fxsolve.compile(Rnn(), solver=fxsolve.JacobiGS(block=8))
    compiled(torch.randn(2, 16, 4)).sum().backward()
    text = drawn(compiled, tmp_path, 2)
    assert "solver: JacobiGS(block=8" in text and "14 more equations like these" in text
    assert any("weight_hh" in label for label, kind in nodes(text).values() if kind == "leaf")


def test_a_long_step_is_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiled = fxsolve.compile(Steps(20), solver=fxsolve.GaussSeidel())
    with torch.no_grad():
        compiled(torch.randn(2, 16, 8))
    text = drawn(compiled, tmp_path)
    (label,) = [label for label, _ in nodes(text).values() if "20 x" in label]
    assert label.startswith("20 x (Steps.deep)\n60 calls: ")
    assert "folded" in text and "what repeats is one node, with how often" in text
    assert named(text, "40 attributes")
    assert len(nodes(text)) < 20


def test_layers_of_a_chain_are_folded(densenet, tmp_path: Path) -> None:
    text = drawn(densenet, tmp_path)
    layers = [label for name, (label, _) in nodes(text).items() if name.startswith("block0-")]
    assert [label.partition("\n")[0] for label in layers if "layers" in label] == [
        "s1 to s6: 6 layers",
        "s8 to s19: 12 layers",
        "s21 to s68: 48 layers",
        "s70 to s101: 32 layers",
    ]
    assert "each reads those before it" in layers[1] and "2 convolution" in layers[1]
    assert len(layers) == 9 and "Chain, 103 equations" in text
    assert len(nodes(text)) < 20


def test_unfold_of_a_chain(densenet, tmp_path: Path) -> None:
    text = drawn(densenet, tmp_path, 3)
    assert re.findall(r"subgraph \"cluster_(block0-s\d+)\"", text) == ["block0-s0", "block0-s1", "block0-s2"]
    assert "s3 to s102: 100 more layers" in text
    seen = {(tail[:9], head[:9]) for tail, head, _ in edges(text)}
    assert {("block0-s0", "block0-s1"), ("block0-s0", "block0-s2"), ("block0-s1", "block0-s2")} <= seen


@needs_dot
@pytest.mark.parametrize("unfold", [0, 3])
@pytest.mark.parametrize("name", ["sampler", "densenet"])
def test_large_programs_fit_a_page(name: str, unfold: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    compiled = request.getfixturevalue(name)
    start = time.perf_counter()
    path = compiled.draw(tmp_path / "graph.svg", unfold=unfold)
    assert time.perf_counter() - start < MOST_SECONDS
    assert path.stat().st_size < MOST_BYTES
    root = ElementTree.parse(path).getroot()
    width, height = (float(root.attrib[side].removesuffix("pt")) for side in ("width", "height"))
    assert width < 1500 and height < (1700 if unfold == 0 else 2000)
    assert f"{1024 if name == 'sampler' else 103} equations" in path.read_text()


@needs_dot
def test_parts_of_an_svg_have_classes_and_ids(rnn, tmp_path: Path) -> None:
    root = ElementTree.parse(rnn.draw(tmp_path / "graph.svg", unfold=2)).getroot()
    found = {group.get("id"): group.get("class") for group in root.iter("{http://www.w3.org/2000/svg}g") if group.get("class")}
    assert found["block0"] == "cluster block" and found["block0-t1"] == "cluster equation"
    assert found["block0-t1-1"] == "node node state" and found["block0-rest"] == "node ellipsis"
    kinds = {kind.split()[-1] for kind in found.values() if kind.startswith("node node ")}
    assert {"leaf", "once", "early", "state", "swept", "result"} <= kinds <= set(ROLES)
    assert [p.get("class") for p in root.iter("{http://www.w3.org/2000/svg}polygon") if "swatch" in p.get("class", "")]


@needs_dot
@pytest.mark.parametrize("suffix, start", [(".svg", b"<svg"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_formats(suffix: str, start: bytes, rnn, tmp_path: Path) -> None:
    picture = rnn.draw(tmp_path / f"graph{suffix}").read_bytes()
    assert picture.startswith(start)
    if suffix == ".svg":
        assert b"test_draw.py:" in picture  # source lines, in tooltips that every browser shows
        assert b"<title>" in picture and b"xlink:title" not in picture


def test_without_dot_the_text_is_written(rnn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args, **kwargs):
        raise graphviz.ExecutableNotFound(["dot"])

    monkeypatch.setattr(graphviz.Digraph, "pipe", missing)
    with pytest.raises(fxsolve.FxsolveError, match="apt install graphviz.*written as text to .*graph.dot"):
        rnn.draw(tmp_path / "graph.svg")
    assert (tmp_path / "graph.dot").read_text() == drawn(rnn, tmp_path)


def test_other_suffixes_are_errors(rnn, tmp_path: Path) -> None:
    with pytest.raises(fxsolve.FxsolveError, match="must end in"):
        rnn.draw(tmp_path / "graph.bmp")
    assert not list(tmp_path.iterdir())


# -- folding ----------------------------------------------------------------------------------------


def items(text: str, roles: str = "") -> list[Item]:
    """An item for each letter: its line; capital letters are lines of function F, others of function f."""
    roles = roles or "o" * len(text)
    return [Item(n, role, c, "F" if c.isupper() else "f", c, ("op",), "") for n, (c, role) in enumerate(zip(text, roles))]


def folded(text: str, limit: int, roles: str = "") -> list[tuple[str, str, int]]:
    """(lines, rule, times) of each group."""
    groups = fold(items(text, roles), limit)
    assert [item.key for group in groups for item in group.items] == list(range(len(text)))
    return [("".join(item.source for item in g.items), g.rule, g.times) for g in groups]


def test_few_calls_are_not_folded() -> None:
    assert folded("aaab", 4) == [("a", "", 1), ("a", "", 1), ("a", "", 1), ("b", "", 1)]


def test_neighbours_of_one_line() -> None:
    assert folded("aabaa", 3) == [("aa", "line", 1), ("b", "", 1), ("aa", "line", 1)]


def test_what_repeats() -> None:
    assert folded("xababaBy", 5) == [("x", "", 1), ("abab", "repeat", 2), ("a", "", 1), ("B", "", 1), ("y", "", 1)]
    assert folded("abcabcabx", 4)[0] == ("abcabc", "repeat", 2)


def test_repeats_of_repeats() -> None:
    assert folded("xxababcababcy", 3) == [("xx", "line", 1), ("ababcababc", "repeat", 2), ("y", "", 1)]


def test_neighbours_of_one_function() -> None:
    assert folded("abAcd", 3) == [("ab", "function", 1), ("A", "", 1), ("cd", "function", 1)]


def test_the_smallest_neighbours_last() -> None:
    assert folded("aAbBBBBB", 2) == [("aAb", "short", 1), ("BBBBB", "line", 1)]


def test_roles_are_never_mixed() -> None:
    assert folded("aaaa", 1, "soso") == [("a", "", 1)] * 4
    assert folded("ababab", 1, "sossss") == [("a", "", 1), ("b", "", 1), ("abab", "repeat", 2)]


def test_function_at() -> None:
    line = Rnn.forward.__code__.co_firstlineno + 2
    assert function_at(f"{__file__}:{line}") == "Rnn.forward"
    assert function_at(f"{__file__}:1") == "test_draw.py"
    assert function_at("") == ""
    assert function_at("<string>:3") == "<string>"
