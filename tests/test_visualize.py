"""Pictures and reports of compiled programs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import graphviz
import pytest
import torch
from torch import nn

import fxsolve
from fxsolve.visualize.chart import frontier_chart

VOID = {"meta", "br", "hr", "img", "input", "link"}


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


class Sampler(nn.Module):
    """Two masked layers, as MADE has them."""

    def __init__(self, size: int = 8, hidden: int = 16) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size, hidden), nn.Linear(hidden, size)
        degree, place = torch.arange(hidden) % (size - 1), torch.arange(size)
        self.register_buffer("mask1", (degree[:, None] >= place).float())
        self.register_buffer("mask2", (place[:, None] > degree).float())

    def forward(self, x):
        h = torch.relu(nn.functional.linear(x, self.first.weight * self.mask1, self.first.bias))
        return nn.functional.linear(h, self.second.weight * self.mask2, self.second.bias)

    @torch.no_grad()
    def sample(self, count: int):
        x = torch.zeros(count, self.first.in_features)
        for i in range(x.shape[1]):
            x[:, i] = torch.bernoulli(torch.sigmoid(self(x)[:, i]))
        return x


def rnn():
    torch.manual_seed(0)
    compiled = fxsolve.compile(Rnn(), solver=fxsolve.JacobiGS(block=8))
    with torch.no_grad():
        compiled(torch.randn(2, 32, 4))
    return compiled


def sampler():
    torch.manual_seed(0)
    compiled = fxsolve.compile(Sampler().sample, solver=fxsolve.Jacobi())
    compiled(3)
    return compiled


@pytest.fixture(scope="module", params=[rnn, sampler], ids=["rnn", "sampler"])
def compiled(request: pytest.FixtureRequest):
    return request.param()


class Tags(HTMLParser):
    """Collects attributes and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_core_does_not_import_visualize() -> None:
    code = "import sys, fxsolve; assert not {'fxsolve.visualize', 'graphviz'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dot_text_has_clusters_and_carried_edges(compiled, tmp_path: Path) -> None:
    text = compiled.draw(tmp_path / "graph.dot").read_text()
    assert "subgraph cluster_block0" in text
    solution = compiled.solution.blocks[0]
    for said in (solution.kind, f"{solution.equations} equations", solution.solver, "test_visualize.py:"):
        assert said in text
    (state,) = re.findall(r'(n\d+) \[label="state s0', text)
    assert len(re.findall(rf"n\d+ -> {state} \[.*style=dashed", text)) == 1
    assert "weight" in text  # leaves by name


def test_noise_is_drawn_before_its_block(tmp_path: Path) -> None:
    text = sampler().draw(tmp_path / "graph.dot").read_text()
    (draws,) = re.findall(r'(n\d+) \[label="8 draws: uniform', text)
    (row,) = re.findall(r'(n\d+) \[label="row t of x0', text)
    assert f"{draws} -> {row}" in text
    assert 'label="write slot t' in text


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz' dot is not installed")
@pytest.mark.parametrize("suffix, start", [(".svg", b"<svg"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_pictures(suffix: str, start: bytes, compiled, tmp_path: Path) -> None:
    drawn = compiled.draw(tmp_path / f"graph{suffix}").read_bytes()
    assert drawn.startswith(start)
    if suffix == ".svg":
        assert b"test_visualize.py:" in drawn
        assert b"<title>n1</title>" not in drawn


def without_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args, **kwargs):
        raise graphviz.ExecutableNotFound(["dot"])

    monkeypatch.setattr(graphviz.Digraph, "pipe", missing)


def test_without_dot_the_text_is_written(compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_dot(monkeypatch)
    with pytest.raises(fxsolve.FxsolveError, match="apt install graphviz"):
        compiled.draw(tmp_path / "graph.svg")
    assert "cluster_block0" in (tmp_path / "graph.dot").read_text()
    assert "apt install graphviz" in compiled.report(tmp_path / "report.html").read_text()


def test_other_suffixes_are_errors(compiled, tmp_path: Path) -> None:
    with pytest.raises(fxsolve.FxsolveError, match="must end in"):
        compiled.draw(tmp_path / "graph.bmp")


def test_report(compiled, tmp_path: Path) -> None:
    text = compiled.report(tmp_path / "report.html").read_text()
    certificate = compiled.solution.blocks[0].certificate
    assert certificate in text[: text.index("<h2>")]
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not [value for _, value in tags.attributes if re.search(r"https?:|//", value)]
    assert "url(" not in text and "@import" not in text and "<script" not in text
    for shown in ("prefers-color-scheme: dark", "class='chart'", "def forward(self", torch.__version__):
        assert shown in text


def test_report_escapes(tmp_path: Path) -> None:
    fn = rnn()
    fn._compiler.last.choice = "<b>&</b>"
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in fn.report(tmp_path / "report.html").read_text()
    assert "<title>&lt;x&gt;" in frontier_chart((1, 2), 2, "<x>")


def test_before_the_first_call(tmp_path: Path) -> None:
    fn = fxsolve.compile(Rnn())
    for method in (fn.draw, fn.report):
        with pytest.raises(fxsolve.FxsolveError, match="call it once first"):
            method(tmp_path / "graph.dot")


def test_nothing_compiled(tmp_path: Path) -> None:
    fn = fxsolve.compile(torch.relu)
    fn(torch.ones(2))
    with pytest.raises(fxsolve.FxsolveError, match="nothing to draw: the original runs"):
        fn.draw(tmp_path / "graph.dot")
    assert "The original computed the last result" in fn.report(tmp_path / "report.html").read_text()


def test_original_kept_although_compiled(tmp_path: Path) -> None:
    fn = fxsolve.compile(Rnn())
    with torch.no_grad():
        fn(torch.randn(2, 6, 4))  # too short to cut: solved in order, so the original runs
    assert fn._compiler.last.executable is None
    assert "GaussSeidel()" in fn.draw(tmp_path / "graph.dot").read_text()
    text = fn.report(tmp_path / "report.html").read_text()
    assert "The original computed the last result" in text and "From the trial" in text
