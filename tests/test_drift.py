"""Drift: who of the compiled program and the original takes the calls is decided anew where that could come out otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fxsolve
import fxsolve.first_call
from fxsolve.drift import CALLS, FIRST, LONG, LONGER, MOST, TURNS, WARM_UP, Drift
from fxsolve.shell import Calls
from tests.checking import assert_same_bits

TURN = WARM_UP + CALLS
GLANCE = "CO"
CLEAR, ALL = (GLANCE + n * (TURN * "C" + TURN * "O") for n in (1, TURNS))


def follow(drift: Drift, calls: int, original: float, compiled: float) -> str:
    """Who takes the next calls, of so many milliseconds: C or O for each."""
    taken = ""
    for _ in range(calls):
        ours = drift.compiled_is_next
        drift.ran(ours, (compiled if ours else original) / 1e3)
        taken += "C" if ours else "O"
    return taken


def test_a_compiled_program_that_is_far_quicker_takes_all_calls() -> None:
    drift = Drift(original=1e-3, compiled=1e-4)
    assert follow(drift, 1000, 1.0, 0.2) == 1000 * "C"


def test_single_late_calls_are_the_machine() -> None:
    drift = Drift(original=1e-3, compiled=5e-4)
    for _ in range(20):
        assert follow(drift, 2, 1.0, 50.0) + follow(drift, 3, 1.0, 0.5) == "CCCCC"


def test_what_has_become_slow_makes_way_and_gets_other_chances() -> None:
    drift = Drift(original=1e-3, compiled=1e-4)
    assert follow(drift, 3, 1.0, 2.0) == "CCC", "half a call is lost in each, at the most"
    assert follow(drift, len(CLEAR), 1.0, 2.0) == CLEAR and not drift.compiled_leads
    assert drift.why == "the original runs: it takes 0.0010 s, the compiled program 0.0020 s"
    rest = LONGER * FIRST
    assert follow(drift, rest + len(GLANCE), 1.0, 4.0) == rest * "O" + GLANCE, "what is far slower is tried once"
    assert follow(drift, LONGER * rest + len(GLANCE), 1.0, 0.2) == LONGER * rest * "O" + GLANCE
    assert drift.compiled_leads and follow(drift, 100, 1.0, 0.2) == 100 * "C"


def test_a_slow_machine_is_no_reason() -> None:
    drift = Drift(original=1e-3, compiled=5e-4)
    follow(drift, 3 + len(CLEAR), 6.0, 3.0)
    assert drift.compiled_leads and drift.original == 6e-3
    assert follow(drift, 100, 6.0, 3.0) == 100 * "C"


@pytest.mark.parametrize("leads", (True, False))
def test_the_close_take_calls_in_turns_again_and_again(leads: bool) -> None:
    drift = Drift(1e-3, 0.8e-3 if leads else 0.9e-3, leads)
    first, calls = ("C", FIRST) if leads else ("O", LONGER * FIRST)
    assert follow(drift, calls + len(ALL), 1.0, 0.9) == calls * first + ALL
    assert drift.compiled_leads is leads, "what is a little quicker goes on, and takes over from nobody"
    calls *= LONGER
    assert follow(drift, calls + len(ALL), 1.0, 1.01) == calls * first + ALL
    assert not drift.compiled_leads
    follow(drift, LONGER * calls + len(ALL), 1.0, 0.8)
    assert drift.compiled_leads
    assert follow(drift, MOST + 1, 1.0, 0.8)[-2:] == "CC"
    assert drift.patience == MOST


def test_the_first_call_of_a_turn_warms_up() -> None:
    drift = Drift(1e-3, 0.9e-3, calls=Calls(0))
    assert follow(drift, len(GLANCE), 1.0, 0.9) == GLANCE
    for _ in range(TURNS):
        assert follow(drift, WARM_UP, 1.0, 50.0) + follow(drift, TURN - WARM_UP, 1.0, 0.9) == TURN * "C"
        assert follow(drift, TURN, 1.0, 0.9) == TURN * "O"
    assert drift.compiled_leads and drift.compiled == pytest.approx(0.9e-3) and drift.left


def test_a_long_call_is_a_turn_by_itself() -> None:
    drift = Drift(LONG, 0.9 * LONG, calls=Calls(0))
    assert follow(drift, len(GLANCE) + 2 * TURNS, 1e3, 1.1e3) == GLANCE + TURNS * "CO" and not drift.compiled_leads


def test_where_nothing_is_known_the_next_calls_tell() -> None:
    for compiled, turns in ((0.2, GLANCE), (5.0, GLANCE), (0.6, CLEAR), (1.7, CLEAR), (1.1, ALL)):
        drift = Drift.unknown()
        assert drift.original == math.inf
        assert follow(drift, len(turns), 1.0, compiled) == turns and drift.left
        assert drift.compiled_leads == (compiled < 1.0)


def a_sampler(size: int) -> Tensor:
    """Slots of which each hangs on all before it."""
    mask = torch.tril(torch.ones(64, 64), -1)
    x = torch.zeros(size, 64)
    for i in range(64):
        x[:, i] = torch.tanh(x @ (mask.T * 0.01))[:, i] + torch.randn(size)
    return x


def assert_sampled_alike(compiled: object, seed: int, size: int = 2) -> None:
    torch.manual_seed(seed)
    ours = compiled(size)  # type: ignore[operator]
    torch.manual_seed(seed)
    assert_same_bits(ours, a_sampler(size))


def test_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxsolve.first_call, "PAYS", math.inf)  # what is tested is not the machine's speed
    monkeypatch.setattr(fxsolve.drift, "AT_A_GLANCE", math.inf)
    compiled = fxsolve.compile(a_sampler)
    with torch.no_grad():
        compiled(2)
        entry = compiled._compiler.last
        assert entry is not None and entry.drift is not None and entry.choice == "compiled"
        entry.drift = drift = Drift(original=1e-9, compiled=1e-10)  # as if inputs had become hard
        fallbacks = []
        for seed in range(3 + len(GLANCE)):
            assert_sampled_alike(compiled, seed)
            fallbacks.append(compiled.solution.fallback)
        assert fallbacks[:-1] == [None] * 4 and "take calls in turns" in str(fallbacks[-1])
        entry.drift = drift = Drift(1e-4, 1e-4, compiled_leads=False)  # as if the race had been close
        for seed in range(LONGER * FIRST):
            assert_sampled_alike(compiled, seed)
            assert compiled.solution.fallback == "the original runs: it takes 0.0001 s, the compiled program 0.0001 s"
        assert compiled.explain().startswith("the original and the compiled program take calls in turns") and drift.left == 0
        assert_sampled_alike(compiled, 0)
        assert compiled.solution.fallback is None, "the compiled program gets its turn, through the shell"


def test_a_plan_of_another_size_is_held_against_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxsolve.first_call, "PAYS", math.inf)
    compiled = fxsolve.compile(forgets)
    with torch.no_grad():
        compiled(torch.randn(512, 1, 16))
        assert compiled._compiler.last.compiled, "a step that forgets quickly is certified"
        compiled(torch.randn(512, 3, 16))
        entry = compiled._compiler.last
        assert entry.drift is not None and entry.drift.original == math.inf
        x = torch.randn(512, 3, 16)
        fallbacks = []
        for _ in GLANCE:
            torch.testing.assert_close(compiled(x), forgets(x))
            fallbacks.append(compiled.solution.fallback is None)
        assert fallbacks == [True, False]
        assert entry.drift.original < math.inf and entry.drift.compiled < math.inf


WEIGHT = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 16


def forgets(x: Tensor) -> Tensor:
    """A loop that forgets quickly."""
    h, out = torch.zeros(x.shape[1:]), []
    for step in x:
        h = torch.tanh(step + h @ WEIGHT)
        out.append(h)
    return torch.stack(out)
