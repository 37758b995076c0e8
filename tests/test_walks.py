"""What two walks beside each other say: growth, forgetting, units, and where nothing was measured."""

from __future__ import annotations

import math

import pytest
import torch

from fxsolve.certificate import KICK, REACH, TELLING, Gap, forgetting, in_units, most, signs, weakest, yardsticks

SCALE = [torch.ones(2, 3)]


def walked(*distances: float, start: float = 1000.0) -> Gap:
    """A gap that has looked at these distances, in the first of two blocks; the second block's walks are one."""
    gap = Gap(torch.tensor([start, start]))
    for distance in distances:
        a = torch.zeros(2, 3)
        a[0, 1] = distance
        assert gap.look([a], [torch.zeros(2, 3)], SCALE).tolist() == pytest.approx([distance, 0.0], nan_ok=True)
    return gap


@pytest.mark.parametrize("distances", [(500.0, 20.0, 0.5), (10.0, 900.0, 1.0), (0.0, 0.01, 90.0), (90000.0, 1.0)])
def test_decay_and_small_growth_pass(distances: tuple[float, ...]) -> None:
    assert not walked(*distances).grew()


GROWING = [(2e5,), (5.0, 600.0), (0.0, 101.0), (3.0, 2.0, 1.0, 150.0, 0.0), (math.inf,), (math.nan, 1.0)]


@pytest.mark.parametrize("distances", GROWING)
def test_growth_from_any_earlier_step_is_seen(distances: tuple[float, ...]) -> None:
    assert REACH == 100.0
    assert walked(*distances).grew()


def test_forgetting_is_the_worst_blocks_ratio() -> None:
    disturbed = torch.tensor([[100.0, 200.0], [50.0, 400.0]])
    ratios = forgetting(disturbed, torch.tensor([[1.0, 0.0], [0.0, 2.0]]), weakest(disturbed))
    assert ratios is not None and ratios.tolist() == pytest.approx([1 / 100, 2 / 50])


def test_nothing_is_said_where_too_little_was_moved() -> None:
    disturbed = torch.full((8, 8), 10 * TELLING)
    survived = torch.zeros(8, 8)
    disturbed[2, 3] = 0.0
    ratios = forgetting(disturbed, survived, weakest(disturbed))
    assert ratios is not None and not ratios.any()  # by chance, here
    disturbed[2, :3] = 0.0
    assert forgetting(disturbed, survived, weakest(disturbed)) is None  # half of one block
    disturbed[2] = 10 * TELLING
    disturbed[:3, 5] = 0.0
    assert forgetting(disturbed, survived, weakest(disturbed)) is None  # one component of three blocks


def test_units_of_what_is_not_finite_or_zero() -> None:
    a, b = torch.tensor([1.0, math.nan, 2.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    found = in_units([a], [b], [torch.tensor([0.0, 1.0, 0.0, 0.0])], 1)[0]
    assert found[0] == 0.0 and found[1] == math.inf and found[2] > 1e30 and found[3] == 0.0


def test_yardsticks_and_kicks() -> None:
    (scale,) = yardsticks([torch.tensor([[1.0, 3.0], [1e-9, 1.0]])], 2)
    assert torch.equal(scale, torch.tensor([[1.0, 3.0], [0.01 * (1.0 + 1e-9) / 2, 1.0]]))
    pattern = signs(torch.empty(50, 20))
    assert set(pattern.unique().tolist()) == {-1.0, 1.0} and abs(float(pattern.mean())) < 0.1
    assert KICK > 2 * TELLING


def test_least_and_most() -> None:
    disturbed = torch.tensor([[0.0, 5.0, 100.0, 1e6, 40.0, 50.0, 60.0, 70.0]])
    assert weakest(disturbed).tolist() == [40.0]  # what is below TELLING does not count
    assert most(disturbed).tolist() == [5.0]  # six of eight were moved more than that
