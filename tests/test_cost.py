"""The cost model: phases on several devices, and independent pieces of work shared out among them."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

import fxsolve
from fxsolve.cost import Phase, StepCost, fitted, launch_seconds, makespan, pays_from, predicted
from fxsolve.trials import expected_seconds
from tests.checking import later_call

CPU = torch.device("cpu")


def test_a_phase_is_divided_but_for_its_calls() -> None:
    phase = Phase("steps", seconds=10.0, rounds=3, calls=2, parts=8)
    assert phase.on(1, launch=1.0) == 30.0
    assert phase.on(4, launch=1.0) == 3 * (2 + 8 / 4)
    assert phase.on(100, launch=1.0) == 3 * (2 + 8 / 8), "there are eight parts"
    assert phase.on(4, launch=100.0) == 30.0, "no more than all of it is calls"


def test_phases_add_up() -> None:
    phases = [Phase("a", 1.0, 2, 0, 1), Phase("b", 4.0, 1, 0, 4)]
    assert predicted(phases, 1, CPU) == 6.0
    assert predicted(phases, 4, CPU) == 3.0
    assert 1e-8 < launch_seconds(CPU) < 1e-3


def step(seconds: float, parts: int) -> Phase:
    return Phase("steps", seconds, rounds=1, calls=10, parts=parts)


def test_a_step_has_a_fixed_share_and_one_for_each_part() -> None:
    assert fitted(step(9.0, 8), step(3.0, 2), launch=0.01) == StepCost(1.0, 1.0)
    assert fitted(step(5.0, 8), step(5.0, 2), launch=0.01) == StepCost(5.0, 0.0), "as quick with more parts"
    assert fitted(step(4.0, 8), step(5.0, 2), launch=0.01) == StepCost(4.0, 0.0), "even quicker: noise"
    assert fitted(step(9.0, 8), step(9.0, 8), launch=0.1) == StepCost(1.0, 1.0), "one length of blocks: its calls are fixed"
    assert fitted(step(9.0, 8), step(1.0, 4), launch=0.1) == StepCost(1.0, 1.0), "calls take their time at the least"


def test_what_is_expected_of_blocks_and_of_the_walk_in_order() -> None:
    cost = StepCost(fixed=3.0, each=0.5)
    assert expected_seconds(fxsolve.JacobiGS(10, 6), cost, 100, until_met=4) == (10 + 6 + 4) * (3 + 10 * 0.5)
    assert expected_seconds(fxsolve.GaussSeidel(8), cost, 100, until_met=4) == 100 * 3.5


def test_from_where_on_blocks_pay() -> None:
    """20 steps of T / 10 blocks: 20 (3 + 0.5 T / 10) = T + 60, against 2 T."""
    cost = StepCost(fixed=3.0, each=0.5)
    assert pays_from(cost, block=10, steps=20, eager=2.0) == 60.0
    assert pays_from(cost, block=10, steps=20, eager=1.0) is None


def test_explain_says_what_was_expected_and_from_where_on_it_pays() -> None:
    compiled = fxsolve.compile(loop)
    with torch.no_grad():
        compiled(torch.randn(256, 2, 8))
    text = compiled.explain()
    assert re.search(r"ms \(\d+\.\d\d ms expected\), \d sweeps?, \d+ kB, certified", text)
    assert "is expected to pay from" in text or "pays at no length" in text


@pytest.mark.parametrize(
    ("costs", "devices", "seconds"),
    [([3, 1, 1, 1], 1, 6), ([3, 1, 1, 1], 2, 3), ([3, 1, 1, 1], 9, 3), ([2, 2, 2], 2, 4), ([5, 4, 3, 3, 3], 2, 10), ([], 3, 0)],
)
def test_the_longest_work_starts_first(costs: list[float], devices: int, seconds: float) -> None:
    assert makespan(costs, devices) == seconds


def loop(x: torch.Tensor) -> torch.Tensor:
    h, outs = torch.zeros(2, 8), []
    for t in range(x.shape[0]):
        h = torch.tanh(0.3 * h + x[t])
        outs.append(h)
    return torch.stack(outs)


def sampler(n: torch.Tensor) -> torch.Tensor:
    mask = torch.tril(torch.ones(12, 12), -1)
    x = torch.zeros(2, 12)
    for i in range(12):
        x[:, i] = torch.tanh(x @ mask.T)[:, i] + torch.randn(2)
    return x


@pytest.mark.parametrize("solver", [fxsolve.JacobiGS(16), fxsolve.GaussSeidel(8), fxsolve.GaussSeidel()])
def test_a_loop_is_predicted(solver: fxsolve.solvers.Solver) -> None:
    compiled = fxsolve.compile(loop, solver=solver)
    later_call(compiled, [torch.randn(128, 2, 8)])
    one, several = compiled.predict(), compiled.predict(8)
    assert one is not None and several is not None and 0 < several <= one
    assert "predicted on this device" in compiled.explain()
    assert "simulated on 8 devices" in compiled.explain(devices=8)


def test_a_sampler_is_predicted_by_its_passes() -> None:
    compiled = fxsolve.compile(sampler, solver=fxsolve.Jacobi())
    later_call(compiled, [torch.zeros(1)])
    (runner,) = compiled._compiler.last.executable.runners.values()
    first, second = runner.phases
    (block,) = compiled.solution.blocks
    assert list(runner.recent) == [block] and runner.predicted(1) == pytest.approx(block.seconds)
    runner.recent.clear()
    assert runner.predicted(1) == pytest.approx(block.steps * (first.seconds + second.seconds))


def test_predictions_follow_what_the_last_calls_took() -> None:
    compiled = fxsolve.compile(loop, solver=fxsolve.JacobiGS(16))
    later_call(compiled, [torch.randn(128, 2, 8)])
    (runner,) = compiled._compiler.last.executable.runners.values()
    (block,) = runner.recent
    several = runner.predicted(8)
    for factor in (3.0, 3.0, 3.0, 100.0, 100.0):  # the median counts: the first one is gone by then
        runner.recent.append(dataclasses.replace(block, seconds=factor * block.seconds))
    assert runner.predicted(1) == pytest.approx(3.0 * block.seconds)
    assert several < runner.predicted(8) <= runner.predicted(1)


def test_nothing_to_predict() -> None:
    compiled = fxsolve.compile(torch.nn.Linear(2, 2))
    assert compiled.predict() is None
    compiled(torch.zeros(1, 2))
    assert compiled.predict(4) is None
