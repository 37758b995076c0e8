"""Weights that are parts of one memory, as cuDNN's flattened ones are: read where they are, and followed when they move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from fxsolve import JacobiGS
from tests.checking import assert_certified, assert_close


class Flat(nn.Module):
    """A recurrence whose two weights lie in one memory."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.randn(2 * 6 * 6) / 3
        self.u, self.w = (nn.Parameter(memory[k * 36 : (k + 1) * 36].view(6, 6)) for k in (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros(x.shape[0], 6), []
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] @ self.u + 0.5 * h @ self.w)
            out.append(h)
        return torch.stack(out, 1)


def test_writes_are_seen_and_moves_are_followed() -> None:
    torch.manual_seed(0)
    model, x = Flat(), torch.randn(2, 64, 6)
    compiled = fxsolve.compile(model, solver=JacobiGS(16, 10))
    with torch.no_grad():
        compiled(x)
        assert_close(compiled(x), model(x))
        assert_certified(compiled)
        model.w.mul_(0.5)
        assert_close(compiled(x), model(x))
        assert_certified(compiled)
        model.u.data = model.u.data * 0.5
        for _ in range(2):  # recorded anew, and replayed
            assert_close(compiled(x), model(x))
        assert_certified(compiled)


def test_gradients_are_the_originals() -> None:
    model, x = Flat(), torch.randn(2, 64, 6)
    compiled = fxsolve.compile(model)
    with pytest.warns(fxsolve.FallbackWarning, match="parts of one memory"):
        out = compiled(x)
    out.sum().backward()
    assert model.u.grad is not None


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_modules_stay_one_call_on_a_gpu(kind: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxsolve.doors.acceptable", lambda x: True)
    model, x = kind(4, 4, num_layers=2, bidirectional=True, batch_first=True), torch.randn(2, 64, 4)
    memory = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    parts = memory.split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.data = part.view(p.shape)
    compiled = fxsolve.compile(model)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(compiled(x)[0], model(x)[0])
    assert "no sequential part" in compiled.solution.fallback
