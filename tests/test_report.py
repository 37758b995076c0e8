"""What a report says, and that its page is whole: its parts one by one, then pages of compiled programs."""

from __future__ import annotations

import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import graphviz
import pytest
import torch
from torch import nn

import fxsolve
from fxsolve.ir import FixedPoint, Slots, TensorType
from fxsolve.plan import Candidate, Plan
from fxsolve.signature import described, signature
from fxsolve.solution import BlockSolution, Solution
from fxsolve.solvers import Jacobi, JacobiGS
from fxsolve.visualize.amounts import count_of, seconds_text, three_digits
from fxsolve.visualize.chart import frontier_chart, heat_map, runs
from fxsolve.visualize.convergence_tab import final_after, slot_places
from fxsolve.visualize.highlight import highlighted
from fxsolve.visualize.markup import Markup, html, table
from fxsolve.visualize.picture import both_schemes, dark, picture
from fxsolve.visualize.plans import candidates
from fxsolve.visualize.report import Told, page
from fxsolve.visualize.summary import summary

VOID = {"meta", "br", "hr", "img", "input", "link"}
SECTIONS = ["summary", "dataflow", "schedule", "convergence", "source", "environment"]


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


class Tags(HTMLParser):
    """Collects attributes and what stands in each section, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.sections: dict[str, str] = {}

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self.sections[dict(attrs)["id"]] = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "section" in self.open:
            self.sections[list(self.sections)[-1]] += data


def read(path: Path) -> Tags:
    tags = Tags()
    tags.feed(path.read_text())
    assert tags.open == []
    return tags


# -- figures and markup -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0, "0.00 µs"),
        (3.21e-7, "0.32 µs"),
        (8.5e-4, "850 µs"),
        (9.9996e-4, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.99949, "999 ms"),
        (0.9996, "1.00 s"),
        (83.4, "83.4 s"),
        (355.78, "356 s"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_other_figures() -> None:
    assert [three_digits(v) for v in (9.994, 9.996, 99.94, 99.96, 12345.6)] == ["9.99", "10.0", "99.9", "100", "12346"]
    assert (count_of(1, "sweep"), count_of(2, "sweep")) == ("1 sweep", "2 sweeps")


def test_text_is_escaped_and_durations_are_marked() -> None:
    assert html("<b> & 'q'") == "&lt;b&gt; &amp; &#x27;q&#x27;"
    assert html(Markup("<b>x</b>")) == "<b>x</b>"
    assert html("it takes 1.6999 s, not 12 ms or 3 steps") == (
        "it takes <span class='time'>1.6999 s</span>, not <span class='time'>12 ms</span> or 3 steps"
    )
    assert html("at (/home/me/a/model.py:54) or b.py:3") == (
        "at (<span title='/home/me/a/model.py:54'>model.py:54</span>) or b.py:3"
    )
    assert html(None) == ""


def test_a_table_says_its_headings_again_in_each_cell() -> None:
    text = table("all", ("Name", "#Count"), [["a", "1"], ["b", "2"]], chosen=1)
    assert "<th scope='col'>Name</th><th scope='col' class=number>Count</th>" in text
    assert "<tr class=chosen><td data-head='Name'>b</td><td data-head='Count' class=number>2</td></tr>" in text


def test_highlighting() -> None:
    source = 'def f(x):  # <why>\n    return x + 12 * len("a<b")\n'
    assert highlighted(source) == (
        "<span class='keyword'>def</span> <span class='name'>f</span>(x):  <span class='comment'># &lt;why&gt;</span>\n"
        "    <span class='keyword'>return</span> x + <span class='number'>12</span> * len("
        "<span class='string'>\"a&lt;b\"</span>)\n"
    )


@pytest.mark.parametrize(
    "source", ["", "x = (1,\n", 'a = """open\n\nb', "  x\n y ?? é\n", 'f"{a!r:>{w}} b"\nz = 1', "x\\\n  = 2"]
)
def test_highlighting_keeps_every_character(source: str) -> None:
    assert unescape(re.sub("<[^>]*>", "", highlighted(source))) == source


