"""Functionalize: in-place code as dataflow, on the recorded tape alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxsolve.errors import CaptureError
from fxsolve.passes.functionalize import functionalize
from tests.passes import random_writes
from tests.passes.running import agrees, leaf_values, run_tape, same, tape_of

SEEDS, CHUNK = 120, 12


def filtered(x: Tensor) -> Tensor:
    y = x.clone()
    for t in range(2, y.shape[1]):
        y[:, t] = 0.5 * y[:, t - 1] + y[:, t - 2]
    return y


def test_golden(golden: Callable[[str, str], None]) -> None:
    tape = tape_of(filtered, torch.zeros(2, 5))
    golden("functionalize", f"{tape.text()}\n-->\n{functionalize(tape).text()}")


@pytest.mark.parametrize("low", range(0, SEEDS, CHUNK))
def test_random_writes(low: int) -> None:
    """Values, final arguments and results on the recorded inputs and on others, at every stage."""
    for seed in range(low, low + CHUNK):
        try:
            agrees(random_writes.random_program(seed), *random_writes.arguments(seed))
        except CaptureError as error:
            assert "reads the memory that it writes" in str(error)


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_a_second_run_changes_nothing(seed: int) -> None:
    tape = tape_of(random_writes.random_program(seed), *random_writes.arguments(seed))
    before = tape.text()
    once = functionalize(tape)
    assert tape.text() == before
    assert functionalize(tape).text() == once.text()
    assert functionalize(once).text() == once.text()


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_nothing_mutates(seed: int) -> None:
    tape = functionalize(tape_of(random_writes.random_program(seed), *random_writes.arguments(seed)))
    for symbol in tape.symbols.items:
        schema = getattr(symbol.target, "_schema", None)
        assert schema is None or not schema.is_mutable


def names(fn: Callable[..., object], *args: Tensor) -> list[str]:
    tape = functionalize(tape_of(fn, *args))
    return [tape.symbols.items[s].name for s in tape.symbol]


def test_adding_to_a_slot_is_one_write() -> None:
    def add(x: Tensor) -> Tensor:
        x[:, 1] += 2
        return x

    assert names(add, torch.zeros(2, 3)).count("write") == 1


def test_a_read_of_what_was_written_is_the_value() -> None:
    def forward(x: Tensor) -> Tensor:
        y = torch.zeros(3, 4)
        y[1] = x
        y[2] = y[1] * 2
        return y[1] + y[2]

    assert "read" not in names(forward, torch.zeros(4))


def test_a_read_across_two_writes_reads_the_storage() -> None:
    def across(x: Tensor) -> Tensor:
        y = torch.zeros(3, 4)
        y[0], y[1] = x, x + 1
        return y[0:2] * 2

    agrees(across, torch.randn(4))
    assert "read" in names(across, torch.zeros(4))


def test_a_view_of_a_view_is_one_read() -> None:
    def pixels(x: Tensor) -> Tensor:
        return x[:, 1, 2] + x[:, 0, 3]

    agrees(pixels, torch.randn(2, 3, 4))
    assert names(pixels, torch.zeros(2, 3, 4)) == ["select.int", "read", "select.int", "read", "add.Tensor"]


def test_a_constant_is_whole_in_every_call() -> None:
    def written(x: Tensor) -> Tensor:
        c = torch.tensor([1.0, 2.0, 3.0])
        c[1] = x[0]
        return c

    tape = functionalize(tape_of(written, torch.ones(2)))
    assert not tape.mutations
    assert tape.outputs[0].leaf == -1
    leaves = leaf_values(tape.leaves, [torch.full((2,), 7.0)])
    for _ in range(2):
        same(run_tape(tape, leaves)[0], [torch.tensor([1.0, 7.0, 3.0])], "a constant")


def test_what_an_input_is_afterwards() -> None:
    def scaled(x: Tensor) -> Tensor:
        x.t()[1].mul_(3)
        return x[0]

    program = agrees(scaled, torch.randn(2, 3))
    assert program.mutated == (0,)
    assert program.outputs[0].leaf == 0


def test_strides_of_what_was_forwarded() -> None:
    """A view of a slot into which a transposed value was written; a storage that begins with forwarded strides."""

    def shown(x: Tensor) -> Tensor:
        y = torch.zeros(3, 4)
        y[:] = x.t()
        z = torch.zeros_like(y.t())
        z[0] = y[:, 1]
        return torch.cat([y.view(-1), z.t().reshape(-1), z.view(4, 3)[0]])

    agrees(shown, torch.randn(4, 3))


def test_a_failed_call_is_not_recorded() -> None:
    def tries(x: Tensor) -> Tensor:
        y = x.clone()
        try:
            y[1:].copy_(y[:-1])
        except RuntimeError:
            y[0] = 5
        return y

    agrees(tries, torch.randn(4))


def two_dtypes(x: Tensor) -> Tensor:
    y = x * 1
    y.view(torch.int32).add_(1)
    return y


def gaps(x: Tensor) -> Tensor:
    x.add_(1)
    return x


def aliasing(x: Tensor) -> Tensor:
    y = x.clone()
    return y.addmm_(y, y)


def several(x: Tensor) -> list[Tensor]:
    parts = [x.clone(), x.clone()]
    torch._foreach_add_(parts, 1.0)
    return parts


@pytest.mark.parametrize(
    "fn, x, reason",
    [
        (two_dtypes, torch.zeros(3), "two dtypes"),
        (gaps, torch.zeros(4, 4)[:, ::2], "gaps"),
        (aliasing, torch.zeros(2, 2), "reads the memory that it writes"),
        (several, torch.zeros(3), "list of tensors"),
    ],
)
def test_refusals_name_the_line(fn: Callable[[Tensor], object], x: Tensor, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason) as caught:
        functionalize(tape_of(fn, x))
    assert "test_functionalize.py:" in str(caught.value)
