"""Tensors that grow by cat are named, with the line; others are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fxsolve
from fxsolve.capture import record
from fxsolve.errors import FallbackWarning
from fxsolve.passes.growth import STEPS, growth


def grow(x: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        x = torch.cat([x, x[:, -1:].sin()], 1)
    return x


def join(x: Tensor) -> Tensor:
    parts = [x]
    for _ in range(9):
        parts.append(torch.cat([parts[-1][:, 1:], x[:, :1]], 1))  # a window of one length
    return torch.cat(parts, 1)


def rotary(x: Tensor, steps: int) -> Tensor:
    """Joins halves in every step, as rotary positions do."""
    for _ in range(steps):
        left, right = x[:, -1:].sin(), x[:, -1:].cos()
        x = torch.cat([x, torch.cat([left, right], 0).sum(0, keepdim=True)], 1)
    return x


def test_cats_inside_the_steps() -> None:
    assert growth(record(rotary, (torch.randn(1, 3), 9), {}, {}).tape) is not None


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS, 20])
def test_lengthened_step_by_step(steps: int) -> None:
    found = growth(record(grow, (torch.randn(2, 3), steps), {}, {}).tape)
    assert (found is None) == (steps < STEPS)
    assert found is None or f"{__file__}:{grow.__code__.co_firstlineno + 2}" in found


def test_one_cat_of_a_list_is_no_growth() -> None:
    assert growth(record(join, (torch.randn(2, 3),), {}, {}).tape) is None


def test_the_user_is_told() -> None:
    compiled = fxsolve.compile(grow)
    with pytest.warns(FallbackWarning, match="buffer of the final length"):
        first = compiled(torch.ones(2, 3), 12)
    assert torch.equal(first, grow(torch.ones(2, 3), 12))
    assert "lengthened by cat" in compiled.explain()


def test_the_layers_of_a_densenet_are_no_loop() -> None:
    layers = torch.nn.ModuleList(torch.nn.Linear(4 + k, 1) for k in range(12))

    def dense(x: Tensor) -> Tensor:
        for layer in layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return x

    known = dict(layers.named_parameters())
    with torch.no_grad():
        assert growth(record(dense, (torch.randn(2, 4),), {}, known).tape) is None
