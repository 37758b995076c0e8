"""Keep gaps: what is computed in place in a part of a tensor has eager's last bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fxsolve
from fxsolve import GaussSeidel
from fxsolve.ir import Recurrence, to_text
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.keep_gaps import keep_gaps
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


def test_golden_and_idempotence(golden: Callable[[str, str], None]) -> None:
    program = hoist_invariants(program_of(lambda x: gated(x, 8), torch.randn(LENGTH, 3, 8)))
    (block,) = program.blocks.values()
    assert isinstance(block, Recurrence)
    kept = keep_gaps(block.step)
    assert to_text(keep_gaps(kept)) == to_text(kept)
    golden("keep_gaps", "\n".join([to_text(block.step), "-->", to_text(kept)]))


def test_dense_values_stay_as_they_are() -> None:
    program = hoist_invariants(program_of(lambda x: gated(x, 8), torch.randn(LENGTH, 1, 8)))
    (block,) = program.blocks.values()
    assert isinstance(block, Recurrence)
    assert to_text(keep_gaps(block.step)) == to_text(block.step)
