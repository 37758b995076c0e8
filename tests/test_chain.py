"""Chains of unequal layers end to end: every solver against eager, the certificate, and what it must not accept."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from fxsolve import GaussSeidel, GSJacobi, Jacobi, JacobiGS
from fxsolve.chain import ChainRunner
from fxsolve.layers import Layer, Sweeps
from fxsolve.solvers import Solver, drive
from fxsolve.together import Seconds, Together
from tests.checking import assert_certified, assert_same_bits, assert_to_rounding, doubled, later_call
from tests.passes.random_layers import random_network
from tests.passes.test_chain import W, block_of, found, residual

SOLVERS = (Jacobi(), JacobiGS(2), JacobiGS(3), GSJacobi(3), GaussSeidel())


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("exactness", ["auto", "bitwise"])
def test_random_networks(seed: int, exactness: str) -> None:
    net, shape = random_network(seed)
    solver = SOLVERS[seed % len(SOLVERS)]
    x, other = torch.randn(shape), torch.randn(shape)
    compiled = fxsolve.compile(net, solver=solver, exactness=exactness)
    ours = later_call(compiled, [x], [other])
    assert_certified(compiled, solver)
    (block,) = compiled.solution.blocks
    assert block.kind == "Chain" and block.sweeps <= block.equations
    with torch.no_grad():
        eager = net(x.clone())
        if block.residual == 0.0:
            assert_same_bits(ours, eager)
        assert exactness == "auto" or block.residual == 0.0
        exact = net.double()(doubled(x))
        net.float()
    assert_to_rounding(ours, eager, exact)


@pytest.mark.parametrize(("solver", "sweeps"), [(Jacobi(), 6), (JacobiGS(2), 3), (GSJacobi(2), 6), (GaussSeidel(), 1)], ids=str)
def test_a_sweep_makes_at_least_one_more_layer_or_block_final(solver: Solver, sweeps: int) -> None:
    block = block_of(found(residual, torch.randn(2, 3)))
    layers = [Layer(block.layers, n) for n in range(block.length)]
    consts = (torch.randn(2, 3), *[w * 1.0 for w in W[:5]])
    problem = Sweeps(block, layers, consts, noise=None)
    history = drive(problem, solver)
    assert len(history) == sweeps and history[-1] == 6
    assert_same_bits(problem.states[-1], residual_with(consts))


def residual_with(consts: tuple[Tensor, ...]) -> Tensor:
    x, *weights = consts
    for weight in weights:
        x = torch.relu(x + torch.tanh(x @ weight))
    return x


def test_layers_are_evaluated_again_only_if_what_they_read_has_changed() -> None:
    block = block_of(found(residual, torch.randn(2, 3)))
    layers = [Layer(block.layers, n) for n in range(block.length)]
    problem = Sweeps(block, layers, (torch.randn(2, 3), *W[:5]), noise=None)
    drive(problem, Jacobi())
    assert [sorted(n for block in sweep for n in block) for sweep in problem.rounds] == [list(range(k, 6)) for k in range(6)]


def amplifying(x: Tensor) -> Tensor:
    """What is small in the first sums decides at last: layers in between take differences of almost equal numbers."""
    for k in range(12):
        y = x @ W[k % 5]
        x = x + (y - y.roll(1, 1) * (1 + 1e-7 * k)) * 3 if k % 2 else x + torch.sin(100 * y)
    return x


def test_an_amplifying_network_is_not_certified_early() -> None:
    compiled = fxsolve.compile(amplifying, solver=Jacobi())
    x, other = torch.randn(2, 3), torch.randn(2, 3)
    ours = later_call(compiled, [x], [other])
    assert_certified(compiled, Jacobi())
    assert_to_rounding(ours, amplifying(x), amplifying_in_double(x))


def amplifying_in_double(x: Tensor) -> Tensor:
    kept = list(W)
    try:
        W[:] = [w.double() for w in kept]
        return amplifying(x.double())
    finally:
        W[:] = kept


def test_a_small_component_that_is_amplified_counts() -> None:
    """A component of 1e-9 beside one of 1 is off by a part: no norm over the state sees that, its own unit does."""
    scale = torch.tensor([1.0, 1e-9])

    def program(x: Tensor) -> Tensor:
        for k in range(6):
            y = torch.sin(x @ W[k][:2, :2] / scale.flip(0)[0]) * scale
            x = x + y
        return x * 1e9

    compiled = fxsolve.compile(program, solver=Jacobi())
    x = torch.randn(1, 2) * scale
    ours = later_call(compiled, [x], [torch.randn(1, 2) * scale])
    assert_certified(compiled, Jacobi())
    gap = (ours - program(x)).abs() / program(x).abs()
    assert float(gap.max()) < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_long_sums_are_as_near_to_float64_as_eagers(seed: int) -> None:
    """Units bound sums of many terms generously: convolutions over many channels must not stop at that bound."""
    torch.manual_seed(seed)
    layers = nn.ModuleList(nn.Conv2d(32 + 8 * k, 8, 3, padding=1) for k in range(12))
    norms = nn.ModuleList(nn.BatchNorm2d(32 + 8 * k) for k in range(12)).eval()

    def net(x: Tensor) -> Tensor:
        for layer, norm in zip(layers, norms):
            x = torch.cat([x, layer(torch.relu(norm(x)))], 1)
        return x.mean((2, 3))

    compiled = fxsolve.compile(net, solver=Jacobi())
    x = torch.randn(1, 32, 12, 12)
    ours = later_call(compiled, [x], [torch.randn(1, 32, 12, 12)])
    assert_certified(compiled, Jacobi())
    with torch.no_grad():
        eager = net(x)
        layers.double(), norms.double()
        assert_to_rounding(ours, eager, net(x.double()))


def test_deep_networks_stop_at_their_own_noise() -> None:
    """The last bits wander until the last layer is final; what eager itself rounds away need not be waited for."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Conv2d(16 + 4 * k, 4, 3, padding=1) for k in range(60))

    def net(x: Tensor) -> Tensor:
        for layer in layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return x.mean((2, 3))

    compiled = fxsolve.compile(net, solver=Jacobi())
    x = torch.randn(1, 16, 8, 8)
    ours = later_call(compiled, [x], [torch.randn(1, 16, 8, 8)])
    assert_certified(compiled, Jacobi())
    (block,) = compiled.solution.blocks
    assert block.sweeps < 30 and block.residual > 0 and block.contraction is not None and block.contraction < 0.5
    with torch.no_grad():
        eager = net(x)
        layers.double()
        assert_to_rounding(ours, eager, net(x.double()))


