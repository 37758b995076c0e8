"""Golden texts of the passes from tape to program on a few small programs, and that a second run changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxsolve.ir import Program, Recurrence, to_text
from fxsolve.passes.build import build
from fxsolve.passes.clean import clean
from fxsolve.passes.functionalize import functionalize
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.hoist_noise import hoist_noise
from fxsolve.passes.roll import roll
from fxsolve.passes.settle import settle
from fxsolve.passes.slots import fixed_point, outputs_from_buffers
from fxsolve.passes.split_step import split_step
from fxsolve.passes.units import unit_step
from tests.passes.running import agrees, tape_of

torch.manual_seed(0)
WEIGHT, BIAS = torch.randn(3, 3), torch.randn(3)
MASK = torch.tril(torch.ones(6, 6), -1)
HELD = torch.randn(6, 6)


def recurrent(x: Tensor) -> Tensor:
    h, outs = torch.zeros(2, 3), []
    for t in range(x.shape[0]):
        h = torch.tanh(F.linear(x[t] + h, WEIGHT, BIAS))
        outs.append(h * 2)
    return torch.stack(outs)


def in_place(y: Tensor) -> Tensor:
    for t in range(2, y.shape[1]):
        y[:, t] = 0.5 * y[:, t - 1] + y[:, t - 2] * t
    return y


def sampler(n: Tensor) -> Tensor:
    x = torch.zeros(2, 6)
    for i in range(6):
        x[:, i] = torch.relu(F.linear(x, HELD * MASK))[:, i] + torch.randn(2)
    return x


def masked_in_place(n: Tensor) -> Tensor:
    x = torch.zeros(2, 6)
    for i in range(6):
        HELD.mul_(MASK)
        x[:, i] = F.linear(x, HELD)[:, i] + n[:, i]
    return x


PROGRAMS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "recurrent": (recurrent, (6, 2, 3)),
    "in_place": (in_place, (2, 8)),
    "sampler": (sampler, (1,)),
    "masked_in_place": (masked_in_place, (2, 6)),
}


def example(name: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    fn, shape = PROGRAMS[name]
    return fn, torch.randn(shape, generator=torch.Generator().manual_seed(1))


def block_of(program: Program) -> Recurrence:
    (block,) = program.blocks.values()
    assert isinstance(block, Recurrence)
    return block


def shown(program: Program) -> str:
    blocks = [f"{b.name}, {b.length} steps, table {b.table}\n{to_text(b.step)}" for b in program.blocks.values()]  # type: ignore[union-attr]
    return "\n\n".join([to_text(program.graph), *blocks])


@pytest.mark.parametrize("name", PROGRAMS)
def test_tape_passes(name: str, golden: Callable[[str, str], None]) -> None:
    fn, x = example(name)
    recorded = tape_of(fn, x)
    functional = functionalize(recorded)
    cleaned = clean(functional)
    golden(f"tape_{name}", "\n\n-->\n\n".join(t.text() for t in (recorded, functional, cleaned)))
    assert all(functional.symbols.items[number].outputs for number in functional.symbol), "an in-place row is left"
    assert clean(cleaned).text() == cleaned.text()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_passes(name: str, golden: Callable[[str, str], None]) -> None:
    fn, x = example(name)
    tape = clean(functionalize(tape_of(fn, x)))
    built = build(tape, roll(tape))
    stages = [built]
    for run in (hoist_invariants, settle, outputs_from_buffers, hoist_noise):
        stages.append(run(stages[-1]))
        assert shown(run(stages[-1])) == shown(stages[-1]), f"{run.__name__} changes its own result"
    golden(f"program_{name}", "\n\n-->\n\n".join(map(shown, [built, stages[-1]])))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_stage_agrees_with_eager(name: str) -> None:
    fn, x = example(name)
    agrees(fn, x)


def test_split_and_units(golden: Callable[[str, str], None]) -> None:
    fn, x = example("recurrent")
    block = block_of(agrees(fn, x))
    split = split_step(block)
    parts = {"pre": split.pre, "core": split.core, "post": split.post, "units of core": unit_step(split.core, block.carries)}
    texts = [f"{name}:\n{to_text(graph)}" for name, graph in parts.items()]
    golden("split_step", "\n\n".join([to_text(block.step), "-->", *texts, f"outputs: {split.outputs}"]))


def test_network_and_head(golden: Callable[[str, str], None]) -> None:
    fn, x = example("sampler")
    found = fixed_point(block_of(agrees(fn, x)))
    assert not isinstance(found, str), found
    texts = ["network:", to_text(found.network), "", "head:", to_text(found.head), "", f"slots: {found.slots}"]
    golden("fixed_point", "\n".join(texts))


def test_a_masked_weight_leaves_the_state() -> None:
    fn, x = example("masked_in_place")
    HELD.mul_(MASK)
    block = block_of(agrees(fn, x))
    assert block.carries == 1 and not isinstance(fixed_point(block), str)
