"""Passes that get shorter as the rows become final: eager's bits, whatever is cut, and the original where bits differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxsolve
from fxsolve import GSJacobi, Jacobi, JacobiGS, bands

from .checking import assert_same_bits

N, SIDE, LENGTH = 3, 12, 48
Sampler = Callable[[], Tensor]


@pytest.fixture(autouse=True)
def used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels are used whether they are quicker or not."""
    monkeypatch.setattr(bands, "PAYS", float("inf"))


class Causal(nn.Module):
    """Convolutions that read rows above and columns to the left, at two resolutions."""

    def __init__(self, channels: int = 1, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(channels, width, (2, 3))
        self.above = nn.ModuleList(nn.Conv2d(width, width, (2, 3)) for _ in range(3))
        self.smaller = nn.Conv2d(width, width, (2, 3), 2)
        self.larger = nn.ConvTranspose2d(width, width, (2, 3), 2, output_padding=1)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.pad(x, (1, 1, 1, 0)))
        x = F.pad(x[:, :, :-1], (0, 0, 1, 0))
        for layer in self.above:
            x = x + torch.tanh(layer(F.pad(x, (1, 1, 1, 0))))
        small = torch.relu(self.smaller(F.pad(x, (1, 1, 1, 0))))
        return self.out(torch.cat([x, self.larger(small)[:, :, :-1, 1:-1]], 1)[:, : x.shape[1]] + x)


def rows_in_order(levels: int = 0) -> Sampler:
    net = Causal()

    def sample() -> Tensor:
        x = torch.zeros(N, 1, SIDE, SIDE)
        for i in range(SIDE):
            for j in range(SIDE):
                pixel = torch.tanh(net(x)[:, :, i, j] + torch.randn(N, 1))
                x[:, :, i, j] = torch.round(pixel * levels) / levels if levels else pixel
        return x

    return sample


def columns_in_order() -> Sampler:
    net = Causal()

    def sample() -> Tensor:
        x = torch.zeros(N, 1, SIDE, SIDE)
        for j in range(SIDE):
            for i in range(SIDE):
                x[:, :, i, j] = torch.tanh(net(x.transpose(2, 3))[:, :, j, i] + torch.randn(N, 1))
        return x

    return sample


def signal() -> Sampler:
    """A WaveNet's dilated convolutions, outputs beside the slots."""
    torch.manual_seed(0)
    layers = [nn.Conv1d(1 if k == 0 else 8, 8, 2, dilation=d) for k, d in enumerate((1, 2, 4, 8))]
    last = nn.Conv1d(8, 2, 1)

    def sample() -> Tensor:
        x, logs = torch.zeros(N, 1, LENGTH), []
        for t in range(LENGTH):
            h = F.pad(x[:, :, :-1], (1, 0))
            for layer in layers:
                h = torch.tanh(layer(F.pad(h, (layer.dilation[0], 0))))
            mean, log_scale = last(h)[:, :, t].chunk(2, 1)
            x[:, :, t] = torch.tanh(mean + torch.exp(log_scale) * torch.randn(N, 1))
            logs.append(log_scale)
        return torch.cat([x[:, 0], torch.cat(logs, 1)])

    return sample


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "rows": rows_in_order,
    "rows, quantised": lambda: rows_in_order(4),
    "columns": columns_in_order,
    "signal": signal,
}


def seeded(sample: Sampler, seed: int) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return sample()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("solver", [Jacobi(), GSJacobi(30), JacobiGS(4)], ids=str)
def test_eagers_bits(name: str, solver: Any) -> None:
    sample = SAMPLERS[name]()
    fast = fxsolve.compile(sample, solver=solver)
    for seed in (1, 2, 1):
        assert_same_bits(seeded(fast, seed), seeded(sample, seed))
        (block,) = fast.solution.blocks
        assert (block.kind, fast.solution.fallback) == ("FixedPoint", None)
    if name != "signal":  # whose shorter convolutions round otherwise on some machines: then passes stay whole
        assert "rows, then of those from row" in fast.explain()


def test_no_more_passes_than_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sweeps, and a last pass of all rows is not counted among them."""
    sample = rows_in_order(4)
    fast = fxsolve.compile(sample)
    seeded(fast, 1)
    with_bands = [seeded(fast, 3), fast.solution.blocks[0].frontier]
    monkeypatch.setattr("fxsolve.fixed_point.bands_of", lambda block, network: None)
    other = fxsolve.compile(sample)
    seeded(other, 1)
    assert_same_bits(seeded(other, 3), with_bands[0])
    assert other.solution.blocks[0].frontier == with_bands[1]
    assert "then of those" not in other.explain()


def test_values_that_are_not_finite() -> None:
    """Guesses that overflow on the way."""
    net = Causal()

    def sample() -> Tensor:
        x = torch.zeros(N, 1, SIDE, SIDE)
        for i in range(SIDE):
            for j in range(SIDE):
                x[:, :, i, j] = torch.exp(80 * net(x)[:, :, i, j]).clamp(max=3.0) * torch.rand(N, 1)
        return x

    fast = fxsolve.compile(sample)
    for seed in (1, 2):
        assert_same_bits(seeded(fast, seed), seeded(sample, seed))


@pytest.mark.parametrize("some", [True, False])
def test_a_pass_with_other_bits_is_noticed(some: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong code for some rows: the last pass, of all rows, tells, and all passes are of all rows from then on."""
    generated = bands.generated

    def wrong(graph: Any) -> Callable[..., Any]:
        run = generated(graph)
        if some and not any(node.name.startswith("h_") for node in graph.nodes):
            return run
        return lambda *given: tuple(value + 1e-3 for value in run(*given))

    monkeypatch.setattr(bands, "generated", wrong)
    sample = rows_in_order()
    fast = fxsolve.compile(sample)
    for seed in (1, 2, 3):
        assert_same_bits(seeded(fast, seed), seeded(sample, seed))
        assert fast.solution.blocks[0].kind == "FixedPoint"
    assert "then of those" not in fast.explain()


def test_levels_that_do_not_pay_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "PAYS", 0.0)
    sample = rows_in_order()
    fast = fxsolve.compile(sample)
    for seed in (1, 2):
        assert_same_bits(seeded(fast, seed), seeded(sample, seed))
    assert "then of those" not in fast.explain()