def test_a_drift_of_a_few_eps_a_layer_is_not_taken_for_noise() -> None:
    """Each layer adds 6 eps, within 8 units of its equation: states that were not reached yet would be accepted by that."""
    step = 6 * torch.finfo(torch.float32).eps

    def net(x: Tensor) -> Tensor:
        for k in range(24):
            x = x + torch.tanh(x @ W[k % 5]) * step
        return x

    compiled = fxsolve.compile(net, solver=Jacobi())
    x = torch.randn(2, 3)
    assert_same_bits(later_call(compiled, [x], [torch.randn(2, 3)]), net(x))
    (block,) = compiled.solution.blocks
    assert block.residual == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_eagers(value: float) -> None:
    net, shape = random_network(1)
    x = torch.randn(shape)
    x.view(-1)[0] = value
    compiled = fxsolve.compile(net, solver=Jacobi())
    assert_same_bits(later_call(compiled, [x], [torch.randn(shape)]).isnan(), net(x).isnan())


def test_without_a_solver_layers_run_in_order_and_explain_says_why() -> None:
    net, shape = random_network(3)
    compiled = fxsolve.compile(net)
    x = torch.randn(shape)
    for _ in range(3):
        with torch.no_grad():
            assert_same_bits(compiled(x), net(x))
    text = compiled.explain(devices=4)
    assert "Chain of" in text and "solver: GaussSeidel()" in text
    assert "on one device no other order of sweeps pays" in text
    assert "Jacobi() on 4 devices, simulated: " in text


@pytest.mark.parametrize("devices", [0, -1])
def test_devices_are_counted_from_one(devices: int) -> None:
    compiled = fxsolve.compile(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="from 1 on"):
        compiled.explain(devices=devices)
    with pytest.raises(ValueError, match="from 1 on"):
        compiled.predict(devices)


