"""On a GPU: every kind of block against eager, and CUDA graphs that must see what the program sees.

All other tests run there too, with `pytest --device cuda`; these need no such option, and are skipped without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from examples.densenet.model import cifar
from examples.made.model import MADE
from examples.rnn.models import LinearGRUCell, LinearRNNCell, Loop, LSTMLoop
from fxsolve import GaussSeidel, Jacobi, JacobiGS
from fxsolve.chain import ChainRunner
from fxsolve.replay import NotReplayable, Replay, replayable
from tests.checking import assert_certified, assert_same_bits, assert_to_rounding, later_call, quiet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
T, D = 256, 24


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    with torch.device("cuda"):
        yield


LOOPS: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: Loop(LinearRNNCell(D, D)),
    "GRU": lambda: Loop(LinearGRUCell(D, D)),
    "GRUCell": lambda: Loop(nn.GRUCell(D, D)),
    "LSTMCell": lambda: LSTMLoop(nn.LSTMCell(D, D)),
}


@pytest.mark.parametrize("solver", [JacobiGS(32, 20), GaussSeidel(32), None], ids=str)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", LOOPS)
def test_recurrences(name: str, batch: int, solver: fxsolve.JacobiGS | None) -> None:
    model = LOOPS[name]()
    compiled = fxsolve.compile(model, **({} if solver is None else {"solver": solver}))
    x, other = torch.randn(batch, T, D), torch.randn(batch, T, D)
    ours, theirs = later_call(compiled, [x], [other]), eager(model, x)
    if solver is not None:
        assert_certified(compiled, solver)
    again = later_call(compiled, [other], [x])
    assert_to_rounding(again, eager(model, other), eager(model.double(), other.double()))
    assert_to_rounding(ours, theirs, eager(model, x.double()))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_modules(kind: type[nn.RNNBase]) -> None:
    model = kind(D, D, batch_first=True)
    compiled = fxsolve.compile(model)
    x = torch.randn(2, T, D)
    assert_to_rounding(later_call(compiled, [x]), eager(model, x), eager(model.double(), x.double()))


def eager(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("batch", [1, 16])
def test_samplers_give_eagers_bits(batch: int) -> None:
    model = MADE(48, (64, 64)).eval()
    compiled = fxsolve.compile(model.sample)
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        theirs = quiet(lambda: model.sample(batch))
        after = torch.cuda.get_rng_state()
        torch.manual_seed(seed)
        ours = quiet(lambda: compiled(batch))
        assert_same_bits(ours, theirs)
        assert torch.equal(torch.cuda.get_rng_state(), after)


def test_gradients() -> None:
    model = Loop(LinearGRUCell(D, D))
    compiled = fxsolve.compile(model)
    x = torch.randn(2, T, D)
    for _ in range(3):
        found = []
        for program in (compiled, model):
            model.zero_grad()
            out = program(x)
            (out[0] if isinstance(out, tuple) else out).square().mean().backward()
            found.append([p.grad.clone() for p in model.parameters()])
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("solver", [None, Jacobi(), GaussSeidel()], ids=str)
def test_chains(solver: Jacobi | None) -> None:
    model = cifar(22).eval()
    compiled = fxsolve.compile(model, **({} if solver is None else {"solver": solver}))
    x, other = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    ours = later_call(compiled, [x], [other])
    if solver != Jacobi():
        assert_same_bits(ours, eager(model, x))
    assert float((ours - eager(model, x)).abs().max()) <= 1e-5 * float(ours.abs().max())


def graph_of(compiled: fxsolve.api.CompiledModule) -> Replay:
    entry = compiled._compiler.last
    assert entry is not None and entry.executable is not None
    (runner,) = entry.executable.runners.values()
    assert isinstance(runner, ChainRunner) and runner.replay is not None, runner.replayed
    return runner.replay


def test_a_graph_sees_weights_that_are_written_or_moved_and_keeps_no_result() -> None:
    model = cifar(22).eval()
    compiled = fxsolve.compile(model, solver=GaussSeidel())
    x, other = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        compiled(x)
        graph_of(compiled)
        first = compiled(x)
        assert_same_bits(compiled(other), model(other))
        assert_same_bits(first, model(x))
        for p in model.parameters():
            p.mul_(1.01)
        assert_same_bits(compiled(x), model(x))
        for p in model.parameters():
            p.data = p.data * 0.99
        assert_same_bits(compiled(x), model(x))
        assert_same_bits(compiled(other), model(other))


def test_what_waits_for_its_results_is_not_recorded() -> None:
    x = torch.randn(4)
    assert replayable([x]) and not replayable([x, x.cpu()])
    with pytest.raises(NotReplayable):
        Replay(lambda a: a * a.sum().item(), [x], ())
    assert_same_bits(Replay(lambda a: a * a.sum(), [x], ())(x + 1), (x + 1) * (x + 1).sum())


def test_a_walk_in_order_is_one_graph() -> None:
    model = Loop(LinearRNNCell(D, D))
    compiled = fxsolve.compile(model, solver=GaussSeidel(16))
    x, other = torch.randn(1, T, D), torch.randn(1, T, D)
    ours = later_call(compiled, [x], [other])
    (runner,) = compiled._compiler.last.executable.runners.values()
    assert [r for r in runner.recurrence.replays.values() if r is not None]
    assert_to_rounding(ours, eager(model, x), eager(model.double(), x.double()))


def test_a_loop_that_repeats_a_function_ends_early() -> None:
    lower = torch.randn(24, 24).tril(-1)

    def inverse(z: Tensor) -> Tensor:
        x = torch.zeros_like(z)
        for _ in range(24):
            x = z - torch.tanh(x @ lower)
        return x

    z = torch.randn(3, 24)
    compiled = fxsolve.compile(inverse)
    assert_same_bits(later_call(compiled, [z], [z + 1]), inverse(z))
