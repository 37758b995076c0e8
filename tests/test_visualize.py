"""Pictures and reports of compiled programs."""

from __future__ import annotations

import re
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


def test_report_without_dot(compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args, **kwargs):
        raise graphviz.ExecutableNotFound(["dot"])

    monkeypatch.setattr(graphviz.Digraph, "pipe", missing)
    assert "apt install graphviz" in compiled.report(tmp_path / "report.html").read_text()


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