def test_predictions_of_more_devices_follow_from_the_layers() -> None:
    net, shape = random_network(0)
    compiled = fxsolve.compile(net, solver=Jacobi())
    later_call(compiled, [torch.randn(shape)])
    (runner,) = compiled._compiler.last.executable.runners.values()
    assert isinstance(runner, ChainRunner)
    runner.seconds, runner.tests, runner.looks = ([s] * runner.block.length for s in (2.0, 0.5, 1.0))
    runner.far.clear()
    assert runner.sweeps is not None
    runner.together, runner.sweeps.at_once = [], {}
    evaluated = [sum(map(len, blocks)) for blocks in runner.sweeps.rounds]
    looked = sum(evaluated[n] for n in runner.sweeps.looked)
    assert runner.predicted(1) == pytest.approx(2.5 * sum(evaluated) + looked)
    assert runner.predicted(1000) == pytest.approx(2.5 * sum(n > 0 for n in evaluated) + len(runner.sweeps.looked))
    halves = sum(-(-n // 2) * (3.5 if k in runner.sweeps.looked else 2.5) for k, n in enumerate(evaluated))
    assert runner.predicted(2) == pytest.approx(halves)
    for twice in (2.0, 2.0, 50.0):
        runner.follow(twice * (2.5 * sum(evaluated) + looked))
    assert runner.scale == pytest.approx(2.0) and runner.predicted(2) == pytest.approx(2.0 * halves), "as the last calls took"


@pytest.fixture(params=["plain", "fused"])
def always_together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whatever programs take, one of them is timed as the quickest."""
    seconds = {"plain": Seconds(1e-9, 1.0, 0.0, 0.0), "fused": Seconds(2e-9, 1e-9, 0.0, 0.0)}[request.param]

    def timed(self: Together, states: list[Tensor], consts: list[Tensor]) -> Together:
        self.seconds = seconds
        return self

    monkeypatch.setattr(Together, "timed", timed)
    return request.param


@pytest.mark.usefixtures("always_together")
@pytest.mark.parametrize("seed", range(24))
def test_layers_together(seed: int) -> None:
    net, shape = random_network(seed)
    solver = (Jacobi(), GSJacobi(3))[seed % 2]
    compiled = fxsolve.compile(net, solver=solver)
    x = torch.randn(shape)
    ours = later_call(compiled, [x], [torch.randn(shape)])
    assert_certified(compiled, solver)
    (block,), (runner,) = compiled.solution.blocks, compiled._compiler.last.executable.runners.values()
    assert isinstance(runner, ChainRunner) and runner.sweeps is not None
    assert 0 in runner.sweeps.at_once
    assert block.sweeps <= block.equations and all(a < b for a, b in pairwise(block.frontier))
    assert block.frontier[-1] == block.equations
    with torch.no_grad():
        eager = net(x.clone())
        if block.residual == 0.0:
            assert_same_bits(ours, eager)
        assert_to_rounding(ours, eager, net.double()(doubled(x)))


@pytest.mark.usefixtures("always_together")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_eagers_together_too(value: float) -> None:
    net, shape = random_network(1)
    x = torch.randn(shape)
    x.view(-1)[0] = value
    ours = later_call(fxsolve.compile(net, solver=Jacobi()), [x], [torch.randn(shape)])
    assert_same_bits(ours.isnan(), net(x).isnan())


@pytest.mark.usefixtures("always_together")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("solver", [Jacobi(), JacobiGS(2), GSJacobi(2)], ids=str)
def test_to_the_last_bit_nothing_is_fused(seed: int, solver: Solver) -> None:
    net, shape = random_network(seed)
    compiled = fxsolve.compile(net, solver=solver, exactness="bitwise")
    x = torch.randn(shape)
    assert_same_bits(later_call(compiled, [x], [torch.randn(shape)]), net(x))
    (runner,), (block,) = compiled._compiler.last.executable.runners.values(), compiled.solution.blocks
    assert isinstance(runner, ChainRunner) and not any(t.fuse or t.pays for t in runner.together)
    assert block.residual == 0.0 and block.sweeps <= block.equations


@pytest.mark.usefixtures("always_together")
def test_new_weights_are_laid_side_by_side_again() -> None:
    net, shape = random_network(2)
    compiled = fxsolve.compile(net, solver=Jacobi())
    x = torch.randn(shape)
    later_call(compiled, [x], [torch.randn(shape)])
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.5)
        ours, eager = compiled(x), net(x.clone())
        assert_certified(compiled, Jacobi())
        assert_to_rounding(ours, eager, net.double()(doubled(x)))


def test_one_program_is_one_piece_of_work_for_a_device_and_many_for_several(always_together: str) -> None:
    net, shape = random_network(0)
    compiled = fxsolve.compile(net, solver=Jacobi())
    later_call(compiled, [torch.randn(shape)])
    (runner,) = compiled._compiler.last.executable.runners.values()
    assert isinstance(runner, ChainRunner) and runner.sweeps is not None
    (together,) = runner.together
    assert 0 in runner.sweeps.at_once
    count = runner.block.length
    runner.seconds, runner.tests, runner.looks = ([s] * count for s in (2.0, 0.5, 1.0))
    preparing = 1.5 if always_together == "fused" else 0.0
    together.seconds = Seconds(4.0, 3.0, preparing, 0.0) if preparing else Seconds(3.0, 4.0, preparing, 0.0)
    runner.far.clear()
    runner.sweeps.rounds = [[[n] for n in range(count)], [[n] for n in range(1, count)]]
    runner.sweeps.at_once, runner.sweeps.looked = {0: 3.0}, {1}
    assert runner.predicted(1) == pytest.approx(preparing + 3.0 + 0.5 * count + 3.5 * (count - 1))
    assert runner.predicted(1000) == pytest.approx(preparing + 2.5 + 3.5)
    assert "a sweep of all layers: " in compiled.explain() and "with like layers as one call" in compiled.explain()


def test_with_gradients_the_original_runs() -> None:
    net, shape = random_network(3)
    compiled = fxsolve.compile(net)
    x = torch.randn(shape)
    compiled(x).sum().backward()
    ours = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    assert_same_bits(ours, [p.grad for p in net.parameters()])


def test_the_picture_has_a_node_for_each_layer(tmp_path) -> None:
    net, shape = random_network(0)
    compiled = fxsolve.compile(net, solver=Jacobi())
    later_call(compiled, [torch.randn(shape)])
    text = compiled.draw(tmp_path / "chain.dot").read_text()
    (runner,) = compiled._compiler.last.executable.runners.values()
    assert isinstance(runner, ChainRunner)
    assert all(f"s{n}: " in text for n in range(runner.block.length))
    assert "Chain" in compiled.report(tmp_path / "chain.html").read_text()
