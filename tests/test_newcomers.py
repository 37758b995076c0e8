"""Kinds of calls that never come back are not compiled for ever."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from fxsolve.newcomers import ONCE, Newcomers
from tests.checking import assert_same_bits


def compiled_at(newcomers: Newcomers, keys: list[object]) -> list[int]:
    """The calls at which a new kind was compiled, where none of them comes again after that."""
    found = []
    for number, key in enumerate(keys):
        if not newcomers.has_to_wait(key):
            newcomers.compiled(key)
            found.append(number)
    return found


def test_new_kinds_wait_longer_and_longer() -> None:
    assert compiled_at(Newcomers(), list(range(100))) == list(range(ONCE))
    same = compiled_at(Newcomers(), [0] * 200)  # as if the guards failed each time
    gaps = [after - before for before, after in zip(same, same[1:])]
    assert gaps == ([1] * (ONCE - 1) + [2] * ONCE + [4] * ONCE + [8] * ONCE)[: len(gaps)] and len(gaps) > 3 * ONCE


def test_kinds_that_come_again_do_not_count() -> None:
    newcomers = Newcomers()
    for key in range(3 * ONCE):
        assert not newcomers.has_to_wait(key)
        newcomers.compiled(key)
        newcomers.came_again()


class Step(nn.Module):
    """One step of a decoder, with its position as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = 1.0

    def forward(self, x: Tensor, position: int = 0) -> Tensor:
        return torch.tanh(self.layer(x)) * (position + self.scale)


def test_a_number_that_changes_in_each_call() -> None:
    model = Step()
    compiled = fxsolve.compile(model)
    x = torch.randn(2, 4)
    with torch.no_grad():
        for position in range(ONCE):
            assert_same_bits(compiled(x, position), model(x, position))
        with pytest.warns(fxsolve.FallbackWarning, match=r"argument 1 \(int 0, int 1, int 2, \.\.\).* as tensors"):
            compiled(x, ONCE)
        assert "did not come again" in compiled.solution.fallback and "did not come again" in compiled.explain()
        for position in range(2 * ONCE):  # all come again, and one warning is enough
            assert_same_bits(compiled(x, position), model(x, position))
        assert len(compiled._compiler.entries) == 2 * ONCE


def test_warnings_point_at_the_users_line() -> None:
    compiled = fxsolve.compile(Step())
    with torch.no_grad(), pytest.warns(fxsolve.FallbackWarning) as caught:
        for position in range(ONCE + 1):
            compiled(torch.ones(2, 4), position)
        fxsolve.compile(lambda x: x * float(x.sum()))(torch.ones(2))
    assert [warning.filename for warning in caught] == [__file__, __file__]


def test_an_attribute_that_changes_before_each_call() -> None:
    model = Step()
    compiled = fxsolve.compile(model)
    x = torch.randn(2, 4)
    first_calls = 0
    with torch.no_grad(), pytest.warns(fxsolve.FallbackWarning, match=r"model\.scale was .*, is ") as caught:
        for number in range(3 * ONCE):
            model.scale = float(number)
            assert_same_bits(compiled(x), model(x))
            first_calls += compiled.solution.first
    assert first_calls == 2 * ONCE and len(caught) == 1


def test_whoever_names_a_solver_or_wants_errors_has_each_kind_compiled() -> None:
    x = torch.randn(2, 4)
    for options in ({"solver": fxsolve.GaussSeidel()}, {"fallback": False}):
        compiled = fxsolve.compile(Step(), **options)
        with torch.no_grad():
            for position in range(ONCE + 2):
                compiled(x, position)
                assert compiled.solution.first
