"""The certificate under attack: cells that seem to forget and do not. Every result must be eager's, to rounding or in bits.

The cells are exact in float32 where they can be (small integers, powers of two), so that eager's own error is nothing
and a trajectory that is off by a few rounding units a block cannot hide behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fxsolve
from fxsolve import GaussSeidel, JacobiGS

from .checking import EPS, assert_same_bits, assert_to_rounding, doubled, later_call, quiet

LENGTH = 1024
SOLVERS: list[Any] = ["auto", JacobiGS(64, 16), JacobiGS(32, 16), JacobiGS(16), GaussSeidel(4), GaussSeidel(64)]


class Attack(NamedTuple):
    """A program of tensors, its arguments, and arguments of the same shapes on which it forgets at once."""

    fn: Callable[..., Tensor]
    args: tuple[Tensor, ...]
    benign: tuple[Tensor, ...] | None = None


ATTACKS: dict[str, Callable[[], Attack]] = {}


def attack(make: Callable[[], Attack]) -> Callable[[], Attack]:
    ATTACKS[make.__name__] = make
    return make


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def looped(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """All states of `h = step(h, *(x[t] for x in inputs))`."""

    def run(h: Tensor, *inputs: Tensor) -> Tensor:
        ys = []
        for t in range(inputs[0].shape[0]):
            h = step(h, *[x[t] for x in inputs])
            ys.append(h)
        return torch.stack(ys)

    return run


def every(period: int, value: float, *shape: int) -> Tensor:
    x = torch.zeros(LENGTH, *shape)
    x[::period] = value
    return x


gated = looped(lambda h, f, x: f * h + x)


# -- the list of the issue -------------------------------------------------------------------------


@attack
def copy_beside_one() -> Attack:
    """The readout hangs on a component of 5e-7 beside one of 1."""

    def run(h: Tensor, x: Tensor) -> Tensor:
        w = torch.eye(2, dtype=h.dtype)
        ys = []
        for t in range(x.shape[0]):
            h = h @ w + x[t]
            ys.append(torch.sin(2e6 * h[:, :1]))
        return torch.stack(ys)

    x = torch.zeros(LENGTH, 1, 2)
    x[::64, 0, 0] = 2.0**-40
    return Attack(run, (torch.tensor([[5e-7, 1.0]]), x))


@attack
def mixed_copy_beside_one() -> Attack:
    """The small component lives in a dense state whose other components are large."""

    def run(h: Tensor, x: Tensor) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            small, large = h[:, :1], torch.tanh(0.5 * h[:, 1:] + x[t])
            h = torch.cat([small + 2.0**-44 * large[:, :1].relu(), large], 1)
            ys.append(torch.cat([2e6 * h[:, :1], h[:, 1:]], 1))
        return torch.stack(ys)

    return Attack(run, (torch.tensor([[5e-7, 1.0, 0.5, 0.25]]), normal(LENGTH, 1, 3)))


@attack
def timestamp_in_a_gru() -> Attack:
    cell = torch.nn.GRUCell(3, 5)
    for p, s in zip(cell.parameters(), range(9), strict=False):
        p.data.copy_(0.3 * normal(*p.shape, seed=s))

    def run(h: Tensor, clock: Tensor, x: Tensor) -> Tensor:
        gru = cell.to(h.dtype)
        state = torch.cat([h, clock], 1)
        ys = []
        for t in range(x.shape[0]):
            h, clock = state[:, :5], state[:, 5:]
            state = torch.cat([gru(x[t], h), clock + 128.0], 1)
            ys.append(state)
        return torch.stack(ys)

    return Attack(run, (torch.zeros(1, 5), torch.full((1, 1), 1.7e9).div(128).round().mul(128), normal(LENGTH, 1, 3)))


@attack
def drift_of_four_eps() -> Attack:
    return Attack(looped(lambda h, x: h + x), (torch.ones(1, 3), torch.full((LENGTH, 1, 3), 4 * EPS)))


@attack
def float_counter() -> Attack:
    return Attack(looped(lambda h, x: h + 1 + 0 * x), (torch.zeros(1, 1), torch.zeros(LENGTH, 1, 1)))


@attack
def counter_beside_a_cell() -> Attack:
    def step(h: Tensor, x: Tensor) -> Tensor:
        return torch.cat([torch.tanh(0.5 * h[:, :3] + x), h[:, 3:] + 1], 1)

    return Attack(looped(step), (torch.zeros(1, 4), normal(LENGTH, 1, 3)))


@attack
def integer_counter() -> Attack:
    def run(h: Tensor, x: Tensor) -> Tensor:
        count, ys = torch.zeros(1, dtype=torch.long), []
        for t in range(x.shape[0]):
            count = count + (x[t, 0, :1] > 0)
            h = torch.tanh(0.5 * h + x[t])
            ys.append(h * count)
        return torch.stack(ys)

    return Attack(run, (torch.zeros(1, 3), normal(LENGTH, 1, 3)))


@attack
def bistable_latch() -> Attack:
    x = every(700, 3.0, 1, 2)
    x[350::700] = -3.0
    return Attack(looped(lambda h, x: torch.tanh(3 * h + x)), (torch.zeros(1, 2), x))


@attack
def latch_set_once() -> Attack:
    x = torch.zeros(LENGTH, 1, 2)
    x[100] = 4.0
    return Attack(looped(lambda h, x: torch.sigmoid(20 * (h - 0.5) + x)), (torch.zeros(1, 2), x))


@attack
def spiking_neuron() -> Attack:
    def step(h: Tensor, x: Tensor) -> Tensor:
        v = 0.9 * h + x
        return v * (v < 1)

    return Attack(looped(step), (torch.zeros(1, 16), torch.rand(LENGTH, 1, 16)))


# -- holding, and looking as if not ----------------------------------------------------------------


@attack
def rare_reset_of_a_large_state() -> Attack:
    """One excursion makes a large disturbance in one block, which a reset forgets; the others integrate."""
    x, f = every(4, 0.125, 1, 2), torch.ones(LENGTH, 1, 2)
    x[500], f[510], x[510] = 2.0**17, 0.0, 1.5e6
    h = torch.full((1, 2), 1.5e6)
    return Attack(gated, (h, f, x), (0 * h, 0.3 * f, normal(LENGTH, 1, 2)))


@attack
def large_counter() -> Attack:
    h, f, x = torch.full((1, 4), 4.1e6), torch.ones(LENGTH, 1, 4), torch.full((LENGTH, 1, 4), 0.25)
    return Attack(gated, (h, f, x), (0 * h, 0.3 * f, normal(LENGTH, 1, 4)))


@attack
def slow_counter() -> Attack:
    return Attack(looped(lambda h, x: h + x), (torch.full((1, 2), 1.5e6), every(64, 0.125, 1, 2)))


@attack
def peak_detector() -> Attack:
    """Attack at once, release slowly: whatever starts below forgets, what is at the peak does not."""
    return Attack(
        looped(lambda h, x, d: torch.maximum(h - d, x)),
        (torch.zeros(1, 2), every(512, 1.9, 1, 2).clamp(min=1.0), every(16, EPS, 1, 2)),
    )


@attack
def ratchet() -> Attack:
    return Attack(
        looped(lambda h, x, d: torch.maximum(h, x) + d),
        (torch.zeros(1, 2), torch.ones(LENGTH, 1, 2), every(32, EPS, 1, 2)),
    )


@attack
def ratchet_of_relu() -> Attack:
    return Attack(
        looped(lambda h, x, d: x + torch.relu(h - x) + d),
        (torch.zeros(1, 2), torch.ones(LENGTH, 1, 2), every(32, EPS, 1, 2)),
    )


@attack
def memory_that_a_disturbed_gate_wipes() -> Attack:
    """h holds while g is 0, as it is in truth; a move of g by 0.1 wipes h."""

    def step(s: Tensor, d: Tensor) -> Tensor:
        h, g = s[:, :2], s[:, 2:]
        keep = torch.exp(-1e6 * (g * g))
        return torch.cat([1 + (h - 1) * keep + d, 0.25 * g], 1)

    return Attack(looped(step), (torch.tensor([[1.0, 1.0, 0.0]]), every(32, EPS, 1, 2)))


@attack
def gates_that_a_disturbance_opens() -> Attack:
    """An LSTM-like pair: the forget gate is shut to exactly 1 around the trajectory only."""

    def step(s: Tensor, d: Tensor) -> Tensor:
        c, h = s[:, :1], s[:, 1:]
        keep = torch.sigmoid(40 - 1e5 * (h - 0.25).abs())
        c = 1 + (c - 1) * keep + d
        return torch.cat([c, 0.25 + 0.125 * (h - 0.25)], 1)

    return Attack(looped(step), (torch.tensor([[1.0, 0.25]]), every(32, EPS, 1, 1)))


@attack
def growth_before_decay() -> Attack:
    """A block of 32 begins with 16 doublings by 4 and ends with 16 quarterings: the end of it forgets, the whole does not."""
    f, x = torch.full((LENGTH, 1, 1), 4.0), torch.zeros(LENGTH, 1, 1)
    place = torch.arange(LENGTH) % 32
    f[place >= 16] = 0.25
    x[place == 30], x[place == 31] = 4.0, 2.0**-22 - 1
    return Attack(gated, (torch.zeros(1, 1), f, x))


@attack
def growth_before_decay_in_64() -> Attack:
    f, x = torch.full((LENGTH, 1, 1), 2.0), torch.zeros(LENGTH, 1, 1)
    place = torch.arange(LENGTH) % 64
    f[place >= 48] = 1 / 8
    x[place == 62], x[place == 63] = 8.0, 2.0**-22 - 1
    return Attack(gated, (torch.zeros(1, 1), f, x))


@attack
def growth_in_one_block() -> Attack:
    """Pulses that halve; in one place the state cancels exactly, grows by 8 twenty times, and shrinks again."""
    f, x, h = torch.full((LENGTH, 1, 8), 0.5), torch.zeros(LENGTH, 1, 8), torch.zeros(1, 8)
    x[60::64] = 1.0
    before = gated(h, f, x)
    x[513] = -0.5 * before[512]
    f[514:534], f[534:556] = 8.0, 0.125
    return Attack(gated, (h, f, x))


@attack
def consensus() -> Attack:
    """The mean is conserved and drifts, all differences die out."""
    n = 16
    centre = torch.eye(n) - 1 / n
    w = torch.full((n, n), 1 / n) + 0.4 * centre @ normal(n, n) @ centre / n**0.5

    def run(h: Tensor, x: Tensor, w: Tensor) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            h = h @ w + x[t]
            ys.append(h)
        return torch.stack(ys)

    return Attack(run, (torch.ones(1, n), torch.full((LENGTH, 1, n), 0.5 * EPS), w))


@attack
def held_in_some_blocks() -> Attack:
    """The gate is 1 for long stretches only in a part of the sequence."""
    f, x = torch.full((LENGTH, 1, 2), 0.25), every(16, EPS, 1, 2)
    x[:200] = normal(200, 1, 2)
    f[201:800] = 1.0
    x[200], x[201:800] = 1.0, every(16, EPS, 1, 2)[201:800]
    x[800:] = normal(LENGTH - 800, 1, 2)
    return Attack(gated, (torch.zeros(1, 2), f, x))


@attack
def held_in_one_sample() -> Attack:
    f, x = torch.full((LENGTH, 8, 2), 0.25), normal(LENGTH, 8, 2)
    f[:, 5], x[:, 5] = 1.0, every(32, EPS, 2)
    h = torch.zeros(8, 2)
    h[5] = 1.0
    return Attack(gated, (h, f, x))


@attack
def held_in_one_component_far_away() -> Attack:
    """One component of 32 is huge, holds and ticks; the others forget."""
    f, x = torch.full((LENGTH, 1, 32), 0.25), normal(LENGTH, 1, 32)
    f[:, :, 3], x[:, :, 3] = 1.0, every(16, 0.5, 1)
    h = torch.zeros(1, 32)
    h[0, 3] = 2.0**22
    return Attack(gated, (h, f, x))


@attack
def tiny_states() -> Attack:
    """Everything happens at 1e-9, far below the moves of the guess."""
    f, x = torch.ones(LENGTH, 1, 2), every(32, 2.0**-53, 1, 2)
    return Attack(gated, (torch.full((1, 2), 2.0**-30), f, x))


@attack
def decay_read_by_its_logarithm() -> Attack:
    """The state dies away over 200 steps; units must be those of the state itself, not of a guess that is larger."""

    def run(h: Tensor, x: Tensor) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            h = 0.75 * h + x[t]
            ys.append(h.clamp(min=1e-30).log())
        return torch.stack(ys)

    return Attack(run, (torch.ones(1, 2), every(512, 1.0, 1, 2)))


@attack
def near_copy() -> Attack:
    return Attack(gated, (torch.ones(1, 3), torch.full((LENGTH, 1, 3), 1 - 1e-6), 1e-6 * normal(LENGTH, 1, 3)))


@attack
def slow_leak() -> Attack:
    return Attack(gated, (torch.zeros(1, 3), torch.full((LENGTH, 1, 3), 0.999), normal(LENGTH, 1, 3)))


@attack
def leaks_of_all_speeds() -> Attack:
    f = (1 - 2.0 ** -torch.arange(0, 24)).expand(LENGTH, 1, 24).contiguous()
    return Attack(gated, (torch.zeros(1, 24), f, normal(LENGTH, 1, 24)))


@attack
def middling_leak() -> Attack:
    return Attack(gated, (torch.zeros(1, 3), torch.full((LENGTH, 1, 3), 0.69), normal(LENGTH, 1, 3)))


@attack
def very_different_scales() -> Attack:
    scale = 10.0 ** torch.arange(-12, 12).float()
    return Attack(gated, (torch.zeros(1, 24), torch.full((LENGTH, 1, 24), 0.5), normal(LENGTH, 1, 24) * scale))


@attack
def dead_relus() -> Attack:
    """Most units are dead for most of the time; some wake rarely and then hold."""
    w = torch.eye(8)

    def run(h: Tensor, x: Tensor, w: Tensor) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            h = torch.relu(h @ w + x[t])
            ys.append(h)
        return torch.stack(ys)

    x = torch.full((LENGTH, 1, 8), -0.5)
    x[300, 0, 2], x[301:, 0, 2] = 5.0, 0.0
    x[600, 0, 6], x[601:, 0, 6] = 7.0, every(16, 4 * EPS)[601:]
    return Attack(run, (torch.zeros(1, 8), x, w))


@attack
def long_shift_register() -> Attack:
    """Nilpotent, and longer than the blocks: an input comes out 100 steps later."""
    return Attack(
        looped(lambda h, x: torch.cat([x, h[:, :-1]], 1)), (torch.zeros(1, 100), normal(LENGTH, 1, 1))
    )


@attack
def amplifying_shift_register() -> Attack:
    return Attack(
        looped(lambda h, x: torch.cat([x, 1.5 * h[:, :-1]], 1)), (torch.zeros(1, 40), normal(LENGTH, 1, 1))
    )


@attack
def slow_rotation() -> Attack:
    """Neutral in a plane: a rotation by an angle that is exact nowhere, next to modes that decay."""
    angle = torch.tensor(0.01)
    w = 0.5 * torch.eye(6)
    w[:2, :2] = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    return Attack(lambda h, x, w: looped(lambda h, x: h @ w + x)(h, x), (torch.ones(1, 6), 1e-3 * normal(LENGTH, 1, 6), w))


@attack
def probability_vector() -> Attack:
    """The forward filter of a hidden Markov model with sticky states: normalised, and nearly a copy."""
    stay = 0.9999 * torch.eye(4) + 0.0001 / 4

    def run(p: Tensor, likely: Tensor, stay: Tensor) -> Tensor:
        ys = []
        for t in range(likely.shape[0]):
            p = p @ stay * likely[t]
            p = p / p.sum(1, keepdim=True)
            ys.append(p)
        return torch.stack(ys)

    likely = 1 + 0.01 * normal(LENGTH, 1, 4)
    return Attack(run, (torch.full((1, 4), 0.25), likely, stay))


@attack
def online_softmax() -> Attack:
    """Running maximum and running sum, as attention kernels carry them."""

    def run(m: Tensor, s: Tensor, x: Tensor) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            new = torch.maximum(m, x[t])
            s = s * torch.exp(m - new) + torch.exp(x[t] - new)
            m = new
            ys.append(m + s.log())
        return torch.stack(ys)

    return Attack(run, (torch.full((1, 2), -1e30), torch.zeros(1, 2), normal(LENGTH, 1, 2)))


@attack
def welford() -> Attack:
    """Running mean and variance: the gain 1/n becomes small."""

    def run(mean: Tensor, m2: Tensor, n: Tensor, x: Tensor) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            n = n + 1
            delta = x[t] - mean
            mean = mean + delta / n
            m2 = m2 + delta * (x[t] - mean)
            ys.append(mean + m2 / n)
        return torch.stack(ys)

    return Attack(run, (torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 1), normal(LENGTH, 1, 2)))


@attack
def compensated_sum() -> Attack:
    """Kahan's sum: the carried correction is all rounding error."""

    def run(s: Tensor, c: Tensor, x: Tensor) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            y = x[t] - c
            total = s + y
            c = (total - s) - y
            s = total
            ys.append(s)
        return torch.stack(ys)

    return Attack(run, (torch.zeros(1, 2), torch.zeros(1, 2), normal(LENGTH, 1, 2)))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_cells_that_seem_to_forget(name: str, solver: Any) -> None:
    """Without verification, and after a first call on which the step forgets: the certificate alone must see it."""
    fn, args, benign = ATTACKS[name]()
    compiled = fxsolve.compile(fn, solver=solver, verify="never")
    ours = quiet(lambda: later_call(compiled, args))
    with torch.no_grad():
        theirs, exact = fn(*args), fn(*map(doubled, args))
        assert_to_rounding(ours, theirs, exact)
        if benign is not None:
            compiled = fxsolve.compile(fn, solver=solver, verify="never")
            ours = quiet(lambda: later_call(compiled, args, first=benign))
            assert_to_rounding(ours, theirs, exact)


