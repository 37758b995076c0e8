"""Samplers of more shapes: channels in turn, a given upper half, several buffers, wrong orders, other spellings of masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsolve
from examples.samplers.models import PixelCNN
from fxsolve.choice import quick_enough
from fxsolve.iterates import keep_iterates

from .test_samplers import assert_collapsed, assert_not_collapsed, check

SIDE = 5


def channel_mask(outside: int, inside: int, size: int, strict: bool) -> Tensor:
    """Pixels above and to the left; at the pixel itself red before green before blue (channels in threes)."""
    mask = torch.ones(outside, inside, size, size)
    middle = size // 2
    mask[:, :, middle, middle + 1 :] = 0
    mask[:, :, middle + 1 :] = 0
    later = torch.arange(inside) % 3 > torch.arange(outside)[:, None] % 3 - int(strict)
    mask[:, :, middle, middle][later] = 0
    return mask


class Masked(nn.Conv2d):
    """One of the three common spellings of a masked convolution."""

    def __init__(self, inside: int, outside: int, size: int, strict: bool, how: str) -> None:
        super().__init__(inside, outside, size, padding=size // 2)
        self.how = how
        self.register_buffer("mask", channel_mask(outside, inside, size, strict))
        if how == "once":
            with torch.no_grad():
                self.weight.mul_(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "product":
            return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)
        if self.how == "data":
            self.weight.data *= self.mask
        return super().forward(x)


class Colours(nn.Module):
    """Red, green and blue of each pixel in turn."""

    def __init__(self, how: str = "product") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            Masked(3, 12, 5, True, how), nn.ELU(), Masked(12, 12, 3, False, how), nn.ELU(), Masked(12, 3, 1, False, how)
        )

    def in_turn(self, n: int) -> Tensor:
        x = torch.zeros(n, 3, SIDE, SIDE)
        for i in range(SIDE):
            for j in range(SIDE):
                for c in range(3):
                    x[:, c, i, j] = torch.tanh(self.net(x)[:, c, i, j] + 0.3 * torch.randn(n))
        return x

    def columns_first(self, n: int) -> Tensor:
        x = torch.zeros(n, 3, SIDE, SIDE)
        for j in range(SIDE):
            for i in range(SIDE):
                for c in range(3):
                    x[:, c, i, j] = torch.tanh(self.net(x)[:, c, i, j] + 0.3 * torch.randn(n))
        return x

    def all_at_once(self, n: int) -> Tensor:
        x = torch.zeros(n, 3, SIDE, SIDE)
        for i in range(SIDE):
            for j in range(SIDE):
                x[:, :, i, j] = torch.tanh(self.net(x)[:, :, i, j] + 0.3 * torch.randn(n, 3))
        return x


@pytest.mark.parametrize("how", ["product", "data", "once"])
def test_channels_in_turn(how: str) -> None:
    compiled = check(Colours(how).in_turn, 2, solver=fxsolve.Jacobi(), exactness="rounding")
    assert_collapsed(compiled)
    assert compiled.solution.blocks[0].equations == 3 * SIDE * SIDE


@pytest.mark.parametrize("name", ["columns_first", "all_at_once"])
def test_another_order_than_the_masks(name: str) -> None:
    compiled = check(getattr(Colours(), name), 2)
    assert_not_collapsed(compiled)
    assert "not causal" in compiled.explain()


def complete(net: PixelCNN, top: Tensor, label: Tensor, temperature: float) -> Tensor:
    """The lower half of images whose upper half is given."""
    x = torch.cat([top, torch.zeros_like(top)], 2)
    for i in range(top.shape[2], 2 * top.shape[2]):
        for j in range(top.shape[3]):
            probabilities = torch.softmax(net(x, label)[:, :, i, j] / temperature, -1)
            x[:, 0, i, j] = torch.multinomial(probabilities, 1)[:, 0] / (net.levels - 1)
    return x


def test_a_given_upper_half() -> None:
    torch.manual_seed(0)
    net = PixelCNN(8, 4, 10, 16, 2).eval()
    compiled = check(complete, net, torch.rand(2, 1, 4, 8), torch.tensor([3, 4]), 0.7, solver=fxsolve.Jacobi())
    assert_collapsed(compiled)
    assert compiled.solution.blocks[0].equations == 32
    sharper = fxsolve.compile(complete, solver=fxsolve.Jacobi())
    for temperature in (0.7, 0.2):  # another number is another program
        torch.manual_seed(1)
        ours = sharper(net, torch.zeros(2, 1, 4, 8), torch.tensor([3, 4]), temperature)
        torch.manual_seed(1)
        assert torch.equal(ours, complete(net, torch.zeros(2, 1, 4, 8), torch.tensor([3, 4]), temperature))


def test_real_numbers_and_whole_ones_side_by_side() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(16, 16).tril(-1), torch.randn(16, 16).tril(-1)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x, y = torch.zeros(n, 16), torch.zeros(n, 16, dtype=torch.long)
        for t in range(16):
            h = torch.tanh(x @ a.t() + y.float() @ b.t())
            x[:, t] = h[:, t] + 0.1 * torch.randn(n)
            y[:, t] = torch.bernoulli(torch.sigmoid(3 * h[:, t])).long()
        return x, y

    assert_collapsed(check(sample, 3, solver=fxsolve.Jacobi()))


def test_iterates_are_kept_on_demand() -> None:
    model = Colours()
    compiled = check(model.in_turn, 2, solver=fxsolve.Jacobi(), exactness="rounding")
    torch.manual_seed(4)
    with keep_iterates() as notes, torch.no_grad():
        final = compiled(2)
    (block,) = compiled.solution.blocks
    (iterates,) = notes.blocks.values()
    assert [i.steps for i in iterates] == list(range(1, block.sweeps + 1)) and block.sweeps > 3
    done = block.frontier[2]
    rows = iterates[2].state[0].permute(0, 2, 3, 1).reshape(2, -1)
    assert torch.equal(rows[:, :done], final.permute(0, 2, 3, 1).reshape(2, -1)[:, :done])
    assert not torch.equal(iterates[0].state[0], final)


class Runner:
    def __init__(self, least: float | None, seconds: float) -> None:
        self.least = least
        self.solution = type("", (), {"seconds": seconds})()


def test_the_original_is_timed_only_where_that_could_matter() -> None:
    def executable(*runners: Runner) -> Any:
        return type("", (), {"runners": dict(enumerate(runners))})()

    assert quick_enough(executable(Runner(1.0, 0.5))) == (1.0, 0.5)
    assert quick_enough(executable(Runner(1.0, 0.99))) is None
    assert quick_enough(executable(Runner(1.0, 0.5), Runner(None, 0.6))) is None  # a block of which nothing is known
