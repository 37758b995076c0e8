"""The checks against the original: whatever a compiled program gets wrong is seen, said, and answered by the original."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from fxsolve.codegen import Executable
from fxsolve.verify import difference
from tests.checking import EPS, assert_close, assert_same_bits

BLOCKS = fxsolve.JacobiGS(block=32)
IN_ORDER = fxsolve.GaussSeidel()


def running(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = 0.5 * h + torch.tanh(x[t])
        out.append(h)
    return torch.stack(out)


def writing(x: Tensor, *, seen: Tensor) -> Tensor:
    before = seen.clone()
    h = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        h = 0.5 * h + torch.tanh(x[t])
    seen.add_(h)
    return before


def sampling(noise: Tensor) -> Tensor:
    weight = torch.tril(torch.full((16, 16), 0.5), -1)
    x = torch.zeros_like(noise)
    for t in range(16):
        x[:, t] = (torch.tanh(x @ weight.T) + noise)[:, t]
    return x


def x_of() -> Tensor:
    return torch.randn(400, 8, generator=torch.Generator().manual_seed(0))


class Sabotage:
    """Lets a compiled program go wrong, once it is `on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[list[Tensor]], None], on: bool = True) -> None:
        real, self.on = Executable.values, on

        def values(executable: Executable, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
            found = list(real(executable, leaves))
            if self.on:
                spoil(found)
            return found

        monkeypatch.setattr(Executable, "values", values)


def moved(number: int, by: float = 0.01) -> Callable[[list[Tensor]], None]:
    def spoil(values: list[Tensor]) -> None:
        values[number] = values[number] + by

    return spoil


def line_of(fn: Callable[..., Any], text: str) -> str:
    """file:line of the line of a function that holds the text."""
    lines, first = inspect.getsourcelines(fn)
    number = next(i for i, line in enumerate(lines) if text in line)
    return f"{inspect.getsourcefile(fn)}:{first + number}"


# -- the first call --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [BLOCKS, IN_ORDER, "auto"], ids=str)
@pytest.mark.parametrize("verify", ["first", "always"])
def test_a_wrong_result(monkeypatch: pytest.MonkeyPatch, solver: Any, verify: str) -> None:
    Sabotage(monkeypatch, moved(0))
    compiled = fxsolve.compile(running, solver=solver, verify=verify)
    with pytest.warns(fxsolve.FallbackWarning) as caught:
        assert_same_bits(compiled(x_of()), running(x_of()))
    (said,) = [str(w.message) for w in caught]
    assert "result 0 differs from the original's: by 0.01, more than 0.000" in said
    assert f"blocks: block0 ({line_of(running, 'h = 0.5')})" in said
    assert said.replace("fxsolve runs the original", "the original runs") in compiled.explain()
    for _ in range(3):  # without another word
        assert_same_bits(compiled(x_of()), running(x_of()))
    assert not compiled.solution.blocks


@pytest.mark.parametrize("solver", [BLOCKS, IN_ORDER], ids=str)
def test_a_wrong_result_as_an_error(monkeypatch: pytest.MonkeyPatch, solver: Any) -> None:
    Sabotage(monkeypatch, moved(0))
    with pytest.raises(fxsolve.VerificationError, match=r"result 0 differs .* by 0.01, more than .*block0 \(.*test_verify.py:"):
        fxsolve.compile(running, solver=solver, fallback=False)(x_of())


def test_nothing_is_compared_with_never(monkeypatch: pytest.MonkeyPatch) -> None:
    Sabotage(monkeypatch, moved(0))
    compiled = fxsolve.compile(running, solver=BLOCKS, verify="never")
    assert_same_bits(compiled(x_of()), running(x_of()))  # the first result is the recorded one
    assert 0.009 < float((compiled(x_of()) - running(x_of())).max()) < 0.011


def test_a_walk_in_order_that_nobody_asked_for_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to give eager's bits; where it does not the original runs, as if there were no such walk."""

    def chaotic(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 3.9 * h * (1 - h) + 0.001 * x[t]
        return h

    Sabotage(monkeypatch, moved(0, 1e-6))
    compiled, x = fxsolve.compile(chaotic), x_of().sigmoid()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert_same_bits(compiled(x), chaotic(x))
    assert not compiled.solution.blocks


def test_a_wrong_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an argument, or a buffer, will hold is compared as results are."""
    Sabotage(monkeypatch, moved(1))
    compiled = fxsolve.compile(writing, solver=BLOCKS)
    ours, theirs = torch.zeros(8), torch.zeros(8)
    with pytest.warns(fxsolve.FallbackWarning, match="what is written to argument .* differs from the original's: by 0.01"):
        compiled(x_of(), seen=ours)
    writing(x_of(), seen=theirs)
    assert_same_bits(ours, theirs)


def test_a_generator_in_another_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t] * torch.rand(8)
        return h

    Sabotage(monkeypatch, lambda values: torch.rand(1) and None)
    compiled = fxsolve.compile(noisy, solver=BLOCKS)
    torch.manual_seed(0)
    with pytest.warns(fxsolve.FallbackWarning, match="leaves a random generator in another state than the original"):
        ours = compiled(x_of())
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert_same_bits(ours, noisy(x_of()))
    assert torch.equal(state, torch.get_rng_state())


def test_one_bit_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed points have eager's bits; they may have others where rounding is all that was asked for."""

    def last_bit(values: list[Tensor]) -> None:
        values[0] = values[0].clone()
        values[0][0, -1] = torch.nextafter(values[0][0, -1], torch.tensor(9.0))

    Sabotage(monkeypatch, last_bit)
    noise = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    compiled = fxsolve.compile(sampling, solver=fxsolve.Jacobi())
    with pytest.warns(fxsolve.FallbackWarning, match="1 of 32 elements are not equal bit for bit"):
        assert_same_bits(compiled(noise), sampling(noise))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rounding = fxsolve.compile(sampling, solver=fxsolve.Jacobi(), exactness="rounding")
        rounding(noise)
        assert_close(rounding(noise), sampling(noise))


def test_one_bit_of_a_recurrence_of_which_bits_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    Sabotage(monkeypatch, moved(0, 1e-7))
    compiled = fxsolve.compile(running, solver=IN_ORDER, exactness="bitwise")
    with pytest.warns(fxsolve.FallbackWarning, match="of 3200 elements are not equal bit for bit"):
        compiled(x_of())


# -- later calls -----------------------------------------------------------------------------------


def test_a_later_call_that_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage = Sabotage(monkeypatch, moved(0), on=False)
    compiled = fxsolve.compile(running, solver=BLOCKS, verify="always")
    for _ in range(2):
        assert_close(compiled(x_of()), running(x_of()))
        assert compiled.solution.blocks
    sabotage.on = True
    with pytest.warns(fxsolve.FallbackWarning, match="result 0 differs from the original's: by 0.01"):
        assert_same_bits(compiled(x_of()), running(x_of()))
    assert "result 0 differs" in str(compiled.solution)
    for _ in range(3):  # without another word
        assert_same_bits(compiled(x_of()), running(x_of()))
    assert "the original runs: result 0 differs" in compiled.explain()


def test_a_later_call_that_goes_wrong_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage = Sabotage(monkeypatch, moved(0), on=False)
    compiled = fxsolve.compile(running, solver=BLOCKS, verify="always", fallback=False)
    compiled(x_of())
    sabotage.on = True
    for _ in range(2):
        with pytest.raises(fxsolve.VerificationError, match="result 0 differs from the original's: by 0.01"):
            compiled(x_of())
    sabotage.on = False
    assert_close(compiled(x_of()), running(x_of()))


@pytest.mark.parametrize("wrong", [False, True])
def test_what_is_written_is_written_once(monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    """The original runs beside the compiled program; buffers and arguments, keyword or not, see one of them."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor, seen: Tensor, *, also: Tensor) -> tuple[Tensor, Tensor]:
            self.calls += 1
            h, before = torch.zeros_like(x[0]), seen.clone()
            for t in range(x.shape[0]):
                h = 0.5 * h + torch.tanh(x[t])
            seen.add_(h)
            also.add_(seen)
            return h * self.calls, before

    sabotage = Sabotage(monkeypatch, moved(0), on=False)
    model = Counting()
    other, compiled = copy.deepcopy(model), fxsolve.compile(model, solver=BLOCKS, verify="always")
    ours, theirs = [[torch.ones(8) for _ in range(2)] for _ in range(2)]
    twice, also_twice = torch.ones(8), torch.ones(8)
    for number in range(4):
        sabotage.on = wrong and number == 2
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = compiled(x_of(), ours[0], also=ours[1])
        assert len(caught) == sabotage.on
        sabotage.on = False
        for mine, its in zip(result, other(x_of(), theirs[0], also=theirs[1]), strict=True):
            assert_close(mine, its)
        compiled(x_of(), twice, also=twice)  # another kind of call: one argument in two places
        other(x_of(), also_twice, also=also_twice)
        for mine, its in zip([*ours, twice, model.calls], [*theirs, also_twice, other.calls], strict=True):
            assert_close(mine, its)


# -- what counts as a difference -------------------------------------------------------------------


def test_differences() -> None:
    one, nan, inf = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0]), torch.tensor([1.0, float("inf"), 1.0])
    assert difference(one, one.clone(), True, EPS) is None
    assert difference(nan, nan.clone(), True, EPS) is None
    assert difference(-torch.zeros(2), torch.zeros(2), True, EPS) == "0 of 2 elements are not equal bit for bit"
    assert difference(-torch.zeros(2), torch.zeros(2), False, EPS) is None
    assert difference(one, torch.ones(2), False, EPS) == "(3,) torch.float32 instead of (2,) torch.float32"
    assert difference(one, one.double(), False, EPS) == "(3,) torch.float32 instead of (3,) torch.float64"
    assert difference(one, nan, False, EPS) == "the non-finite elements are not the same"
    assert difference(nan, inf, False, EPS) == "the non-finite elements are not the same"
    assert difference(-inf, inf, False, EPS) == "the non-finite elements are not the same"
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3]), False, EPS) == "1 of 2 elements are not equal bit for bit"
    assert difference(one + 1e-5, one, False, EPS) is None
    assert difference(one + 1e-3, one, False, EPS) == "by 0.001, more than 0.000122"
    assert difference(one + 1e-3, one, False, 2.0**-8) is None, "bfloat16 rounds more than that"
    assert difference(one + 0.3, one, False, 2.0**-8) == "by 0.3, more than 0.25"


def test_what_is_computed_in_low_precision_may_differ_by_more() -> None:
    """A float32 result of a loop that autocast runs in bfloat16."""
    torch.manual_seed(0)
    cell = nn.GRUCell(4, 8)

    def run(x: Tensor) -> Tensor:
        h, out = torch.zeros(x.shape[1], 8), []
        for t in range(x.shape[0]):
            h = cell(x[t], h)
            out.append(h)
        return torch.stack(out)

    compiled, x = fxsolve.compile(run, solver=BLOCKS), torch.randn(200, 3, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        compiled(x)
        ours, theirs = compiled(x), run(x)
        assert compiled.solution.fallback is None
    with torch.no_grad():
        exact = run(x)
    assert ours.dtype == theirs.dtype == torch.float32
    assert float((ours - exact).abs().max()) <= 2 * float((theirs - exact).abs().max()) < 0.1
