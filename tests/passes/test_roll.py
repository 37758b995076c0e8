"""Roll: loops that should roll do, with as many steps, carries and inputs as they have; random loops agree with eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxsolve.ir import Program, Recurrence
from fxsolve.passes.numbers import vary
from fxsolve.passes.roll import Run, cycles, roll, shortest_program
from tests.passes import random_loops
from tests.passes.running import agrees, cleaned

SEEDS, CHUNK = 24, 12
B, T, D = 2, 12, 3
torch.manual_seed(0)
X = torch.randn(B, T, D)
CELL, GRU, LSTM = nn.RNNCell(D, D), nn.GRUCell(D, D), nn.LSTMCell(D, D)
LAYERS = nn.ModuleList(nn.RNNCell(D, D) for _ in range(3))
WEIGHT = torch.randn(9, 9).tril(-1)


def shape(program: Program) -> list[tuple[int, int, int]]:
    """(steps, carries, stacked inputs) of each block."""
    blocks = [b for b in program.blocks.values() if isinstance(b, Recurrence)]
    return [(b.length, b.carries, b.stacked) for b in blocks]


def over(cell: Callable[..., Any], states: int = 1) -> Callable[[Tensor], Tensor]:
    def loop(x: Tensor) -> Tensor:
        state: Any = torch.zeros(B, D) if states == 1 else (torch.zeros(B, D),) * states
        outs = []
        for t in range(x.shape[1]):
            state = cell(x[:, t], state)
            outs.append(state if states == 1 else state[0])
        return torch.stack(outs, 1)

    return loop


def backwards(x: Tensor) -> Tensor:
    h, outs = torch.zeros(B, D), []
    for t in reversed(range(T)):
        h = CELL(x[:, t], h)
        outs.insert(0, h)
    return torch.stack(outs, 1)


def by_iteration(x: Tensor) -> Tensor:
    h = x[:, 0] * 0
    for given in x.transpose(0, 1):
        h = CELL(given, h)
    return h


def two_steps_back(x: Tensor) -> Tensor:
    y = x.clone()
    for t in range(2, T):
        y[:, t] = 0.5 * y[:, t - 1] - 0.2 * y[:, t - 2] + x[:, t]
    return y


def argument_written(x: Tensor) -> None:
    for t in range(2, T):
        x[:, t] += 0.5 * x[:, t - 1] - 0.2 * x[:, t - 2]


def alternating(x: Tensor) -> Tensor:
    h = torch.zeros(B, D)
    for t in range(T):
        h = torch.tanh(h + x[:, t]) if t % 2 else torch.sigmoid(h * x[:, t]) - 1
    return h


def layers_in_each_step(x: Tensor) -> Tensor:
    states = [torch.zeros(B, D)] * 3
    outs = []
    for t in range(T):
        given = x[:, t]
        for k, cell in enumerate(LAYERS):
            states[k] = given = cell(given, states[k])
        outs.append(given)
    return torch.stack(outs)


def layer_after_layer(x: Tensor) -> Tensor:
    given = list(x.unbind(1))
    for cell in LAYERS:
        h, outs = torch.zeros(B, D), []
        for value in given:
            h = cell(value, h)
            outs.append(h)
        given = outs
    return torch.stack(given)


def both_directions(x: Tensor) -> Tensor:
    h, there = torch.zeros(B, D), []
    for t in range(T):
        h = torch.tanh(h + x[:, t])
        there.append(h)
    h, back = torch.zeros(B, D), []
    for t in reversed(range(T)):
        h = torch.sigmoid(h - there[t])
        back.append(h)
    return torch.cat([torch.stack(there), torch.stack(back[::-1])], 2)


def same_body_twice(x: Tensor) -> Tensor:
    h, there = torch.zeros(B, D), []
    for t in range(T):
        h = torch.tanh(h * 0.5 + x[:, t])
        there.append(h)
    h, back = torch.zeros(B, D), []
    for given in reversed(there):
        h = torch.tanh(h * 0.5 + given)
        back.append(h)
    return torch.stack(back)


def rows_and_columns(x: Tensor) -> Tensor:
    image = torch.zeros(B, 6, 7)
    for i in range(6):
        for j in range(7):
            left = image[:, i, j - 1] if j else torch.zeros(B)
            above = image[:, i - 1, j] if i else torch.zeros(B)
            image[:, i, j] = torch.tanh(0.5 * left + 0.3 * above + x[:, i, j % 3])
    return image


def pixels(x: Tensor) -> Tensor:
    image = torch.zeros(B, 1, 3, 3)
    for i in range(3):
        for j in range(3):
            out = torch.tanh(image.view(B, 9) @ WEIGHT.t()).view(B, 1, 3, 3)
            image[:, :, i, j] = out[:, :, i, j] + x[:, 3 * i + j, :1]
    return image


def one_state_through_rows(x: Tensor) -> Tensor:
    image = x.reshape(B, 6, 6)
    h = torch.zeros(B)
    for i in range(6):
        for j in range(6):
            h = torch.tanh(h + image[:, i, j])
    return h


def numbers(x: Tensor) -> Tensor:
    h = torch.zeros(B, D)
    for t in range(T):
        h = h * 0.9**t + x[:, t] * t
        h = torch.where(h > 0.1 * t, h, torch.full((B, D), 0.5 * t)).masked_fill(h < -1, -0.1 * t)
    return h


def picked_at_random(x: Tensor) -> Tensor:
    given, h = list(x.unbind(1)), torch.zeros(B, D)
    for t in (3, 3, 1, 7, 0, 7, 11, 2, 3, 5, 4, 4, 1):
        h = CELL(given[t], h)
    return h


def accumulated(x: Tensor) -> Tensor:
    return sum(x.unbind(1)[t] * x[:, 0] for t in range(T))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "fn, expected",
    [
        (over(CELL), [(T, 1, 0)]),
        (over(GRU), [(T, 1, 0)]),
        (over(LSTM, 2), [(T, 2, 0)]),
        (backwards, [(T, 1, 0)]),
        (by_iteration, [(T, 1, 1)]),
        (two_steps_back, [(T - 4, 2, 0)]),
        (argument_written, [(T - 4, 2, 0)]),
        (alternating, [(T // 2, 1, 0)]),
        (layers_in_each_step, [(T, 3, 0)]),
        (layer_after_layer, [(T, 1, 1)] * 3),
        (both_directions, [(T, 1, 0), (T, 1, 1)]),
        (same_body_twice, [(T, 1, 0), (T, 1, 1)]),
        (rows_and_columns, [(6, 7, 0)]),
        (pixels, [(9, 1, 0)]),
        (one_state_through_rows, [(36, 1, 0)]),
        (numbers, [(T, 1, 5)]),
        (picked_at_random, [(13, 1, 1)]),
    ],
    ids=lambda value: getattr(value, "__qualname__", "").split(".")[0],
)
def test_loops_roll(fn: Callable[[Tensor], Any], expected: list[tuple[int, int, int]]) -> None:
    assert shape(agrees(fn, X)) == expected


@pytest.mark.parametrize("kind", random_loops.KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("low", range(0, SEEDS, CHUNK))
def test_random_loops(kind: Callable[[int], random_loops.Program], low: int) -> None:
    blocks = [len(agrees(kind(seed), *random_loops.arguments(seed)).blocks) for seed in range(low, low + CHUNK)]
    assert sum(map(bool, blocks)) >= CHUNK - 3, "most of them roll"


def test_a_float_that_no_op_takes_as_a_tensor_keeps_its_loop() -> None:
    def powers(x: Tensor) -> Tensor:
        h = x[:, 0].abs() + 1
        for t in range(T):
            h = h.pow(1 + 0.01 * t) + x[:, t]
        return h

    assert shape(agrees(powers, X)) == []


def test_views_alone_are_no_block() -> None:
    assert roll(cleaned(lambda x: [row[1:] for row in x.transpose(0, 1)], X.repeat(1, 4, 1))) == []


def test_cycling_values_are_a_longer_step() -> None:
    def program(x: Tensor) -> Tensor:
        h = torch.zeros(B, D)
        for t in range(2 * T):
            h = LAYERS[t % 3](x[:, t % T], h)
        return h

    assert shape(agrees(program, X))[0][0] == 2 * T // 3


def test_the_disjoint_loops_that_save_most() -> None:
    inner = [Run(start, 2, 20) for start in (0, 50, 100)]
    outer = Run(0, 30, 5)
    assert shortest_program([*inner, outer]) == [outer]
    assert shortest_program(inner) == inner
    assert shortest_program([Run(0, 10, 20), Run(190, 10, 4)]) == [Run(0, 10, 20)]


def test_small_questions() -> None:
    import numpy as np

    assert cycles(np.asarray([1, 2, 3] * 4))
    assert not cycles(np.asarray([1, 2, 3, 1, 2, 9, 1, 2, 3, 4, 5, 6]))
    assert not vary([2, 2]) and vary([0.0, -0.0]) and not vary([float("nan")] * 2) and vary([1, 2])