# -- charts -----------------------------------------------------------------------------------------


def test_frontier_chart() -> None:
    text = frontier_chart((1, 2, 4), 4, "<x>", sweeps=6)
    assert "<title>&lt;x&gt;: 4 equations final after 6 sweeps</title>" in text
    (points,) = re.findall("<polyline points='([^']*)'", text)
    assert points == "52.0,180.0 156.7,138.0 261.3,96.0 366.0,12.0"  # a stopping test every second sweep
    assert re.findall(r"after (\d+): (\d+) final", text) == [("2", "1"), ("4", "2"), ("6", "4")]
    assert "circle" not in frontier_chart(range(1, 100), 99, "many")


def test_heat_map() -> None:
    assert list(runs([0.0, 0.05, 1.0, None, 0.99])) == [(0, 0, 2), (9, 2, 1), (9, 4, 1)]
    text = heat_map([[0.0, 0.5], [None, 1.0]], "map", "columns", "rows", "first", "last")
    assert re.findall("fill-opacity='([^']*)' d='([^']*)'", text) == [
        ("0.1", "M0 0h1v1h-1z"),
        ("0.6", "M1 0h1v1h-1z"),
        ("1.0", "M1 1h1v1h-1z"),
    ]
    for said in ("columns", "rows", "first", "last"):
        assert f">{said}</text>" in text
    assert "scale(28.0000 28.0000)" in text, "few cells are not drawn larger than that"
    assert text.count("<rect") == 11 and heat_map([[1.0]], "map", "", "", "", "").count("<rect") == 1


def test_when_slots_are_final() -> None:
    assert final_after((1, 1, 4), 5, 3) == [1, 3, 3, 3, None]
    assert final_after((2, 4), 4, 8) == [4, 4, 8, 8]


def fixed_point(shape: tuple[int, ...], stride: tuple[int, ...], offsets: tuple[int, ...]) -> FixedPoint:
    network = torch.fx.Graph()
    network.placeholder("s0").meta["type"] = TensorType(shape, stride, torch.float32, torch.device("cpu"))
    slots = Slots((1,), (1,), offsets)
    return FixedPoint("block0", len(offsets), network, network, 1, 0, 0, 0, 0, (), (slots,))


def test_places_of_slots() -> None:
    columns_first = tuple(4 * i + j for j in range(4) for i in range(3))
    image = fixed_point((2, 1, 3, 4), (12, 12, 4, 1), columns_first)
    assert slot_places(image) == ([(i, j) for j in range(4) for i in range(3)], "")
    row = fixed_point((2, 5), (5, 1), tuple(range(5)))
    assert slot_places(row) == ([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], "; slots in order, 3 a line")


# -- the schedule -----------------------------------------------------------------------------------


def test_candidates_are_sorted_and_the_chosen_one_stands_out() -> None:
    tried = (
        Candidate("GaussSeidel(check=4)", None, "a change survives"),
        Candidate("JacobiGS(block=32, warmup=19) on 1 thread", 2e-3, "certified", 2.5e-3, 2),
        Candidate("JacobiGS(block=16, warmup=9) on 1 thread", 1e-3, "certified", 1.5e-3, 3, 640_000),
    )
    text = candidates("block0", Plan(JacobiGS(16, 9), "Recurrence", "quickest", tried, threads=1))
    first, second, last = re.findall("<tr.*?</tr>", text)[1:]
    assert first.startswith("<tr class=chosen>") and "chosen: certified" in first
    assert re.findall(r">([\d.]+ ms)<", first) == ["1.50 ms", "1.00 ms"] and ">3</td>" in first and ">640 kB</td>" in first
    assert "block=32" in second and "chosen" not in second
    assert "a change survives" in last and "ms" not in last
    assert "No other schedule was timed" in candidates("block0", Plan(Jacobi(), "FixedPoint", "proved causal"))


