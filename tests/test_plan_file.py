"""Choices kept in a file: taken up without trials, checked as ever, and written over where they do not hold any more."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from fxsolve import Jacobi, JacobiGS
from fxsolve.plan import Candidate, Plan
from fxsolve.plan_file import Choice, PlanFile
from tests.checking import assert_same_bits, assert_to_rounding


class Reader(nn.Module):
    def __init__(self, gain: float = 0.5) -> None:
        super().__init__()
        self.cell = nn.RNNCell(16, 16)
        nn.init.normal_(self.cell.weight_hh, std=gain / 4)

    def forward(self, x: Tensor) -> Tensor:
        h, outs = x.new_zeros(1, 16), []
        for t in range(x.shape[0]):
            h = self.cell(x[t : t + 1], h)
            outs.append(h)
        return torch.stack(outs)


def model(gain: float = 0.5) -> Reader:
    torch.manual_seed(0)
    return Reader(gain).eval()


def plan_of(compiled) -> Plan:
    entry = compiled._compiler.last
    (runner,) = (entry.executable or entry.rejected).runners.values()
    return runner.plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plans.json"


def test_another_process_takes_up_the_plan_without_trials(path: Path) -> None:
    x = torch.randn(512, 16)
    with torch.no_grad():
        first = fxsolve.compile(model(), plans=path)
        first(x)
        second = fxsolve.compile(model(), plans=path)
        second(x)
        again, kept = plan_of(second), plan_of(first)
        assert (again.solver, again.candidates, again.threads) == (kept.solver, kept.candidates, kept.threads)
        assert again.reason == f"{kept.reason} (as kept in plans.json)"
        assert "compiled" not in second._compiler.last.timings, "it was not raced against the original"
        assert "original, as kept" in second._compiler.last.timings or "original" not in first._compiler.last.timings
        assert_to_rounding(second(x), model()(x), model().double()(x.double()))
        assert second.solution.blocks[0].residual <= 8


def test_a_choice_of_the_original_is_kept_too(path: Path) -> None:
    x = torch.randn(6, 16)
    with torch.no_grad():
        fxsolve.compile(model(), plans=path)(x)
        compiled = fxsolve.compile(model(), plans=path)
        assert_same_bits(compiled(x), model()(x))
        assert_same_bits(compiled(x), model()(x))
    assert compiled.solution.fallback.endswith("(as kept in plans.json)")


def growing(x: Tensor) -> Tensor:
    for _ in range(12):
        x = torch.cat([x, torch.tanh(x[-4:].sum(0, keepdim=True))])
    return x


def test_a_kept_choice_does_not_silence_the_warning(path: Path) -> None:
    for _ in range(2):
        with torch.no_grad(), pytest.warns(fxsolve.FallbackWarning, match="lengthened by cat"):
            fxsolve.compile(growing, plans=path)(torch.randn(4, 3))


def test_a_plan_that_does_not_hold_any_more_is_replaced(path: Path) -> None:
    """Weights are no part of a program: a step that forgets more slowly needs longer blocks."""
    x = torch.randn(1024, 16)
    with torch.no_grad():
        fxsolve.compile(model(0.5), plans=path)(x)
        (before,) = PlanFile(path).choices.values()
        slow = fxsolve.compile(model(1.3), plans=path)
        slow(x)
        (after,) = PlanFile(path).choices.values()
        assert after.plans["block0"].solver == plan_of(slow).solver != before.plans["block0"].solver
        assert_to_rounding(slow(x), model(1.3)(x), model(1.3).double()(x.double()))


def test_other_sizes_and_settings_are_other_programs(path: Path) -> None:
    with torch.no_grad():
        for length, exactness in ((512, "auto"), (512, "rounding"), (600, "auto"), (512, "auto")):
            fxsolve.compile(model(), exactness=exactness, plans=path)(torch.randn(length, 16))
    assert len(PlanFile(path).choices) == 3


def test_nothing_is_kept_of_forced_solvers_and_with_gradients(path: Path) -> None:
    x = torch.randn(256, 16)
    fxsolve.compile(model(), plans=path)(x)
    with torch.no_grad():
        fxsolve.compile(model(), solver=JacobiGS(32), plans=path)(x)
    assert not path.exists()


BLOCKS = JacobiGS(8, 4)
SPOILT = {  # what is edited in a good file
    "solver": ('"JacobiGS"', '"Gauss"'),
    "block": ('"block": 8', '"block": 0'),
    "threads": ('"threads": 1', '"threads": "two"'),
}


def choice(solver: fxsolve.solvers.Solver = BLOCKS) -> Choice:
    tried = (Candidate("JacobiGS(block=8)", 0.25, "certified"), Candidate("Jacobi()", None, "too slow"))
    return Choice({"block0": Plan(solver, "Recurrence", "quickest", tried, 4, 1)}, None, 0.5)


def test_reading_gives_what_was_written_and_keeps_what_others_added(path: Path) -> None:
    one, other = PlanFile(path), PlanFile(path)
    one.keep("a", choice())
    other.keep("b", choice(Jacobi()))
    assert PlanFile(path).choices == {"a": choice(), "b": choice(Jacobi())}
    assert [p.name for p in path.parent.iterdir()] == ["plans.json"]


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", '{"format": 0, "programs": {}}', '{"format": 1}', '{"format": 1, "programs": {"a": 3}}', *SPOILT],
)
def test_a_file_that_is_something_else_is_named(path: Path, content: str) -> None:
    if content in SPOILT:
        PlanFile(path).keep("a", choice())
        text = path.read_text()
        content = text.replace(*SPOILT[content])
        assert content != text
    path.write_text(content)
    with pytest.raises(fxsolve.FxsolveError, match="plans.json is no file of plans .*delete it or name another one"):
        fxsolve.compile(model(), plans=path)
    assert path.read_text() == content


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(fxsolve.FxsolveError, match="there is no folder .*nowhere; make it first"):
        fxsolve.compile(model(), plans=tmp_path / "nowhere" / "plans.json")


def test_a_choice_that_cannot_be_written_costs_a_warning_only(path: Path) -> None:
    compiled = fxsolve.compile(model(), plans=path)
    path.write_text("spoilt meanwhile")
    x = torch.randn(512, 16)
    with torch.no_grad(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compiled(x)
        assert compiled._compiler.last.executable is not None
    assert any("the choice is not kept for other processes" in str(w.message) for w in seen)


def test_the_file_is_plain_json(path: Path) -> None:
    PlanFile(path).keep("a", choice())
    kept = json.loads(path.read_text())
    assert kept["programs"]["a"]["plans"]["block0"]["solver"] == {"name": "JacobiGS", "block": 8, "warmup": 4}
