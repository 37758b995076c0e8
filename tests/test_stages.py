"""The pipeline's hook, and the page on what each pass made."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import graphviz
import pytest
import torch
from torch import nn

import fxsolve
from fxsolve import visualize
from fxsolve.clock import watchers, watching

TAPES = ["record", "functionalize", "clean", "growth", "roll"]
PROGRAMS = ["build", "hoist invariants", "settle", "slots", "hoist noise", "chain"]
VOID = {"meta", "br"}


class Sampler(nn.Module):
    """One masked layer; the mask is applied in every step."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)
        self.register_buffer("mask", torch.ones(size, size).tril(-1))

    @torch.no_grad()
    def sample(self, count: int):
        x = torch.zeros(count, self.layer.in_features)
        for i in range(x.shape[1]):
            logits = nn.functional.linear(x, self.layer.weight * self.mask, self.layer.bias)
            x[:, i] = torch.bernoulli(torch.sigmoid(logits[:, i]))
        return x


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    return fxsolve.compile(Sampler().sample, solver=fxsolve.Jacobi())


@pytest.fixture(scope="module")
def stages(compiled):
    again = fxsolve.compile(compiled._compiler.fn, solver=fxsolve.Jacobi())
    with visualize.watch_passes() as seen:
        again(3)
        again(3)  # compiled already: nothing to see
    return seen


class Tags(HTMLParser):
    """Checks that tags are closed in order, and collects attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_hook_fires_once_after_every_pass() -> None:
    seen = []
    torch.manual_seed(0)
    fast = fxsolve.compile(Sampler().sample)
    with watching(lambda name, seconds, made: seen.append((name, seconds, type(made).__name__))):
        fast(2)
    assert [name for name, _, _ in seen] == [*TAPES, *PROGRAMS, "decide", "time"]
    kinds = [kind for _, _, kind in seen]
    assert kinds == ["Recording", "Tape", "Tape", "NoneType", "list", *["Program"] * len(PROGRAMS), "Executable", "str"]
    timings = fast._compiler.last.timings
    assert {name: seconds for name, seconds, _ in seen} == {name: timings[name] for name, _, _ in seen}
    assert watchers == []


def test_a_watcher_is_no_part_of_the_next_pass() -> None:
    import time

    fast = fxsolve.compile(Sampler().sample, solver=fxsolve.Jacobi())
    with watching(lambda name, seconds, made: time.sleep(0.2)):
        fast(2)
    timings = fast._compiler.last.timings
    assert sum(timings[name] for name in PROGRAMS) < 0.2 * len(PROGRAMS)


def test_the_hook_is_taken_away_after_an_error() -> None:
    with pytest.raises(KeyError), watching(print):
        raise KeyError
    assert watchers == []


def test_stages_say_what_there_is(stages) -> None:
    found = {stage.name: stage for stage in stages.stages}
    assert list(found) == [*TAPES, *PROGRAMS, "decide", "time"]
    rows = sum(found["record"].counts.values())
    assert found["record"].said.startswith(f"{rows} rows, ")
    assert found["growth"].said == "no sequence grows"
    assert re.fullmatch(r"8 steps of \d+ rows", found["roll"].said)
    inside = sum(n for (place, _), n in found["chain"].counts.items() if place == "block0")
    assert found["chain"].said.endswith(f"; block0: Recurrence of 8 equations, {inside} calls")
    assert found["time"].said == "compiled"


def test_stages_say_what_changed(stages) -> None:
    found = {stage.name: stage for stage in stages.stages}
    assert found["functionalize"].changes[("tape", "write")] == 8
    assert found["clean"].changes == {("tape", "mul"): -7, ("tape", "t"): -7}  # the masked weight, once
    assert found["hoist noise"].changes[("outside", "draws")] == 1
    assert found["hoist noise"].new > 0 and found["settle"].changes == {}
    assert all(stage.changes == {} for stage in stages.stages if stage.name in ("record", "growth", "roll", "decide", "time"))


def test_pictures_where_a_program_changed(stages) -> None:
    drawn = {stage.name: stage.picture for stage in stages.stages if stage.picture}
    assert {"build", "hoist noise", "decide"} <= set(drawn)
    assert not set(drawn) & {*TAPES, "settle", "time"}
    framed = [name for name in drawn if 'class="node node noise changed"' in drawn[name]]
    assert framed == ["hoist noise"]
    assert "changed" not in drawn["build"] and "changed" not in drawn["decide"]
    assert "solver: Jacobi()" in drawn["decide"] and "not decided yet" in drawn["build"]


def test_passes_writes_a_page(compiled, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    path = visualize.passes(compiled, tmp_path / "passes.html", 3)
    text = path.read_text()
    tags = Tags(text)
    assert tags.open == []
    assert not [value for _, value in tags.attributes if re.search(r"https?:|//", value)]
    assert "<script" not in text and "url(" not in text and "@import" not in text
    for name in [*TAPES, *PROGRAMS, "decide", "time"]:
        assert re.search(rf"<td>(<a href='#stage\d+'>)?{name}(</a>)?</td><td class='number'>[\d.]+</td>", text)
    assert text.count("<svg") == text.count("</svg>") >= 3
    assert "passes over Sampler.sample" in text and "solver: Jacobi()" in text
    assert compiled._compiler.last is None  # it was compiled anew
    torch.set_rng_state(before)


def test_passes_without_dot(compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args, **kwargs):
        raise graphviz.ExecutableNotFound(["dot"])

    monkeypatch.setattr(graphviz.Digraph, "pipe", missing)
    text = visualize.passes(compiled, tmp_path / "passes.html", 3).read_text()
    assert "<svg" not in text and "apt install graphviz" in text and "hoist noise" in text


def test_why_something_is_not_compiled_is_said(tmp_path: Path) -> None:
    def reads(x):
        return x * float(x.sum())

    fast = fxsolve.compile(reads)
    with pytest.warns(fxsolve.FallbackWarning):
        text = visualize.passes(fast, tmp_path / "passes.html", torch.ones(3)).read_text()
    assert "why it is not compiled" in text


def test_passes_takes_compiled_callables(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="takes what fxsolve.compile returned, not builtin_function"):
        visualize.passes(torch.relu, tmp_path / "passes.html", torch.ones(3))


def test_nothing_watched(tmp_path: Path) -> None:
    with visualize.watch_passes() as seen:
        pass
    assert "No first call was watched" in seen.write(tmp_path / "passes.html").read_text()
