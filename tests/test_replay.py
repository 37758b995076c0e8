"""What is replayed as a CUDA graph, with a stand-in for the graph that runs the function again: the same on any machine.

The graphs themselves are tested in test_cuda.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxsolve
from examples.densenet.model import cifar
from examples.rnn.models import LinearGRUCell, LinearRNNCell, Loop, LSTMLoop
from fxsolve import GaussSeidel, JacobiGS
from fxsolve.chain import ChainRunner
from fxsolve.replay import NotReplayable, Replay
from fxsolve.schedule import BlockRunner
from fxsolve.solvers import Solver
from tests.checking import assert_certified, assert_same_bits, assert_to_rounding

T, D = 160, 8


class StandIn:
    """A graph that computes into the memory of its first results, from the memory of its first inputs."""

    count = 0

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        self.function, self.inputs = function, inputs
        self.results = pytree.tree_map_only(torch.Tensor, torch.clone, function(*inputs))

    def replay(self) -> None:
        StandIn.count += 1
        made = pytree.tree_leaves(self.function(*self.inputs))
        for into, value in zip(pytree.tree_leaves(self.results), made, strict=True):
            into.copy_(value)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def recorded(function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[StandIn, Any]:
        graph = StandIn(function, inputs)
        return graph, graph.results

    torch.manual_seed(0)
    StandIn.count = 0
    monkeypatch.setattr("fxsolve.replay.recorded", recorded)
    for module in ("chain", "lowered"):
        monkeypatch.setattr(f"fxsolve.{module}.replayable", lambda inputs: True)
    yield


def runner_of(compiled: Any) -> Any:
    (runner,) = compiled._compiler.last.executable.runners.values()
    return runner


LOOPS: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: Loop(LinearRNNCell(D, D)),
    "GRU": lambda: Loop(LinearGRUCell(D, D)),
    "LSTMCell": lambda: LSTMLoop(nn.LSTMCell(D, D)),
    "nn.GRU, both ways": lambda: nn.GRU(D, D, batch_first=True, bidirectional=True),
}


@pytest.mark.parametrize("solver", [JacobiGS(32, 20), JacobiGS(16), GaussSeidel(16)], ids=str)
@pytest.mark.parametrize("name", LOOPS)
def test_walks(name: str, solver: Solver) -> None:
    model = LOOPS[name]()
    inputs = [torch.randn(2, T, D) for _ in range(3)]
    compiled = fxsolve.compile(model, solver=solver)
    with torch.no_grad():
        ours, theirs = [], []
        for x in inputs:
            ours.append(compiled(x))
            assert_certified(compiled, solver)
            theirs.append(model(x))
        model.double()
        for x, a, b in zip(inputs, ours, theirs):  # the first ones too: no later call writes over a result
            assert_to_rounding(a, b, model(x.double()))
    assert StandIn.count


def test_trials_keep_the_graphs_of_the_choice_alone() -> None:
    model, x = Loop(LinearGRUCell(D, D)), torch.randn(1, 512, D)
    compiled = fxsolve.compile(model, verify="never")
    with torch.no_grad():
        compiled(x)
    entry = compiled._compiler.last
    ((runner),) = (entry.executable or entry.rejected).runners.values()
    assert isinstance(runner, BlockRunner) and runner.recurrence is not None and runner.plan is not None
    assert {window[2] for window in runner.recurrence.replays} == {runner.plan.solver.block_of(512)}


def test_layers_read_weights_where_they_are_and_keep_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cifar(22).eval()
    compiled = fxsolve.compile(model, solver=GaussSeidel())
    monkeypatch.setattr("fxsolve.chain.typical_seconds", lambda run: (run(), 1.0 / (1 + StandIn.count))[1])
    x, other = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        compiled(x)
        first = compiled(x)
        runner = runner_of(compiled)
        assert isinstance(runner, ChainRunner) and runner.replay is not None, runner.replayed
        assert len(runner.replay.copies) == 1  # the image
        assert_same_bits(compiled(other), model(other))
        assert_same_bits(first, model(x))
        for p in model.parameters():
            p.mul_(1.01)
        assert_same_bits(compiled(x), model(x))
        for k in range(6):
            for p in model.parameters():
                p.data = p.data * 0.99
            assert_same_bits(compiled(x), model(x))
            assert runner.replay.moves == k + 1 or not runner.replay.reads
    assert "as a CUDA graph" in compiled.explain()


def test_what_cannot_be_recorded_runs_call_by_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Any, Any]:
        raise NotReplayable("it waits")

    monkeypatch.setattr("fxsolve.replay.recorded", refused)
    x = torch.randn(1, 3, 32, 32)
    compiled = fxsolve.compile(cifar(22).eval(), solver=GaussSeidel())
    with torch.no_grad():
        compiled(x)
        assert_same_bits(compiled(x), compiled._compiler.fn(x))
    assert "no CUDA graph: it waits" in compiled.explain()
    model, y = Loop(LinearRNNCell(D, D)), torch.randn(2, T, D)
    compiled = fxsolve.compile(model, solver=JacobiGS(16, 10))
    with torch.no_grad():
        compiled(y)
        compiled(y)
    assert_certified(compiled)
    with pytest.raises(NotReplayable):
        Replay(lambda a: a, [x], ())
