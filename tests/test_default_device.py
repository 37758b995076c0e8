"""Under a default device, which is a mode of torch's functions, our own tensors are where they must be: here it is one on
which no tensor holds a number.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from examples.made.model import MADE
from examples.rnn.models import LinearGRUCell, Loop
from fxsolve import GaussSeidel, Jacobi, JacobiGS
from fxsolve.solvers import Solver
from tests.checking import assert_certified, assert_same_bits, assert_to_rounding, later_call


class Sampler(nn.Module):
    """MADE's, with a device for each new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MADE(16, (32, 32)).eval()

    def forward(self, start: Tensor) -> Tensor:
        x = torch.zeros_like(start)
        for t in range(x.shape[1]):
            x[:, t] = torch.tanh(self.net(x)[:, t]) + start[:, t]
        return x


@pytest.mark.parametrize("solver", [JacobiGS(16, 10), GaussSeidel(16)], ids=str)
def test_recurrences(solver: Solver) -> None:
    torch.manual_seed(0)
    model = Loop(LinearGRUCell(8, 8))
    x, other = torch.randn(2, 96, 8), torch.randn(2, 96, 8)
    with torch.no_grad():
        theirs, exact = model(x), model.double()(x.double())
        model.float()
        with torch.device("meta"):
            compiled = fxsolve.compile(model, solver=solver)
            ours = later_call(compiled, [x], [other])
            assert_certified(compiled, solver)
    assert_to_rounding(ours, theirs, exact)


def test_gradients() -> None:
    torch.manual_seed(0)
    model, x = Loop(LinearGRUCell(8, 8)), torch.randn(2, 96, 8)
    found = []
    compiled = fxsolve.compile(model, solver=JacobiGS(16, 10))
    for program in (compiled, compiled, model):
        with torch.device("meta"):
            model.zero_grad()
            program(x).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, theirs in zip(found[1], found[2], strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def test_samplers() -> None:
    torch.manual_seed(0)
    model, start = Sampler(), torch.randn(3, 16)
    with torch.no_grad():
        theirs = model(start)
        with torch.device("meta"):
            compiled = fxsolve.compile(model, solver=Jacobi())
            ours = later_call(compiled, [start], [start + 1])
            assert_certified(compiled, Jacobi())
    assert_same_bits(ours, theirs)
