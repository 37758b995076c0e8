"""A step as a function that walks all steps: golden text, the bits of the step called again and again, random bodies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from fxsolve.ir import CARRY, CONST, STACKED, Recurrence, placeholders, to_text
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.looped import looped, looped_source
from fxsolve.passes.reuse import reuse
from fxsolve.passes.split_step import split_step
from tests.passes.random_loops import arguments, states_loop
from tests.passes.running import program_of

T, N, D = 12, 2, 3
torch.manual_seed(0)
WEIGHT = torch.randn(D, D)


def recurrent(x: Tensor, h: Tensor) -> Tensor:
    out = []
    for t in range(len(x)):
        a = torch.sigmoid(h @ WEIGHT + x[t])
        h = torch.tanh(a * h) + t
        out.append(a)
    return torch.stack(out)


def agrees(block: Recurrence, seed: int) -> None:
    """The walk against the core, called step by step."""
    core = split_step(block).core
    generator = torch.Generator().manual_seed(seed)

    def example(prefix: str) -> list[Tensor]:
        kinds = [node.meta["type"] for node in placeholders(core, prefix)]
        return [k.empty().copy_(2 * torch.rand(k.shape, generator=generator)) for k in kinds]

    state, consts = example(CARRY), example(CONST)
    rows = [tuple(example("u")) for _ in range(block.length)]
    indices = list(zip(*block.table, strict=True)) or [()] * block.length
    states, extras = looped(reuse(core), block.carries)(state, rows, indices, consts)
    step = fx.GraphModule({}, core)
    for given, index, new, extra in zip(rows, indices, states, extras, strict=True):
        made = step(*state, *given, *index, *consts)
        state = made[: block.carries]
        for ours, theirs in zip([*new, *extra], made, strict=True):
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def walks_whole(block: Recurrence, seed: int) -> None:
    """The walk of a whole step, of which the last state alone is kept, against the step called again and again."""
    generator = torch.Generator().manual_seed(seed)

    def example(prefix: str) -> list[Tensor]:
        kinds = [node.meta["type"] for node in placeholders(block.step, prefix)]
        return [k.empty().copy_(2 * torch.rand(k.shape, generator=generator)) for k in kinds]

    state, consts = example(CARRY), example(CONST)
    rows = [tuple(example(STACKED)) for _ in range(block.length)]
    indices = list(zip(*block.table, strict=True)) or [()] * block.length
    torch.manual_seed(seed)  # a step may draw random numbers
    last, extras = looped(reuse(block.step), block.carries, STACKED, last=True)(state, rows, indices, consts)
    step = fx.GraphModule({}, block.step)
    torch.manual_seed(seed)
    for given, index, extra in zip(rows, indices, extras, strict=True):
        made = step(*state, *given, *index, *consts)
        state = made[: block.carries]
        for ours, theirs in zip(extra, made[block.carries :], strict=True):
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    for ours, theirs in zip(last, state, strict=True):
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_golden(golden: Callable[[str, str], None]) -> None:
    (block,) = hoist_invariants(program_of(recurrent, torch.randn(T, N, D), torch.randn(N, D))).blocks.values()
    assert isinstance(block, Recurrence)
    core = split_step(block).core
    golden("looped", to_text(core) + "\n\n-->\n\n" + looped_source(core, block.carries)[0])
    agrees(block, 0)
    golden("looped_whole", looped_source(block.step, block.carries, STACKED, last=True)[0])
    walks_whole(block, 0)


@pytest.mark.parametrize("seed", range(40))
def test_random_loops(seed: int) -> None:
    fn, args = states_loop(seed), arguments(seed)
    for block in hoist_invariants(program_of(fn, *args)).blocks.values():
        assert isinstance(block, Recurrence)
        agrees(block, seed)
        walks_whole(block, seed)
