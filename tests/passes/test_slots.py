"""Slot buffers: outputs that user code collects in a preallocated tensor, and fixed points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fxsolve import prims
from fxsolve.ir import Recurrence, Slots, TensorType, calls
from fxsolve.passes.slots import disjoint, fixed_point
from tests.passes.running import agrees

T, B = 12, 2
X = torch.randn(B, T, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(T, T).tril(-1)
ORDER = [3, 0, 7, 1, 11, 2, 4, 10, 5, 9, 6, 8]


def collected(x: Tensor, write: Callable[[Tensor, int, Tensor], object], start: Tensor) -> Tensor:
    y, h = start.clone(), torch.zeros(B)
    for t in range(T):
        h = torch.tanh(h + x[:, t])
        write(y, t, h)
    return y


def put(y: Tensor, t: int, h: Tensor) -> None:
    y[:, t] = h


def put_in_order(y: Tensor, t: int, h: Tensor) -> None:
    y[:, ORDER[t]] = h


def add(y: Tensor, t: int, h: Tensor) -> None:
    y[:, t] += h


def put_twice(y: Tensor, t: int, h: Tensor) -> None:
    y[0, t], y[1, t] = h[1], h[0] * 2


def convert(y: Tensor, t: int, h: Tensor) -> None:
    y[:, t] = h * 10


def broadcast(y: Tensor, t: int, h: Tensor) -> None:
    y[:, t] = h[0]


def rows(y: Tensor, t: int, h: Tensor) -> None:
    y.t()[t].copy_(h).mul_(2)


@pytest.mark.parametrize("write", [put, put_in_order, add, put_twice, broadcast, rows, convert], ids=lambda f: f.__name__)
@pytest.mark.parametrize("start", [torch.zeros(B, T), torch.randn(T, B).t(), torch.zeros(B, T, dtype=torch.int64)], ids=str)
def test_buffers_that_are_only_written_are_outputs(write: Callable[..., Any], start: Tensor) -> None:
    if start.dtype is torch.int64 and write is add:
        return  # eager refuses to add floats to integers in place
    program = agrees(lambda x: collected(x, write, start), X)
    (block,) = program.blocks.values()
    assert isinstance(block, Recurrence) and block.carries == 1
    assert not any(node.target is prims.write for node in calls(block.step))
    assert any(node.target is prims.write_slots for node in calls(program.graph))


def test_a_slot_that_is_written_again_stays_a_state() -> None:
    program = agrees(lambda x: collected(x, lambda y, t, h: put(y, t % 6, h), torch.zeros(B, T)), X)
    (block,) = program.blocks.values()
    assert block.carries == 2  # type: ignore[union-attr]


def test_a_buffer_that_is_read_stays_a_state() -> None:
    def program(x: Tensor) -> Tensor:
        y = torch.zeros(B, T)
        for t in range(T):
            y[:, t] = x[:, t] - y.amax(1)
        return y

    (block,) = agrees(program, X).blocks.values()
    assert block.carries == 1  # type: ignore[union-attr]


def sampled(order: list[int]) -> Callable[[Tensor], Tensor]:
    def program(x: Tensor) -> Tensor:
        y = torch.zeros(B, T)
        for t in order:
            y[:, t] = torch.tanh(y @ WEIGHT.t())[:, t] + x[:, t]
        return y

    return program


@pytest.mark.parametrize("order", [list(range(T)), ORDER], ids=["in order", "permuted"])
def test_fixed_points(order: list[int]) -> None:
    (block,) = agrees(sampled(order), X).blocks.values()
    assert isinstance(block, Recurrence)
    found = fixed_point(block)
    assert not isinstance(found, str), found
    assert (found.length, found.buffers, found.features, found.consts) == (T, 1, 1, block.consts)
    assert found.slots == (Slots((B,), (T,), tuple(order)),)


def test_a_buffer_that_is_copied_before_each_write_is_one() -> None:
    """As autograd asks, which keeps what the network reads; the copy may be seen as one of the network's view."""

    def program(x: Tensor) -> Tensor:
        y = torch.zeros(B, T)
        for t in range(T):
            seen = torch.tanh(y[:, None].flatten(1) @ WEIGHT.t())
            y = y.clone()
            y[:, t] = seen[:, t] + x[:, t]
        return y

    (block,) = agrees(program, X).blocks.values()
    found = fixed_point(block)  # type: ignore[arg-type]
    assert not isinstance(found, str) and found.slots == (Slots((B,), (T,), tuple(range(T))),)


def test_two_buffers_are_one_fixed_point() -> None:
    def program(x: Tensor) -> Tensor:
        y, z = torch.zeros(B, T), torch.ones(B, T)
        for t in range(T):
            seen = torch.tanh(y @ WEIGHT.t() - z)
            y[:, t] = seen[:, t] + x[:, t]
            z[:, t] = seen[:, t] * 2
        return y + z

    (block,) = agrees(program, X).blocks.values()
    found = fixed_point(block)  # type: ignore[arg-type]
    assert not isinstance(found, str) and found.buffers == 2 and len(found.slots) == 2


def no_state(x: Tensor) -> Tensor:
    y = torch.zeros(B, T)
    for t in range(T):
        y[:, t] = torch.tanh(x[:, t] * 2) + 1
    return y


def plain_state(x: Tensor) -> Tensor:
    h = torch.zeros(B)
    for t in range(T):
        h = torch.tanh(h + x[:, t])
    return h


def read_after(x: Tensor) -> Tensor:
    y, out = torch.zeros(B, T), []
    for t in range(T):
        y[:, t] = torch.tanh(y @ WEIGHT.t())[:, t] + x[:, t]
        out.append(y.amax(1))
    return torch.stack(out)


@pytest.mark.parametrize(
    "fn, reason", [(no_state, "carries no state"), (plain_state, "not a buffer"), (read_after, "after it wrote")]
)
def test_what_is_no_fixed_point_says_why(fn: Callable[[Tensor], Tensor], reason: str) -> None:
    (block,) = agrees(fn, X).blocks.values()
    found = fixed_point(block)  # type: ignore[arg-type]
    assert isinstance(found, str) and reason in found


def test_disjoint() -> None:
    kind = TensorType((2, 4), (4, 1), torch.float32, torch.device("cpu"))
    columns = Slots((2,), (4,), (0, 1, 2))
    assert disjoint([columns], kind)
    assert disjoint([columns, Slots((2,), (4,), (3,))], kind)
    assert not disjoint([columns, Slots((2,), (4,), (2,))], kind)
    assert not disjoint([Slots((2,), (4,), (0, 0))], kind)
    assert not disjoint([Slots((2,), (4,), (4,))], kind), "beyond the buffer"
