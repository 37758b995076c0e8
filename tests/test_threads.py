"""Calls from several threads: results are eager's, and nothing of torch is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from fxsolve.doors import DOORS, MAKERS, STAND_INS
from tests.test_drift import forgets

THREADS = 4


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    """work(0), work(1), .. at once: what they return; raises what one of them raises."""
    results: list[Any] = [None] * THREADS
    errors: list[BaseException] = []
    start = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            start.wait()
            with torch.no_grad():
                results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class Slots(nn.Module):
    """A sampler of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tril(torch.randn(24, 24, generator=torch.Generator().manual_seed(0)), -1))

    def forward(self, noise: Tensor) -> Tensor:
        x = torch.zeros_like(noise)
        for t in range(24):
            x[:, t] = torch.round(4 * torch.tanh(x @ self.weight.T + noise))[:, t]
        return x


def inputs(number: int, shape: tuple[int, ...], calls: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(shape, generator=generator) for _ in range(calls)]


CASES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "blocks": (forgets, fxsolve.JacobiGS(16, 10), (128, 2, 16)),
    "in order": (forgets, fxsolve.GaussSeidel(16), (64, 2, 16)),
    "slots": (Slots(), fxsolve.Jacobi(), (3, 24)),
    "automatic": (forgets, "auto", (200, 1, 16)),
    "the original": (forgets, "auto", (3, 1, 16)),
}


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("name", CASES)
def test_results_are_eagers(name: str, warm: bool) -> None:
    fn, solver, shape = CASES[name]
    compiled = fxsolve.compile(fn, solver=solver)
    if warm:
        with torch.no_grad():
            compiled(torch.randn(shape))

    def work(number: int) -> list[float]:
        return [float((compiled(x) - fn(x)).abs().max()) for x in inputs(number, shape, 20)]

    assert max(map(max, in_threads(work))) < 1e-5


def of_torch() -> list[Any]:
    names = [(owner, name) for owner, name, _ in (*DOORS, *MAKERS, *STAND_INS)] + [(torch.Tensor, "tolist")]
    return [vars(owner).get(name) for owner, name in names]


def test_first_calls_at_once_leave_torch_as_it_was() -> None:
    before = of_torch()
    given = [torch.randn(40 + number, 1, 16) for number in range(THREADS)]
    for _ in range(5):
        functions = [fxsolve.compile(forgets) for _ in range(THREADS)]
        in_threads(lambda number: functions[number](given[number]))  # noqa: B023
        assert of_torch() == before


def test_what_other_threads_do_is_no_part_of_a_recording() -> None:
    done = threading.Event()
    found: list[Any] = []

    def others() -> None:
        while not done.is_set():
            x = torch.tensor([1.0, 2.0])
            found.append((x.tolist(), x.numpy().sum(), torch.nn.functional.one_hot(torch.tensor([1]), 3)))

    thread = threading.Thread(target=others)
    thread.start()
    try:
        compiled = fxsolve.compile(forgets, fallback=False)
        with torch.no_grad():
            for length in range(100, 110):
                compiled(torch.randn(length, 1, 16))
                assert compiled.solution.first
    finally:
        done.set()
        thread.join()
    assert all(a == [1.0, 2.0] and b == 3.0 and c.tolist() == [[0, 1, 0]] for a, b, c in found)


def test_a_call_on_another_thread_does_not_wait_for_a_first_one() -> None:
    recorded, answered = threading.Event(), threading.Event()

    def fn(x: Tensor) -> Tensor:
        if threading.current_thread() is first:
            recorded.set()
            assert answered.wait(20)
        return x + 1

    compiled, other = fxsolve.compile(fn), fxsolve.compile(lambda x: x * 2)
    first = threading.Thread(target=lambda: compiled(torch.ones(2)))
    first.start()
    assert recorded.wait(20)
    for function, expected in ((compiled, 2.0), (other, 2.0)):
        assert function(torch.ones(2)).tolist() == [expected] * 2
        assert "on another thread" in function.solution.fallback
    answered.set()
    first.join()
    other(torch.ones(2))
    assert other.solution.first