@pytest.mark.parametrize("solver", ["auto", JacobiGS(64, 24), JacobiGS(32), GaussSeidel(16)], ids=str)
@pytest.mark.parametrize("name", ["growth_in_one_block", "ratchet", "middling_leak"])
def test_no_call_of_many_is_wrong(name: str, solver: Any) -> None:
    """What is checked may change from call to call; the answer may not."""
    fn, args, _ = ATTACKS[name]()
    compiled = fxsolve.compile(fn, solver=solver, verify="never")
    first = quiet(lambda: later_call(compiled, args))
    for _ in range(12):
        with torch.no_grad():  # as `later_call`: another grad mode is another program, and its first call gives eager's bits
            ours = quiet(lambda: compiled(*args))
        assert_to_rounding(ours, fn(*args), fn(*map(doubled, args)))
        assert_same_bits(ours, first)


# -- cells that eager alone can follow: its bits are expected --------------------------------------


def gain(g: float) -> Callable[[], Attack]:
    w = g * normal(32, 32, seed=4) / 32**0.5

    def run(h: Tensor, x: Tensor, w: Tensor) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            h = torch.tanh(h @ w + x[t])
            ys.append(h)
        return torch.stack(ys)

    return lambda: Attack(run, (torch.zeros(1, 32), 0.1 * normal(LENGTH // 2, 1, 32), w))


def hashing() -> Attack:
    """Integers mixed as a hash mixes them."""
    x = torch.randint(0, 2**31, (LENGTH // 2, 1, 2), generator=torch.Generator().manual_seed(0))
    return Attack(looped(lambda h, x: ((h ^ x) * 6364136223846793005 + 1442695040888963407) ^ (h >> 7)), (x[0], x))


def float_hash() -> Attack:
    return Attack(looped(lambda h, x: torch.frac(h * 97.13 + x)), (torch.zeros(1, 4), torch.rand(LENGTH // 2, 1, 4)))


def logistic_map() -> Attack:
    return Attack(looped(lambda h, x: 3.9 * h * (1 - h) + 0 * x), (torch.full((1, 4), 0.3), torch.zeros(LENGTH // 2, 1, 4)))


CHAOS = {"gain 1.5": gain(1.5), "gain 2": gain(2.0), "hash": hashing, "float hash": float_hash, "logistic": logistic_map}


FORCED: list[Any] = [JacobiGS(32), JacobiGS(64, 16), JacobiGS(4096), GaussSeidel(4), GaussSeidel(32)]


@pytest.mark.parametrize("solver", ["auto", *FORCED], ids=str)
@pytest.mark.parametrize("name", CHAOS)
def test_chaos_gives_the_bits_of_eager(name: str, solver: Any) -> None:
    fn, args, _ = CHAOS[name]()
    compiled = fxsolve.compile(fn, solver=solver, verify="never")
    try:
        for first in (None, [a * 0 for a in args]):
            ours = quiet(lambda: later_call(compiled, args, first))  # noqa: B023
            assert_same_bits(ours, fn(*args))
    except fxsolve.ScheduleError as error:
        assert solver != "auto" and str(error)


# -- discontinuities: a last bit before a threshold is a whole unit after it ------------------------

DISCONTINUOUS: dict[str, Callable[[Tensor], Tensor]] = {
    "frac": torch.frac,
    "threshold": lambda v: F.threshold(v, 1.0, 0.0),
    "hardshrink": lambda v: v - F.hardshrink(v, 1.0),
    "where": lambda v: torch.where(v > 1.0, v - 1.0, v),
    "mask": lambda v: v * (v < 1.0),
    "masked_fill": lambda v: v.masked_fill(v > 1.0, 0.0),
    "floor": lambda v: v - v.floor(),
    "round": lambda v: torch.round(v * 8) / 8,
    "sign": lambda v: v - torch.sign(v - 1.0).clamp(min=0),
    "sgn": lambda v: v - torch.sgn(v - 1.0).clamp(min=0),
    "heaviside": lambda v: v - torch.heaviside(v - 1.0, torch.zeros(())),
    "angle": lambda v: v - torch.angle(1.0 - v) / 3.2,
    "atan2": lambda v: v - torch.atan2(torch.zeros(()), 1.0 - v) / 3.2,
    "remainder": lambda v: torch.remainder(v, 1.0),
    "fmod": lambda v: torch.fmod(v, 1.0),
    "bfloat16": lambda v: v.bfloat16().float(),
    "half": lambda v: v.half().float(),
    "int": lambda v: v - v.int(),
    "fake_quantize": lambda v: torch.fake_quantize_per_tensor_affine(v, 1 / 16, 0, -128, 127),
    "copysign": lambda v: v - 0.5 - torch.copysign(torch.tensor(0.5), v - 1.0),
    "max index": lambda v: v * 0.3 + 0.01 * v.argmax(-1, keepdim=True),
    "sort": lambda v: torch.sort(v, -1).indices * 0.1 + 0.3 * v,
    "trunc": lambda v: v - v.trunc(),
    "logical": lambda v: v * torch.logical_not((v - 1.0).clamp(min=0)),
    "bucketize": lambda v: v - torch.bucketize(v, torch.tensor([1.0, 2.0])),
    "one_hot": lambda v: 0.3 * v + F.one_hot(v.argmax(-1), 64).float(),
    "norm mode": lambda v: v - torch.clamp(torch.ceil(v) - 1, min=0),
    "hardtanh gradient": lambda v: v - torch.relu(torch.sign(v - 1.0)),
    "cast to bool": lambda v: v - (v - 1.0).clamp(min=0).bool().float(),
}


@pytest.mark.parametrize("name", DISCONTINUOUS)
def test_discontinuous_steps_give_the_bits_of_eager(name: str) -> None:
    op = DISCONTINUOUS[name]
    run = looped(lambda h, x: op(0.75 * h + x))
    x = torch.rand(512, 2, 64, generator=torch.Generator().manual_seed(1))
    h = torch.zeros(2, 64)
    for solver in ("auto", JacobiGS(32), GaussSeidel(16)):
        compiled = fxsolve.compile(run, solver=solver, verify="never")
        assert_same_bits(quiet(lambda: later_call(compiled, [h, x])), run(h, x))  # noqa: B023
