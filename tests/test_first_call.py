"""The first call leaves the world as one call of the original leaves it, whatever was tried beside it."""

from __future__ import annotations

import copy
import gc
import time
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from tests.checking import assert_close


class Counting(nn.Module):
    """Counts its calls in one buffer, and follows its states in another."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(4, 4)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h, out = torch.zeros(x.shape[0], 4), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append(h)
        self.mean.mul_(0.9).add_(0.1 * h.mean(0))
        return torch.stack(out, 1)


def test_buffers_are_written_once_a_call() -> None:
    torch.manual_seed(0)
    model = Counting()
    other, x = copy.deepcopy(model), torch.randn(2, 600, 4)  # long enough for a race with the original
    compiled = fxsolve.compile(model)
    with torch.no_grad():
        for number in range(1, 5):
            assert_close(compiled(x), other(x))
            assert_close(model.mean, other.mean)
            assert model.calls.item() == other.calls.item() == number
    assert "original " in compiled.explain()


def test_arguments_are_written_once_a_call() -> None:
    def program(x: Tensor, seen: Tensor) -> Tensor:
        h = torch.zeros(4)
        for t in range(600):
            h = torch.tanh(0.5 * h + x[t])
        seen.add_(1.0)
        return h * seen

    x, seen, other = torch.randn(600, 4), torch.zeros(1), torch.zeros(1)
    compiled = fxsolve.compile(program)
    for number in range(1, 5):
        assert_close(compiled(x, seen), program(x, other))
        assert seen.item() == number


@pytest.mark.parametrize("solver", ["auto", fxsolve.JacobiGS(32), fxsolve.GaussSeidel()], ids=str)
def test_arguments_and_results_are_let_go_of(solver: Any) -> None:
    def program(x: Tensor) -> Tensor:
        h, out = x[0], []
        for t in range(1, x.shape[0]):
            h = torch.tanh(0.5 * h + x[t])
            out.append(h)
        return torch.stack(out)

    compiled = fxsolve.compile(program, solver=solver)
    for _ in range(3):
        x = torch.randn(200, 2, 4)
        result = compiled(x)
        assert_close(result, program(x))
        alive = weakref.ref(x), weakref.ref(result)
        del x, result
        gc.collect()
        assert alive[0]() is None and alive[1]() is None
    assert "argument 0" in compiled.source


@pytest.mark.parametrize("solver", ["auto", fxsolve.GaussSeidel()], ids=str)
def test_a_number_that_a_second_run_gives_otherwise_is_not_handed_out_again(solver: Any) -> None:
    """What a clock says, for one: a replay would say what it said in the first call."""
    model = Counting()

    def timed(x: Tensor) -> tuple[Tensor, float, str]:
        start = time.perf_counter()
        return model(x), time.perf_counter() - start, "seconds"

    x, compiled = torch.randn(2, 64, 4), fxsolve.compile(timed, solver=solver)
    with torch.no_grad(), pytest.warns(fxsolve.FallbackWarning, match="when it is computed again: a replay would give"):
        first = compiled(x)
    with torch.no_grad():
        later = [compiled(x) for _ in range(3)]
    assert len({first[1], *(each[1] for each in later)}) == 4 and {each[2] for each in later} == {"seconds"}
    assert model.calls.item() == 4


def test_numbers_that_stay_are_handed_out() -> None:
    def program(x: Tensor) -> dict[str, Any]:
        h = torch.zeros(4)
        for t in range(x.shape[0]):
            h = torch.tanh(0.5 * h + x[t])
        return {"h": h, "steps": x.shape[0], "scale": float("nan"), "name": "tanh", "nothing": None}

    x, compiled = torch.randn(64, 4), fxsolve.compile(program, solver=fxsolve.GaussSeidel())
    for _ in range(3):
        ours, expected = compiled(x), program(x)
        assert_close(ours.pop("h"), expected.pop("h"))
        assert repr(ours) == repr(expected)
    assert not compiled.solution.fallback
