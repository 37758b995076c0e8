"""Split a step: pre, core and post together are the step, and each does what it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxsolve.ir import CARRY, CONST, INDEX, Recurrence, calls, placeholders
from fxsolve.passes.split_step import SplitStep, split_step
from tests.passes import random_loops
from tests.passes.running import agrees, program_of, same

T, B, D = 12, 2, 3
torch.manual_seed(0)
X = torch.randn(B, T, D)
LSTM, READ = nn.LSTMCell(D, D), nn.Linear(D, 5)
BIAS = torch.randn(B)


def run(graph: fx.Graph, *values: Any) -> list[Tensor]:
    return list(fx.GraphModule({}, graph)(*values))


def check(block: Recurrence) -> SplitStep:
    """One step in three parts against the step itself, on random values."""
    split = split_step(block)
    generator = torch.Generator().manual_seed(1)
    given: dict[str, Any] = {}
    for node in placeholders(block.step):
        kind = node.meta["type"]
        if node.name.startswith(INDEX):
            given[node.name] = block.table[int(node.name[1:])][1]
        elif kind.dtype.is_floating_point:
            given[node.name] = kind.empty().copy_(torch.randn(kind.shape, generator=generator))
        else:
            given[node.name] = kind.empty().fill_(1)
    wanted = run(block.step, *given.values())
    carries = [v for name, v in given.items() if name.startswith(CARRY)]
    stacked = [v for name, v in given.items() if name.startswith("x")]
    rest = [v for name, v in given.items() if name.startswith((INDEX, CONST))]
    hoisted = run(split.pre, *stacked, *rest)
    core = run(split.core, *carries, *hoisted, *rest)
    new, extras = core[: block.carries], core[block.carries :]
    post = run(split.post, *carries, *new, *extras, *hoisted, *rest)
    made = {"carry": new, "extra": extras, "pre": hoisted, "post": post}
    same(new, wanted[: block.carries], "the new state")
    same([made[kind][number] for kind, number in split.outputs], wanted[block.carries :], "the outputs")
    assert (len(hoisted), len(extras)) == (split.hoisted, split.extras)
    return split


def names(graph: fx.Graph) -> list[str]:
    return [getattr(node.target, "__name__", "") for node in calls(graph)]


def written_lstm(x: Tensor) -> Tensor:
    h = c = torch.zeros(B, D)
    outs = []
    for t in range(T):
        h, c = LSTM(x[:, t], (h, c))
        outs.append(READ(h).softmax(-1))
    return torch.stack(outs)


def test_projections_before_and_readouts_after() -> None:
    (block,) = agrees(written_lstm, X).blocks.values()
    assert isinstance(block, Recurrence)
    split = check(block)
    assert names(split.pre).count("addmm.default") == 1
    assert names(split.core).count("addmm.default") == 1
    assert names(split.post).count("addmm.default") == 1 and "_softmax.default" in names(split.post)


def state_given_back(x: Tensor) -> Tensor:
    """Outputs of every kind: the old state, the new one, inputs, invariants, what only depends on inputs, numbers."""
    y = torch.zeros(6, B, T)
    h = torch.zeros(B)
    for t in range(T):
        y[0, :, t] = h
        y[1, :, t] = x[:, t, 0]
        y[2, :, t] = BIAS
        z = torch.sin(x[:, t, 1]) * t
        y[3, :, t] = z
        new = torch.tanh(h + z)
        y[4, :, t] = new.exp() - h
        h = new
        y[5, :, t] = h
    return y


def test_outputs_of_every_kind() -> None:
    (block,) = agrees(state_given_back, X).blocks.values()
    assert isinstance(block, Recurrence)
    kinds = [kind for kind, _ in check(block).outputs]
    assert set(kinds) == {"pre", "post", "carry"}


def reset(x: Tensor) -> Tensor:
    """A state that is set to what does not depend on it, and one that is handed on."""
    h, g, outs = torch.zeros(B), torch.ones(B), []
    for t in range(T):
        outs.append(h * g)
        h, g = x[:, t, 0] * 2, torch.tanh(h + g)
    return torch.stack(outs) + h + g


def two_results(x: Tensor) -> Tensor:
    h, outs = torch.zeros(B, D), []
    for t in range(T):
        gates = torch.cat([h + x[:, t], h - x[:, t]], 1)
        a, b = gates.chunk(2, 1)
        h = torch.tanh(a)
        outs.append(b * 2)
    return torch.stack(outs)


@pytest.mark.parametrize("fn", [reset, two_results])
def test_states_and_parts(fn: Callable[[Tensor], Tensor]) -> None:
    (block,) = agrees(fn, X).blocks.values()
    assert isinstance(block, Recurrence)
    check(block)


@pytest.mark.parametrize("low", range(0, 24, 12))
def test_random_steps(low: int) -> None:
    checked = 0
    for seed in range(low, low + 12):
        for kind in (random_loops.states_loop, random_loops.buffer_loop):
            for block in agrees(kind(seed), *random_loops.arguments(seed), values=False).blocks.values():
                assert isinstance(block, Recurrence)
                if not any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in calls(block.step)):
                    check(block)
                    checked += 1
    assert checked >= 12


def test_a_step_without_a_state_is_all_before() -> None:
    def independent(x: Tensor) -> Tensor:
        return torch.stack([torch.tanh(x[:, t] @ READ.weight.t()) * 2 for t in range(T)])

    block = program_of(independent, X).blocks["block0"]
    assert isinstance(block, Recurrence)
    split = check(block)
    assert not names(split.core) and not names(split.post)
