"""The gradients of a loop's invariants from the cotangents of its states: golden text, equal to autograd's, random bodies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from fxsolve.ir import CARRY, CONST, STACKED, Recurrence, placeholders, to_text
from fxsolve.passes.adjoint import adjoint
from fxsolve.passes.pull_back import pull_back
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from tests.passes.random_loops import body
from tests.passes.test_adjoint import STEPS, WEIGHT, block_of


def agrees(block: Recurrence, bound: float = 1e-12) -> None:
    """All steps as one call, against autograd through each step, from the same cotangents."""
    found = adjoint(block)
    count = block.carries + block.stacked
    wanted = list(range(block.consts))
    graph, places = pull_back(block, found, wanted)
    generator = torch.Generator().manual_seed(0)

    def example(prefix: str, *lead: int) -> list[Tensor]:
        kinds = [node.meta["type"] for node in placeholders(block.step, prefix)]
        return [torch.randn(*lead, *k.shape, generator=generator).to(k.dtype) for k in kinds]

    stacks, consts = [*example(CARRY, block.length), *example(STACKED, block.length)], example(CONST)
    step = fx.GraphModule({}, block.step)
    returned = [*found.moving, *(block.carries + k for k in found.asked)]
    sums: dict[int, Tensor] = {}
    cotangents: list[list[Tensor]] = [[] for _ in returned]
    for t in range(block.length):
        inputs = [x[t].clone().requires_grad_() for x in stacks] + [c.clone().requires_grad_() for c in consts]
        made = [step(*inputs[:count], *(column[t] for column in block.table), *inputs[count:])[k] for k in returned]
        drawn = [torch.randn(y.shape, dtype=y.dtype, generator=generator) for y in made]
        for column, c in zip(cotangents, drawn, strict=True):
            column.append(c)
        pairs = [(y, c) for y, c in zip(made, drawn, strict=True) if y.requires_grad]
        gradients = torch.autograd.grad([y for y, _ in pairs], inputs, [c for _, c in pairs], allow_unused=True)
        for i, g in enumerate(gradients):
            if g is not None:
                sums[i] = torch.stack([*sums.get(i, torch.empty(0, *g.shape, dtype=g.dtype)), g])
    dx = [sums[block.carries + i] for i in found.reached]
    ours = generated(reuse(graph))(*[torch.stack(c) for c in cotangents], *dx, *stacks, *consts)
    assert places == [i for i in wanted if count + i in sums]
    for i, g in zip(places, ours, strict=True):
        theirs = sums[count + i].sum(0)
        assert torch.allclose(g, theirs, rtol=bound, atol=bound * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("name", [name for name in STEPS if name != "detached"])
def test_gradients_of_invariants(name: str) -> None:
    agrees(block_of(STEPS[name]))


def test_golden(golden: Callable[[str, str], None]) -> None:
    block = block_of(lambda h, x: torch.tanh(h @ WEIGHT + x))
    graph, places = pull_back(block, adjoint(block), [0])
    golden("pull_back", to_text(block.step) + f"\n\n--> {places}\n\n" + to_text(graph))


@pytest.mark.parametrize("seed", range(40))
def test_random_bodies(seed: int) -> None:
    agrees(block_of(lambda h, x: body(seed, [h, x]), torch.float32), 1e-4)
