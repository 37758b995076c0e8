"""Loops that apply one function again and again end at the first bitwise repeat, with eager's bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxsolve

from .checking import assert_same_bits

WIDTH = 24


def check(program: Callable[..., Any], *args: Tensor) -> Any:
    """Two calls of the compiled program give eager's bits."""
    compiled = fxsolve.compile(program)
    for _ in range(2):
        with torch.no_grad():
            torch.manual_seed(3)
            ours = compiled(*args)
            torch.manual_seed(3)
            assert_same_bits(ours, program(*args))
    return compiled


class MaskedFlow(nn.Module):
    """A masked affine autoregressive transform, inverted as flow packages do it: WIDTH passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, 64), nn.Linear(64, 2 * WIDTH)
        degrees, hidden = torch.arange(WIDTH), torch.arange(64) % (WIDTH - 1)
        self.register_buffer("in_mask", (hidden[:, None] >= degrees).float())
        self.register_buffer("out_mask", (degrees[:, None] > hidden).float().repeat(2, 1))

    def parameters_at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(F.linear(x, self.first.weight * self.in_mask, self.first.bias))
        shift, log_scale = F.linear(h, self.second.weight * self.out_mask, self.second.bias).chunk(2, -1)
        return shift, torch.tanh(log_scale)

    def inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1]):
            shift, log_scale = self.parameters_at(x)
            x = (y - shift) * torch.exp(-log_scale)
        return x

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, ladj = torch.zeros_like(y), torch.zeros(())
        for _ in range(y.shape[-1]):
            shift, log_scale = self.parameters_at(x)
            x = (y - shift) * torch.exp(-log_scale)
            ladj = -log_scale.sum(-1)
        return x, ladj


def block_of(compiled):
    assert compiled.solution.fallback is None, compiled.explain()
    (block,) = compiled.solution.blocks
    return block


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxsolve.first_call, "PAYS", float("inf"))  # what is tested is not the machine's speed


@pytest.mark.parametrize("method", ["inverse", "inverse_and_ladj"])
def test_a_masked_flow(method: str) -> None:
    compiled = check(getattr(MaskedFlow(), method), torch.randn(5, WIDTH))
    block = block_of(compiled)
    assert block.kind == "Repeat" and block.residual == 0.0
    assert block.steps < block.equations and block.frontier[-1] == block.equations
    assert "bit for bit" in block.certificate


def newton(a: Tensor) -> Tensor:
    x = torch.ones_like(a)
    for _ in range(100):
        x = 0.5 * (x + a / x)
    return x


def test_newton_stops_where_it_repeats() -> None:
    """Cubes and squares of powers of two are reached exactly; others stay, or turn between two neighbours."""
    compiled = check(newton, 4.0 ** torch.arange(-3, 6))
    assert block_of(compiled).steps < 20


def test_other_values_may_take_longer() -> None:
    compiled = fxsolve.compile(newton)
    compiled(torch.full((3,), 4.0))
    hard = torch.tensor([1e30, 1e-30, 4.0])
    assert torch.equal(compiled(hard), newton(hard))
    assert block_of(compiled).steps > 20


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float) -> None:
    compiled = check(newton, torch.tensor([4.0, bad]))
    assert block_of(compiled).steps < 100


def test_several_states_and_a_dead_one() -> None:
    def program(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, last = a, torch.zeros_like(a), a
        for _ in range(60):
            last = x * 2
            x, y = torch.floor(x / 2), torch.floor((x + y) / 2)
        return x, y, last

    compiled = check(program, torch.tensor([1000.0, 7.0]))
    assert block_of(compiled).kind == "Repeat" and block_of(compiled).steps < 20


def kinds(compiled) -> set[str]:
    return {block.kind for block in compiled.solution.blocks}


def test_a_counter_disables_it() -> None:
    def program(x: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.zeros((), dtype=torch.long)
        for _ in range(40):
            x, count = torch.floor(x / 2), count + 1
        return x, count

    assert "Repeat" not in kinds(check(program, torch.tensor([5.0])))


def test_noise_disables_it() -> None:
    def program(x: Tensor) -> Tensor:
        for _ in range(40):
            x = torch.floor(x / 2) + torch.floor(1.001 * torch.rand(2))
        return x

    assert "Repeat" not in kinds(check(program, torch.tensor([5.0, 3.0])))


def test_a_cycle_never_repeats() -> None:
    def program(x: Tensor) -> Tensor:
        for _ in range(41):
            x = -x
        return x

    assert "Repeat" not in kinds(check(program, torch.tensor([5.0, 3.0])))


def test_all_steps_asked_for() -> None:
    def program(x: Tensor) -> Tensor:
        found = []
        for _ in range(40):
            x = torch.floor(x / 2)
            found.append(x)
        return torch.stack(found)

    assert "Repeat" not in kinds(check(program, torch.tensor([5.0, 3.0])))