def test_the_scheduler_notes_what_it_expected(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fn = fxsolve.compile(Rnn())
    with torch.no_grad():
        fn(torch.randn(2, 512, 4))
    entry = fn._compiler.last
    (runner,) = (entry.executable or entry.rejected).runners.values()
    certified = [c for c in runner.plan.candidates if c.note == "certified"]
    blocks = [c for c in certified if c.solver.startswith("JacobiGS")]
    assert blocks and all(c.sweeps >= 2 and 0 < c.expected < 10 for c in blocks)
    schedule = read(fn.report(tmp_path / "report.html")).sections["schedule"]
    assert schedule.count("certified") >= len(certified) and runner.plan.reason in schedule


# -- the summary and the environment ----------------------------------------------------------------


def solved(name: str, certificate: str, seconds: float = 0.5) -> BlockSolution:
    return BlockSolution(name, "Recurrence", "Jacobi()", 8, 2, 3, (4, 8), 0.0, None, certificate, seconds)


def test_equal_certificates_are_said_once() -> None:
    blocks = (solved("block0", "all hold"), solved("block1", "all hold"), solved("block2", "in order"))
    timings = {"record": 9.0, "original": 6.0, "compiled": 1.5}
    text = summary(Solution(blocks, 2.0), [], "compiled", timings, {"original": 9_000}, "plan")
    assert re.findall("<strong>(.*?)</strong> (.*?)</p>", text) == [
        ("All hold", "(block0 to block1)"),
        ("In order", "(block2)"),
    ]
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", re.sub("</?span[^>]*>", "", text)))
    assert facts["Equations"] == "24" and facts["Sequential steps"] == "9" and facts["Last call"] == "2.00 s"
    assert facts["Original, in the trial"] == "6.00 s" and facts["Original over compiled"] == "4.00 ×"
    assert facts["Memory, original"] == "9 kB"
    assert facts["record"] == "9.00 s" and "original" not in facts


def test_a_first_call_is_called_so() -> None:
    timings = {"record": 2.0, "original, at the least": 1.0}
    text = summary(Solution((solved("block0", "x", 0.5),), 3.0), [], "compiled", timings, {}, "")
    assert "First call, compiling included" in text and "Original, at the least" in text
    assert "2.00 ×" in text, "compared with the blocks' seconds, not with the compilation's"


@pytest.mark.parametrize(
    "args, kwargs, said",
    [
        ((torch.ones(2, 3), 4), {}, {"argument 0": "float32[2,3] on cpu", "argument 1": "int 4"}),
        ((1.5, "x", None), {}, {"argument 0": "float 1.5", "argument 1": "str 'x'", "argument 2": "NoneType None"}),
        (([torch.ones(1).double()],), {"h": True}, {"argument 0[0]": "float64[1] on cpu", "argument h": "bool True"}),
        ((nn.Parameter(torch.ones(1)),), {}, {"argument 0": "float32[1] on cpu (Parameter), requires gradients"}),
    ],
)
def test_signatures_in_words(args: tuple[Any, ...], kwargs: dict[str, Any], said: dict[str, str]) -> None:
    with torch.no_grad():
        found = described(signature(args, kwargs))
    assert found == said | {"settings": "gradients off, default dtype float32"}


def test_shared_memory_is_part_of_a_signature() -> None:
    x = torch.ones(2)
    assert described(signature((x, x), {}))["memory"] == "some arguments share memory"


# -- the picture ------------------------------------------------------------------------------------


def test_each_colour_has_a_counterpart() -> None:
    rules = both_schemes('<g fill="#cdeed6" stroke="#5b6670"/><g fill="white"/><g fill="none"/>').splitlines()
    assert rules == [
        f'.picture svg [fill="#cdeed6"] {{ fill: light-dark(#cdeed6, {dark("#cdeed6", "fill")}); }}',
        '.picture svg [fill="white"] { fill: light-dark(white, #14181c); }',
        f'.picture svg [stroke="#5b6670"] {{ stroke: light-dark(#5b6670, {dark("#5b6670", "stroke")}); }}',
    ]
    green = [int(dark("#cdeed6", "fill")[i : i + 2], 16) for i in (1, 3, 5)]
    assert max(green) == green[1] < 100, "a pale green becomes a deep one"
    assert min(int(dark("#5b6670", "stroke")[i : i + 2], 16) for i in (1, 3, 5)) > 120, "ink becomes light"


def test_a_picture_that_is_too_large_is_not_in_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxsolve.visualize.picture.svg", lambda executable: "x" * 4_500_000)
    text = picture(None)  # type: ignore[arg-type]
    assert "takes 4.5 MB" in text and "draw(&#x27;graph.svg&#x27;)" in text and len(text) < 1000


def test_without_dot_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args, **kwargs):
        raise graphviz.ExecutableNotFound(["dot"])

    monkeypatch.setattr(graphviz.Digraph, "pipe", missing)
    assert "apt install graphviz" in read(rnn().report(tmp_path / "report.html")).sections["dataflow"]


