"""Gaps: what is computed in place in a part of a tensor has eager's last bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

import fxsolve
from fxsolve import GaussSeidel, JacobiGS
from fxsolve.ir import Recurrence, to_text
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.layouts import without_gaps
from tests.checking import assert_same_bits
from tests.passes.running import program_of

LENGTH = 12
torch.manual_seed(0)
WEIGHT = torch.randn(128, 64)


def gated(x: Tensor, width: int) -> Tensor:
    """Gates as C++ cells compute them: in place, in the parts of one product."""
    h = torch.zeros(x.shape[1], width)
    for t in range(LENGTH):
        gates = F.linear(h, WEIGHT[: 2 * width, :width])
        a, b = gates[:, :width], gates[:, width:]
        a.add_(x[t]).sigmoid_()
        b.sub_(x[t]).sigmoid_()
        h = a * b
    return h


@pytest.mark.parametrize("width", [3, 8, 12, 16, 20, 32, 64])
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_eagers_bits_in_order(width: int, batch: int) -> None:
    x = torch.randn(LENGTH, batch, width)
    fast = fxsolve.compile(gated, solver=GaussSeidel())
    for _ in range(2):
        assert_same_bits(fast(x, width), gated(x, width))
    assert fast.solution.blocks[0].solver == "GaussSeidel()"


def step_of(width: int, batch: int) -> fx.Graph:
    program = hoist_invariants(program_of(lambda x: gated(x, width), torch.randn(LENGTH, batch, width)))
    (block,) = program.blocks.values()
    assert isinstance(block, Recurrence)
    return block.step


def test_golden(golden: Callable[[str, str], None]) -> None:
    """The sums stand in parts of a product, for the sigmoids; parallel blocks do without."""
    step = step_of(8, 3)
    golden("gaps", "\n".join([to_text(step), "-->", to_text(without_gaps(step))]))


def test_values_without_gaps_stay_as_they_are() -> None:
    step = step_of(8, 1)
    assert to_text(without_gaps(step)) == to_text(step)


def test_parallel_blocks_are_certified() -> None:
    x = torch.randn(LENGTH, 3, 8)
    fast = fxsolve.compile(gated, solver=JacobiGS(4))
    torch.testing.assert_close(fast(x, 8), gated(x, 8))
