"""Programs that forget nothing, walked in order by generated code: eager's bits, kept only where that is quicker."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fxsolve
import fxsolve.first_call
from tests.checking import assert_same_bits

ROTATION = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q


class Turning(nn.Module):
    """A state that is turned round and round, noise in each step, and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, steps: int = 30) -> tuple[Tensor, Tensor]:
        self.calls += 1
        h, seen = x, []
        for t in range(steps):
            h = h @ ROTATION + 0.01 * self.layer(h) + torch.randn_like(h) / (t + 1)
            seen.append(h[:, :2] * t)
        return h, torch.stack(seen)


def backwards(x: Tensor) -> Tensor:
    h, seen = x[0], []
    for t in range(len(x) - 1, -1, -1):
        h = h @ ROTATION + x[t]
        seen.append(h)
    return torch.stack(seen[::-1])


def assert_alike(compiled: object, fn: object, *args: object) -> None:
    results = []
    for run in (compiled, fn):
        torch.manual_seed(5)
        made = run(*args)  # type: ignore[operator]
        results.append((*made, torch.get_rng_state()) if isinstance(made, tuple) else (made, torch.get_rng_state()))
    for ours, theirs in zip(*results, strict=True):
        assert_same_bits(ours, theirs)


def test_eagers_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxsolve.first_call, "PAYS", math.inf)  # what is tested is not the machine's speed
    model = Turning()
    other = Turning()
    other.load_state_dict(model.state_dict())
    compiled, back = fxsolve.compile(model), fxsolve.compile(backwards)
    with torch.no_grad():
        for steps in (30, 30, 12, 30):
            assert_alike(compiled, other, torch.randn(3, 6), steps)
        assert_same_bits(model.calls, other.calls)
        (block,) = compiled.solution.blocks
        assert (block.certificate, block.steps, block.residual) == ("in order", 30, 0.0)
        assert compiled.solution.fallback is None and "solver: GaussSeidel()" in compiled.explain()
        for _ in range(3):
            assert_alike(back, backwards, torch.randn(20, 2, 6))
        assert back.solution.blocks[0].certificate == "in order"


def test_kept_only_where_it_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxsolve.first_call, "PAYS", 0.0)
    compiled = fxsolve.compile(backwards)
    with torch.no_grad():
        for _ in range(3):
            assert_alike(compiled, backwards, torch.randn(20, 2, 6))
    assert compiled.solution.fallback.startswith("the original runs, in order: ")


def test_gradients_keep_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxsolve.first_call, "PAYS", math.inf)
    compiled = fxsolve.compile(backwards)
    for _ in range(2):
        x = torch.randn(20, 2, 6, requires_grad=True)
        (ours,) = torch.autograd.grad(compiled(x).sum(), x)
        (theirs,) = torch.autograd.grad(backwards(x).sum(), x)
        assert_same_bits(ours, theirs)
    assert "in order" in compiled.solution.fallback


def test_a_race_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What steps of generated code take, one by one, says nothing of the original."""
    monkeypatch.setattr(fxsolve.first_call, "PAYS", math.inf)
    compiled = fxsolve.compile(backwards)
    with torch.no_grad():
        compiled(torch.randn(20, 2, 6))
    timings = compiled._compiler.last.timings
    assert timings["original"] > 0 and timings["compiled"] > 0 and "original, at the least" not in timings