# -- whole pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [rnn, sampler])
def test_report(make, tmp_path: Path) -> None:
    compiled = make()
    path = compiled.report(tmp_path / "report.html")
    tags, text = read(path), path.read_text()
    (solution,) = compiled.solution.blocks
    assert list(tags.sections) == SECTIONS
    assert solution.certificate[1:] in tags.sections["summary"][:200], "the certificate comes first"
    for said in (solution.kind, solution.solver, str(solution.equations), "test_report.py, line"):
        assert said in tags.sections["schedule"]
    assert "def forward(self" in tags.sections["source"]
    assert torch.__version__ in tags.sections["environment"] and "gradients" in tags.sections["environment"]
    if shutil.which("dot"):
        assert "state s0" in tags.sections["dataflow"] or "buffer s0: slot t is written" in tags.sections["dataflow"]
    assert text.count("class='chart'") == (1 if make is rnn else 2)


def test_nothing_is_fetched(tmp_path: Path) -> None:
    """No attribute and no rule names another file, and the page's own policy forbids all but its script and styles."""
    path = sampler().report(tmp_path / "report.html")
    tags, text = read(path), path.read_text()
    assert not [a for a in tags.attributes if re.search(r"//|^data:|^javascript:", a[2])]
    links = [(tag, value) for tag, name, value in tags.attributes if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert links == [("a", f"#{name}") for name in SECTIONS]
    assert not re.search(r"url\(|@import|<link|<img|<iframe|fetch\(|XMLHttpRequest|import\(", text)
    (policy,) = [value for tag, name, value in tags.attributes if tag == "meta" and value.startswith("default-src")]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[\w+/]{43}='; base-uri 'none'; form-action 'none'",
        policy,
    )


def test_names_and_reasons_are_escaped() -> None:
    said = "<script>alert('&')</script>"
    text = page(Told(said, said, solution=Solution((), 1.0, said), choice=said + "."))
    assert said not in text and text.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;") == 5


def test_before_the_first_call(tmp_path: Path) -> None:
    tags = read(fxsolve.compile(Sampler()).report(tmp_path / "report.html"))
    assert list(tags.sections) == ["summary", "environment"]
    assert "Not called yet" in tags.sections["summary"] and "call it once" in tags.sections["summary"]


def test_nothing_compiled(tmp_path: Path) -> None:
    fn = fxsolve.compile(torch.relu)
    fn(torch.ones(2))
    tags = read(fn.report(tmp_path / "report.html"))
    assert list(tags.sections) == ["summary", "environment"]
    assert "The original computed the last result" in tags.sections["summary"]
    assert "float32[2] on cpu" in tags.sections["environment"]


def test_original_kept_although_compiled(tmp_path: Path) -> None:
    fn = fxsolve.compile(Rnn())
    with torch.no_grad():
        fn(torch.randn(2, 6, 4))  # too short to cut: solved in order, so the original runs
    assert fn._compiler.last.executable is None
    tags = read(fn.report(tmp_path / "report.html"))
    assert list(tags.sections) == SECTIONS
    assert "The original computed the last result" in tags.sections["summary"]
    assert "From the trial" in tags.sections["schedule"] and "too few to cut" in tags.sections["schedule"]
    assert "every block ran in order" in tags.sections["convergence"]
