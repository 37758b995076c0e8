"""The adjoint program is the vector-Jacobian product of the loop: golden text, equal values in float64, random bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxsolve.ir import CARRY, STACKED, Recurrence, placeholders, results, to_text
from fxsolve.passes.adjoint import NotDifferentiable, adjoint
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.split_step import inputs_apart
from fxsolve.tape import Output
from tests.passes.random_loops import body
from tests.passes.running import program_of, run_program

T, N, D = 9, 2, 3
Step = Callable[[Tensor, Tensor], Tensor]


def block_of(step: Step, dtype: torch.dtype = torch.float64) -> Recurrence:
    """The rest of a loop's step once its inputs are apart; it returns the state and twice the state."""

    def loop(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        out = []
        for row in x:
            h = step(h, row)
            out.append(h * 2)
        return torch.stack(out), h

    x, h = torch.randn(T, N, D).to(dtype), torch.randn(N, D).to(dtype)
    (block,) = hoist_invariants(program_of(loop, x, h)).blocks.values()
    assert isinstance(block, Recurrence)
    return inputs_apart(block)[1]


def agrees(block: Recurrence, bound: float = 1e-12) -> None:
    """The adjoint program, in order, against autograd through the loop in order."""
    found = adjoint(block)
    generator = torch.Generator().manual_seed(0)

    def example(prefix: str, *lead: int) -> list[Tensor]:
        kinds = [node.meta["type"] for node in placeholders(block.step, prefix)]
        drawn = [torch.randn(*lead, *k.shape, dtype=k.dtype, generator=generator) for k in kinds]
        return drawn if lead else [k.empty().copy_(d) for k, d in zip(kinds, drawn, strict=True)]

    initial, stacked, consts = example(CARRY), example(STACKED, block.length), example("c")
    real = [x.requires_grad_() for x in stacked if x.is_floating_point()]
    step = torch.fx.GraphModule({}, block.step)
    start = [s.requires_grad_() for s in initial]
    state: Sequence[Tensor] = start
    before, made = [], []
    for t in range(block.length):
        before.append([s.detach() for s in state])
        out = step(*state, *[x[t] for x in stacked], *[c[t] for c in block.table], *consts)
        state = out[: block.carries]
        made.append(out[block.carries :])
    outputs = [torch.stack(column) for column in zip(*made, strict=True)]
    cotangents = [torch.randn(y.shape, dtype=y.dtype, generator=generator) for y in [*state, *outputs]]
    pairs = [(y, g) for y, g in zip([*state, *outputs], cotangents, strict=True) if y.requires_grad]
    by = [*start, *real]
    wanted = torch.autograd.grad([y for y, _ in pairs], by, [g for _, g in pairs], materialize_grads=True, allow_unused=True)
    stacks = [torch.stack(column) for column in zip(*before, strict=True)] + stacked + cotangents[block.carries :]
    leaves = [*cotangents[: block.carries], *stacks, *consts]
    with torch.no_grad():
        ours, _ = run_program(replace(found.program, outputs=tuple(Output(0) for _ in results(found.program.graph))), leaves)
    reached = [wanted[block.carries + i] for i in found.reached]
    for a, b in zip(ours[: block.carries + len(reached)], [*wanted[: block.carries], *reached], strict=True):
        assert torch.allclose(a, b, rtol=bound, atol=bound * max(1.0, float(b.abs().max())))
    for stack, last in zip(ours[block.carries + len(reached) :], cotangents[: block.carries], strict=True):
        assert torch.equal(stack[-1], last), "the stack holds the cotangents of the states after each step"


torch.manual_seed(0)
GRU, LSTM = nn.GRUCell(D, D).double(), nn.LSTMCell(D, D).double()
WEIGHT = torch.randn(D, D, dtype=torch.float64) / 2
STEPS: dict[str, Step] = {
    "tanh": lambda h, x: torch.tanh(h @ WEIGHT + x),
    "gru": lambda h, x: GRU(x, h),
    "lstm": lambda h, x: LSTM(x, (h, h * 0.5))[1],
    "in place": lambda h, x: (h.sin() + x).mul_(0.5).add_(h, alpha=0.25).relu_(),
    "parts": lambda h, x: torch.cat([h[:, :1] * x[:, 1:2], torch.sigmoid(h[:, 1:])], 1),
    "detached": lambda h, x: torch.tanh(h.detach() + x),
}


@pytest.mark.parametrize("name", STEPS)
def test_vector_jacobian_products(name: str) -> None:
    agrees(block_of(STEPS[name]))


def test_golden(golden: Callable[[str, str], None]) -> None:
    block = block_of(lambda h, x: torch.tanh(h @ WEIGHT + x))
    program = adjoint(block).program
    (reverse,) = program.blocks.values()
    assert isinstance(reverse, Recurrence)
    golden("adjoint", "\n\n".join([to_text(block.step), "-->", to_text(program.graph), to_text(reverse.step)]))


@pytest.mark.parametrize("seed", range(40))
def test_random_bodies(seed: int) -> None:
    agrees(block_of(lambda h, x: body(seed, [h, x]), torch.float32), 1e-4)


def test_what_has_no_adjoint() -> None:
    with pytest.raises(NotDifferentiable, match="no real state"):
        adjoint(block_of(lambda h, x: (h + x.long()) % 3, torch.long))
