"""Drift: a compiled program that has become slower than the original makes way for it, and comes back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fxsolve
import fxsolve.compiler
from fxsolve.drift import CALLS, FIRST_REST, Drift
from tests.checking import assert_same_bits


def test_a_few_late_calls_in_a_row_bring_the_original_back() -> None:
    drift = Drift(original=1.0)
    for seconds in (1.6, 1.6, 0.5, 1.4, 1.7, 1.6):
        drift.compiled_ran(seconds)
    assert drift.rest == 0
    drift.compiled_ran(1.55)
    assert drift.rest == FIRST_REST and drift.quickest == 1.55
    assert "3 compiled ones in a row took 1.5500 s or more, the original 1.0000 s" in drift.why
    for _ in range(FIRST_REST):
        drift.original_ran(1.1)
    assert drift.rest == 0 and drift.original == 1.0
    for _ in range(CALLS):
        drift.compiled_ran(2.0)
    assert drift.rest == 4 * FIRST_REST, "each rest is longer"


def test_a_slow_machine_is_no_reason() -> None:
    drift = Drift(original=1.0)
    for _ in range(CALLS):
        drift.compiled_ran(1.8)
    drift.original_ran(3.0)
    assert drift.rest == 0 and drift.original == 3.0


def test_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler whose slots hang on one another more and more as its weight grows."""
    monkeypatch.setattr(fxsolve.compiler, "PAYS", float("inf"))  # what is tested is not the machine's speed
    weight = torch.zeros(1)

    def sample(n: Tensor) -> Tensor:
        mask = torch.tril(torch.ones(64, 64), -1)
        x = torch.zeros(2, 64)
        for i in range(64):
            x[:, i] = torch.tanh(x @ (mask.T * weight))[:, i] + torch.randn(2)
        return x

    compiled = fxsolve.compile(sample)
    with torch.no_grad():
        compiled(torch.zeros(1))
        entry = compiled._compiler.last
        assert entry is not None and entry.drift is not None and entry.choice == "compiled"
        entry.drift.original = 1e-9  # as if inputs had become hard
        fallbacks = []
        for seed in range(CALLS + 2):
            torch.manual_seed(seed)
            ours = compiled(torch.zeros(1))
            fallbacks.append(compiled.solution.fallback)
            torch.manual_seed(seed)
            assert_same_bits(ours, sample(torch.zeros(1)))
    assert fallbacks[:CALLS] == [None] * CALLS
    assert "the original runs, 16 more calls" in str(fallbacks[CALLS])
