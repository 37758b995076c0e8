"""Build: lists that become stacks, values that become stacked inputs, numbers that vary, layouts, guards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fxsolve import prims
from fxsolve.ir import Program, Recurrence, TensorType, calls
from fxsolve.passes.build import build
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.layouts import memory_order
from fxsolve.passes.roll import roll
from fxsolve.tape import Tape
from tests.passes.running import agrees, cleaned, program_of

T, B, D = 12, 2, 3
X = torch.randn(T, B, D, generator=torch.Generator().manual_seed(0))
WEIGHT, MASK = torch.randn(D, D), torch.tril(torch.ones(D, D))


def states(x: Tensor, turn: bool = False) -> list[Tensor]:
    """The states of a loop of T steps; `turn`: in transposed strides."""
    h, found = torch.zeros(B, D), []
    for t in range(T):
        h = torch.tanh(h * 0.5 + x[t])
        found.append((h * 2).t().contiguous().t() if turn else h)
    return found


def targets(program: Program) -> list[Any]:
    return [node.target for node in calls(program.graph)]


ENDINGS: dict[str, Callable[[list[Tensor]], Any]] = {
    "stack 0": lambda hs: torch.stack(hs),
    "stack 1": lambda hs: torch.stack(hs, 1),
    "stack last": lambda hs: torch.stack(hs, -1),
    "cat 0": lambda hs: torch.cat(hs),
    "cat 1": lambda hs: torch.cat(hs, 1),
    "backwards": lambda hs: torch.stack(hs[::-1], 1),
    "every second": lambda hs: torch.stack(hs[::2]),
    "in another order": lambda hs: torch.stack([hs[k] for k in (3, 1, 1, 7, 0, 2, 5)]),
    "with others": lambda hs: torch.stack([hs[0] * 0, *hs, hs[2] + 1], 1),
    "of other sizes": lambda hs: torch.cat([hs[0][:, :1], *hs], 1),
    "some": lambda hs: (hs[3], hs[-1], hs[0]),
    "views of the stack": lambda hs: torch.stack(hs, 1).view(B * T, D)[3:],
    "written afterwards": lambda hs: torch.stack(hs, 1).index_fill_(1, torch.tensor([2]), 0).mul_(2),
    "a slot written afterwards": lambda hs: written(torch.stack(hs, 1)),
}


def written(stack: Tensor) -> Tensor:
    stack[:, 3] = stack[:, 4] * 2
    return stack.view(-1) * 1


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("name", ENDINGS)
def test_lists_of_states(name: str, turn: bool) -> None:
    """Also of states in transposed strides: what views and regions of the result address stays where it was."""
    program = agrees(lambda x: ENDINGS[name](states(x, turn)), X)
    assert len(program.blocks) == 1
    assert len(program.graph.nodes) < 24, "a list is one stack, not many values"


READS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "unbind": lambda x: list(x.unbind(0)),
    "unbind of another dimension": lambda x: list(x.transpose(0, 1).contiguous().unbind(1)),
    "backwards": lambda x: list(x.unbind(0))[::-1],
    "shifted": lambda x: [*x.unbind(0)[1:], x[0] * 2],
    "computed": lambda x: [torch.sin(given) for given in x],
    "transposed": lambda x: [given.t().contiguous().t() for given in x],
    "states": states,
    "states backwards": lambda x: states(x)[::-1],
    "transposed states": lambda x: states(x, turn=True),
}


@pytest.mark.parametrize("name", READS)
def test_lists_that_go_in(name: str) -> None:
    """Read as they are, by a view and by a region."""

    def program(x: Tensor) -> Tensor:
        h, given = torch.zeros(B, D), READS[name](x)
        for t in range(T):
            part = given[t].clone()
            part[:, 0] = h[:, 1]
            h = torch.tanh(part + given[t].reshape(-1)[:D] + given[t][1, 2])
        return h

    last = list(agrees(program, X).blocks.values())[-1]
    assert isinstance(last, Recurrence) and last.length >= T - 1 and last.carries == 1


NUMBERS: dict[str, tuple[Callable[[Tensor, Tensor, int], Tensor], int]] = {
    "factor": (lambda h, x, t: h * 0.9**t + x, 1),
    "float added": (lambda h, x, t: h - x + 0.1 * t, 1),
    "int added": (lambda h, x, t: torch.tanh(h + x + t), 1),
    "divisor": (lambda h, x, t: h / (1.5 + t) + x, 1),
    "integer state": (lambda h, x, t: ((h + x).long() * t + t).float(), 1),
    "int to float": (lambda h, x, t: ((h > 0).long() * (0.5 * t)) + x, 1),
    "threshold": (lambda h, x, t: torch.where(h > 0.1 * t, x, h * 0.5), 1),
    "fill": (lambda h, x, t: torch.full((B, D), 0.1 * t) * x + h, 1),
    "mask": (lambda h, x, t: (h + x).masked_fill(x > 0, 0.3 * t), 1),
    "scalar tensor": (lambda h, x, t: h + x * torch.tensor(0.1 * t), 1),
    "two of them": (lambda h, x, t: h * (0.1 * t) + x * (0.2 * t), 2),
    "half": (lambda h, x, t: (h.bfloat16() * (0.1 * t)).float() + x, 1),
    "double": (lambda h, x, t: (h.double() * (0.1 * t)).float() + x, 1),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_vary(name: str) -> None:
    body, count = NUMBERS[name]

    def program(x: Tensor) -> Tensor:
        h = torch.zeros(B, D)
        for t, given in enumerate(x):
            h = body(h, given, t)
        return h

    (block,) = agrees(program, X).blocks.values()
    assert isinstance(block, Recurrence)
    assert (block.length, block.stacked, block.table) == (T, 1 + count, ())


def test_index_constants_are_shared() -> None:
    def program(x: Tensor) -> Tensor:
        h = torch.zeros(B, D)
        for t in (3, 1, 4, 0, 5, 9, 2, 6):
            h = torch.tanh(h + x[t]) * x[t] + x[t + 1]
        return h

    (block,) = agrees(program, X).blocks.values()
    assert block.table == ((3, 1, 4, 0, 5, 9, 2, 6), (4, 2, 5, 1, 6, 10, 3, 7))


def test_guards_of_a_loop_are_one() -> None:
    def program(x: Tensor) -> Tensor:
        h = torch.zeros(B, D)
        for given in x:
            h = torch.distributions.Normal(torch.tanh(h), given.exp(), validate_args=True).sample()
        return h

    program_ = agrees(program, X)
    assert program_.guards == (True, True)
    assert targets(program_).count(torch.ops.aten.all.default) == 2


def test_no_loop() -> None:
    program = agrees(lambda x: x * 2, X)
    assert not program.blocks and len(program.graph.nodes) == 3
    empty: Tape = Tape()
    assert build(empty, roll(empty)).outputs == ()


def test_invariants_leave_the_step_and_equal_calls_are_one() -> None:
    def program(x: Tensor) -> Tensor:
        h = torch.zeros(B, D)
        for given in x:
            weight = WEIGHT / WEIGHT.norm(dim=1, keepdim=True) * MASK[0]
            h = torch.tanh(h @ weight + given) + torch.tanh(h @ weight + given) * MASK[0].sum()
        return h

    tape = cleaned(program, X)
    built = build(tape, roll(tape))
    hoisted = hoist_invariants(built)
    (before,), (after,) = built.blocks.values(), hoisted.blocks.values()
    assert isinstance(before, Recurrence) and isinstance(after, Recurrence)
    left = [n.target.__name__ for n in calls(after.step)]  # type: ignore[union-attr]
    assert left == ["mm.default", "add.Tensor", "tanh.default", "mul.Tensor", "add.Tensor"]
    assert after.consts == 2
    assert hoist_invariants(hoisted).blocks.keys() == hoisted.blocks.keys()
    agrees(program, X)


def test_a_draw_is_never_shared_nor_hoisted() -> None:
    def program(x: Tensor) -> Tensor:
        h = torch.zeros(B, D)
        for given in x:
            h = torch.tanh(h + given + torch.rand(B, D) - torch.rand(B, D))
        return h

    (block,) = agrees(program, X).blocks.values()
    assert block.stacked == 3  # type: ignore[union-attr]


def test_memory_order() -> None:
    def order(*stride: int) -> list[int]:
        return memory_order(TensorType((2, 3, 4), stride, torch.float32, torch.device("cpu")))

    assert order(12, 4, 1) == [0, 1, 2] and order(1, 2, 6) == [2, 1, 0] and order(4, 8, 1) == [1, 0, 2]
    one = TensorType((2, 1, 4), (4, 99, 1), torch.float32, torch.device("cpu"))
    assert memory_order(one) == [0, 1, 2]


def test_noise_columns_are_drawn_in_order() -> None:
    def program(x: Tensor) -> Tensor:
        h = torch.zeros(B, D)
        for given in x:
            h = torch.tanh(h + torch.randn(B, D)) * torch.rand(B, 1) + given
        return h

    last = agrees(program, X)
    assert targets(last).count(prims.draws) == 1
    assert program_of(program, X).blocks["block0"].stacked == 1  # type: ignore[union-attr]
