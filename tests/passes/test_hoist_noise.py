"""Hoist noise: a loop's draws come before it, in eager's order, with eager's bits, and leave eager's generator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import Tensor

from fxsolve import prims
from fxsolve.ir import Recurrence, calls
from fxsolve.passes.hoist_noise import hoist_noise
from fxsolve.passes.noise import pinned
from tests.passes.running import agrees, program_of

T, B, W = 12, 2, 3
X = torch.randn(T, B, W, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(W, W, generator=torch.Generator().manual_seed(1))


def each_step(body: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def program(x: Tensor) -> Tensor:
        h, outs = torch.zeros(B, W), []
        for given in x:
            h = torch.tanh(body(h, given) + h)
            outs.append(h)
        return torch.stack(outs)

    return program


def several(h: Tensor, x: Tensor) -> Tensor:
    a, b = torch.rand(B, W), torch.randn(W, B).t()
    return h * a + b + torch.rand_like(x, dtype=torch.float64).float() - torch.randint(0, 5, (B, 1))


BODIES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "rand": (lambda h, x: torch.rand(B, W) * x, 1),
    "several": (several, 4),
    "randn_like of the state": (lambda h, x: torch.randn_like(h) * x, 1),
    "in place": (lambda h, x: torch.empty(B, W).uniform_(-1, 1).normal_(0, 2) + h.clone().exponential_(), 3),
    "into a part": (lambda h, x: part(h), 1),
    "normal": (lambda h, x: torch.normal(h, x.abs()), 1),
    "bernoulli": (lambda h, x: torch.bernoulli(torch.sigmoid(h)), 1),
    "dropout": (lambda h, x: F.dropout(h + x, 0.3), 1),
    "multinomial": (lambda h, x: torch.multinomial(torch.softmax(h, 1), 1).float() * x, 1),
    "categorical": (lambda h, x: D.Categorical(logits=h).sample()[:, None] * x, 1),
    "sampled normal": (lambda h, x: D.Normal(h, x.exp()).sample(), 1),
    "unused": (lambda h, x: torch.rand(B, W) * 0 + x if torch.rand(3).dim() == 9 else x, 1),
    "not for the state": (lambda h, x: x, 0),
}


def part(h: Tensor) -> Tensor:
    y = h.clone()
    y[:, 1].uniform_()
    return y


@pytest.mark.parametrize("name", BODIES)
def test_draws_come_before_their_block(name: str) -> None:
    """`agrees` compares values and the generator's state at every stage."""
    body, count = BODIES[name]
    program = agrees(each_step(body), X)
    (block,) = program.blocks.values()
    assert isinstance(block, Recurrence) and block.length >= T - 1
    assert not pinned(block.step) and not any(n.target is prims.draw for n in calls(block.step))
    drawn = [n for n in calls(program.graph) if n.target is prims.draws]
    assert [len(n.args[1]) for n in drawn] == ([count] if count else [])  # type: ignore[arg-type]


def test_a_second_run_changes_nothing() -> None:
    once = hoist_noise(program_of(each_step(several), X))
    again = hoist_noise(once)
    assert [n.format_node() for n in again.graph.nodes] == [n.format_node() for n in once.graph.nodes]


def test_a_draw_whose_consumption_depends_on_values_pins_the_block() -> None:
    program = agrees(each_step(lambda h, x: torch.poisson(h.exp()) * 0.1 + torch.rand(B, W) * x), X)
    (block,) = program.blocks.values()
    assert isinstance(block, Recurrence)
    assert any("poisson" in name for name in pinned(block.step))
    assert not any(n.target is prims.draws for n in calls(program.graph))


def test_draws_of_two_loops_keep_their_order() -> None:
    def program(x: Tensor) -> Tensor:
        first = each_step(BODIES["rand"][0])(x)
        between = torch.rand(B)
        return each_step(BODIES["several"][0])(first) + between[:, None]

    assert len(agrees(program, X).blocks) == 2


def test_draws_of_an_inner_loop() -> None:
    def program(x: Tensor) -> Tensor:
        h = torch.zeros(B, W)
        for given in x:
            for _ in range(2):
                h = torch.tanh(h @ WEIGHT + torch.randn(B, W))
            h = h * torch.rand(B, 1) + given
        return h

    (block,) = agrees(program, X).blocks.values()
    assert isinstance(block, Recurrence) and block.length == T
