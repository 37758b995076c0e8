"""Clean: dead rows go, draws stay, repeated invariants are computed once and first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxsolve.passes.clean import clean
from fxsolve.passes.functionalize import functionalize
from tests.passes import random_loops, random_writes
from tests.passes.running import agrees, cleaned, tape_of

WEIGHT, MASK = torch.randn(3, 3), torch.tril(torch.ones(3, 3))


def masked(x: Tensor) -> Tensor:
    """A dead row, a draw that nobody uses, a masked weight in each step."""
    x.exp()
    torch.rand(3)
    for _ in range(2):
        x = x @ (WEIGHT * MASK).t()
    return x


def names(fn: Callable[..., object], *args: Tensor) -> list[str]:
    tape = cleaned(fn, *args)
    return [tape.symbols.items[s].name for s in tape.symbol]


def test_golden(golden: Callable[[str, str], None]) -> None:
    tape = functionalize(tape_of(masked, torch.zeros(2, 3)))
    golden("clean", f"{tape.text()}\n-->\n{clean(tape).text()}")


@pytest.mark.parametrize("seed", range(12))
def test_a_second_run_changes_nothing(seed: int) -> None:
    made = [(random_writes.random_program(seed), random_writes.arguments(seed))]
    made += [(kind(seed), random_loops.arguments(seed)) for kind in random_loops.KINDS]  # type: ignore[misc]
    for fn, args in made:
        tape = functionalize(tape_of(fn, *args))
        before = tape.text()
        once = clean(tape)
        assert tape.text() == before
        assert clean(once).text() == once.text()
        assert len(once) <= len(tape)


def test_invariants_move_and_draws_stay() -> None:
    agrees(masked, torch.randn(2, 3))
    assert names(masked, torch.zeros(2, 3)) == ["mul.Tensor", "t.default", "rand.default", "mm.default", "mm.default"]


def test_numbers_stay_in_place() -> None:
    """A number may be the loop's own index: equal calls with numbers are left to the step (hoist_invariants)."""

    def twice(x: Tensor) -> Tensor:
        return (x * 2).exp() + x * 2

    assert names(twice, torch.zeros(2, 3)).count("mul.Tensor") == 2


def test_a_loop_of_which_some_results_are_used_stays_one() -> None:
    def program(x: Tensor) -> list[Tensor]:
        h, outs = x[0], []
        for given in x:
            h = torch.tanh(h + given)
            outs.append(h * 2)
        return [outs[3], outs[5], outs[-1]]

    (block,) = agrees(program, torch.randn(12, 3)).blocks.values()
    assert block.length == 12
    last = cleaned(lambda x: program(x)[-1], torch.randn(12, 3))
    assert [last.symbols.items[s].name for s in last.symbol].count("mul.Tensor") == 1


def test_what_is_mutated_returned_or_guarded_lives() -> None:
    def program(x: Tensor) -> None:
        torch.distributions.Normal(x[0], x[1].exp(), validate_args=True)  # dynamo switches the default off
        x.add_(1)

    agrees(program, torch.randn(2, 3))
    assert "add.Tensor" in names(program, torch.zeros(2, 3))
    assert names(program, torch.zeros(2, 3)).count("guard") == 2
