"""Recurrences end to end: cells as users write them, layers, shapes, and every solver forced."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsolve
from fxsolve import GaussSeidel, GSJacobi, Jacobi, JacobiGS, ScheduleError

from .checking import (
    assert_certified,
    assert_close,
    assert_same_bits,
    assert_to_rounding,
    clones,
    doubled,
    later_call,
    quiet,
)

INPUTS, HIDDEN, LENGTH = 5, 8, 96
PARALLEL = [JacobiGS(8), JacobiGS(16, 8), JacobiGS(50), Jacobi(), GSJacobi(24), GaussSeidel(12)]
IN_ORDER = [GaussSeidel(), GaussSeidel(4)]
ALL = [*PARALLEL, GaussSeidel()]


class Loop(nn.Module):
    """A cell called in a Python loop, as a user would write it."""

    def __init__(self, cell: nn.Module, batch_first: bool = False, backwards: bool = False) -> None:
        super().__init__()
        self.cell, self.batch_first, self.backwards = cell, batch_first, backwards

    def forward(self, x: Tensor, h: Any = None) -> tuple[Tensor, Any]:
        if self.batch_first:
            x = x.transpose(0, 1)
        steps = range(x.shape[0] - 1, -1, -1) if self.backwards else range(x.shape[0])
        ys: list[Tensor] = []
        for t in steps:
            h = self.cell(x[t], h)
            ys.append(h[0] if isinstance(h, tuple) else h)
        if self.backwards:
            ys.reverse()
        return torch.stack(ys, 1 if self.batch_first else 0), h


class WrittenGRU(nn.Module):
    """A GRU cell written out: two linear layers, chunk, sigmoid and tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.of_input = nn.Linear(INPUTS, 3 * HIDDEN)
        self.of_state = nn.Linear(HIDDEN, 3 * HIDDEN)

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        if h is None:
            h = x.new_zeros(x.shape[0], HIDDEN)
        xr, xz, xn = self.of_input(x).chunk(3, -1)
        hr, hz, hn = self.of_state(h).chunk(3, -1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        return (1 - z) * torch.tanh(xn + r * hn) + z * h


class WrittenLSTM(nn.Module):
    """An LSTM cell written out: one linear layer of both, split into gates."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(INPUTS + HIDDEN, 4 * HIDDEN)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        h, c = state if state is not None else (x.new_zeros(x.shape[0], HIDDEN),) * 2
        i, f, g, o = self.both(torch.cat([x, h], -1)).split(HIDDEN, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Einsum(nn.Module):
    """A plain cell in einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(0.3 * torch.randn(HIDDEN, INPUTS))
        self.w = nn.Parameter(0.2 * torch.randn(HIDDEN, HIDDEN))

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        if h is None:
            h = x.new_zeros(x.shape[0], HIDDEN)
        return torch.tanh(torch.einsum("bi,hi->bh", x, self.v) + torch.einsum("bk,hk->bh", h, self.w))


CELLS: dict[str, Callable[[], nn.Module]] = {
    "RNNCell": lambda: nn.RNNCell(INPUTS, HIDDEN),
    "RNNCell relu": lambda: nn.RNNCell(INPUTS, HIDDEN, nonlinearity="relu"),
    "RNNCell no bias": lambda: nn.RNNCell(INPUTS, HIDDEN, bias=False),
    "GRUCell": lambda: nn.GRUCell(INPUTS, HIDDEN),
    "LSTMCell": lambda: nn.LSTMCell(INPUTS, HIDDEN),
    "written GRU": WrittenGRU,
    "written LSTM": WrittenLSTM,
    "einsum": Einsum,
}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def check_module(module: nn.Module, args: list[Any], solver: Any = "auto") -> Any:
    """A later call of the compiled module against eager and against a float64 run."""
    compiled = fxsolve.compile(module, solver=solver)
    ours = later_call(compiled, args)
    with torch.no_grad():
        theirs = module(*clones(args))
        exact = copy.deepcopy(module).double()(*[doubled(a) for a in args])
    assert_to_rounding(ours, theirs, exact)
    if solver != "auto":
        assert_certified(compiled, solver)
    return compiled


def check_function(fn: Callable[..., Any], args: list[Any], solver: Any = "auto") -> Any:
    """The same for a function of tensors only."""
    compiled = fxsolve.compile(fn, solver=solver)
    ours = later_call(compiled, args)
    with torch.no_grad():
        assert_to_rounding(ours, fn(*clones(args)), fn(*[doubled(a) for a in args]))
    if solver != "auto":
        assert_certified(compiled, solver)
    return compiled


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CELLS)
def test_cells_in_parallel_blocks(name: str, batch: int) -> None:
    module = Loop(seeded(CELLS[name]))
    compiled = check_module(module, [inputs(LENGTH, batch, INPUTS)], JacobiGS(16))
    (block,) = compiled.solution.blocks
    assert LENGTH - 1 <= block.equations <= LENGTH  # the first step may be another one: it makes its own state
    assert block.steps < LENGTH


@pytest.mark.parametrize("solver", ALL, ids=str)
@pytest.mark.parametrize("name", ["RNNCell", "written GRU", "LSTMCell"])
def test_every_solver(name: str, solver: Any) -> None:
    check_module(Loop(seeded(CELLS[name])), [inputs(LENGTH, 2, INPUTS)], solver)


@pytest.mark.parametrize("name", CELLS)
def test_the_automatic_choice_is_right(name: str) -> None:
    check_module(Loop(seeded(CELLS[name])), [inputs(512, 1, INPUTS)])


@pytest.mark.parametrize("name", CELLS)
def test_in_order_gives_the_bits_of_eager(name: str) -> None:
    module = Loop(seeded(CELLS[name]))
    compiled = fxsolve.compile(module, solver=GaussSeidel())
    ours = later_call(compiled, [inputs(LENGTH, 2, INPUTS)])
    with torch.no_grad():
        assert_same_bits(ours, module(inputs(LENGTH, 2, INPUTS)))
    assert_certified(compiled, GaussSeidel())


@pytest.mark.parametrize("name", CELLS)
def test_in_order_without_the_invariants(name: str) -> None:
    module = Loop(seeded(CELLS[name]))
    compiled = fxsolve.compile(module, solver=GaussSeidel(24))
    check_module(module, [inputs(LENGTH, 2, INPUTS)], GaussSeidel(24))
    later_call(compiled, [inputs(LENGTH, 2, INPUTS)])
    assert_certified(compiled, GaussSeidel(24))
    (block,) = compiled.solution.blocks
    assert block.contraction < 0.5 and block.steps == block.equations and block.residual == 0.0


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("solver", ["auto", JacobiGS(2), JacobiGS(16), Jacobi(), GSJacobi(3), *IN_ORDER], ids=str)
def test_short_sequences(length: int, solver: Any) -> None:
    def run(x: Tensor, h: Tensor, w: Tensor) -> tuple[list[Tensor], Tensor]:
        ys = []
        for t in range(x.shape[0]):
            h = torch.tanh(x[t] + h @ w)
            ys.append(h)
        return ys, h

    args = [inputs(length, 2, HIDDEN), inputs(2, HIDDEN), 0.2 * inputs(HIDDEN, HIDDEN)]
    ours = later_call(fxsolve.compile(run, solver=solver), args)
    with torch.no_grad():
        assert_to_rounding(ours, run(*args), run(*map(doubled, args)))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["GRUCell", "written LSTM"])
def test_layouts(name: str, batch_first: bool, backwards: bool) -> None:
    module = Loop(seeded(CELLS[name]), batch_first, backwards)
    shape = (3, LENGTH, INPUTS) if batch_first else (LENGTH, 3, INPUTS)
    check_module(module, [inputs(*shape)], JacobiGS(16))


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_given_initial_state(name: str) -> None:
    module = Loop(seeded(CELLS[name]))
    h: Any = inputs(3, HIDDEN)
    if name == "LSTMCell":
        h = (h, inputs(3, HIDDEN) * 0.5)
    compiled = fxsolve.compile(module, solver=JacobiGS(16))
    with torch.no_grad():
        compiled(inputs(LENGTH, 3, INPUTS), h)
        ours = compiled(inputs(LENGTH, 3, INPUTS), h)
        assert_close(ours, module(inputs(LENGTH, 3, INPUTS), h))
    assert_certified(compiled, JacobiGS(16))


@pytest.mark.parametrize("name", CELLS)
def test_double_precision(name: str) -> None:
    module = Loop(seeded(CELLS[name])).double()
    args = [inputs(LENGTH, 2, INPUTS, dtype=torch.float64)]
    compiled = fxsolve.compile(module, solver=JacobiGS(32))
    ours = later_call(compiled, args)
    with torch.no_grad():
        assert_close(ours, module(*args))
    assert_certified(compiled, JacobiGS(32))


def test_unbatched_cell() -> None:
    check_module(Loop(seeded(CELLS["GRUCell"])), [inputs(LENGTH, INPUTS)], JacobiGS(16))


class Bidirectional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ahead, self.back = Loop(nn.GRUCell(INPUTS, HIDDEN)), Loop(nn.GRUCell(INPUTS, HIDDEN), backwards=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.ahead(x)[0], self.back(x)[0]], -1)


class TwoLayers(nn.Module):
    """The second layer runs over the first one's whole output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Loop(nn.GRUCell(INPUTS, HIDDEN)), Loop(nn.RNNCell(HIDDEN, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[0])[0]


class Interleaved(nn.Module):
    """Both layers advance in one loop."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRUCell(INPUTS, HIDDEN), nn.LSTMCell(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h, state, ys = None, None, []
        for step in x:
            h = self.first(step, h)
            state = self.second(h, state)
            ys.append(state[0])
        return torch.stack(ys)


@pytest.mark.parametrize(("make", "blocks"), [(Bidirectional, 2), (TwoLayers, 2), (Interleaved, 1)])
def test_several_layers(make: Callable[[], nn.Module], blocks: int) -> None:
    compiled = check_module(seeded(make), [inputs(LENGTH, 2, INPUTS)], JacobiGS(24))
    assert len(compiled.solution.blocks) == blocks


LIBRARY = {
    "RNN": lambda **k: nn.RNN(INPUTS, HIDDEN, **k),
    "RNN relu": lambda **k: nn.RNN(INPUTS, HIDDEN, nonlinearity="relu", **k),
    "GRU": lambda **k: nn.GRU(INPUTS, HIDDEN, **k),
    "LSTM": lambda **k: nn.LSTM(INPUTS, HIDDEN, **k),
    "LSTM proj": lambda **k: nn.LSTM(INPUTS, HIDDEN, proj_size=3, **k),
}
FORMS: list[dict[str, Any]] = [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}]


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's own
@pytest.mark.parametrize("form", FORMS, ids=lambda f: " ".join(f) or "plain")
@pytest.mark.parametrize("name", LIBRARY)
def test_library_modules(name: str, form: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = LIBRARY[name](**form)
    shape = (2, LENGTH, INPUTS) if form.get("batch_first") else (LENGTH, 2, INPUTS)
    quiet(lambda: check_module(module, [inputs(*shape)]))


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_library_modules_forced(name: str) -> None:
    torch.manual_seed(0)
    compiled = check_module(LIBRARY[name](), [inputs(LENGTH, 2, INPUTS)], JacobiGS(16))
    (block,) = compiled.solution.blocks
    assert LENGTH - 1 <= block.equations <= LENGTH


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", LIBRARY)
def test_library_modules_with_state_and_unbatched(name: str) -> None:
    torch.manual_seed(0)
    module = LIBRARY[name]()
    out = 3 if name == "LSTM proj" else HIDDEN
    h: Any = inputs(1, out)
    if name.startswith("LSTM"):
        h = (h, inputs(1, HIDDEN))
    compiled = fxsolve.compile(module)
    with torch.no_grad():
        quiet(lambda: compiled(inputs(LENGTH, INPUTS), h))
        assert_close(compiled(inputs(LENGTH, INPUTS), h), module(inputs(LENGTH, INPUTS), h))


# -- loops on closures, in place, with results in containers ---------------------------------------


def test_linear_on_closure_tensors() -> None:
    w, v, b = 0.2 * inputs(HIDDEN, HIDDEN), inputs(HIDDEN, INPUTS), inputs(HIDDEN)

    def run(x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[1], HIDDEN)
        for t in range(x.shape[0]):
            h = torch.tanh(F.linear(x[t], v, b) + F.linear(h, w))
        return h

    compiled = fxsolve.compile(run, solver=JacobiGS(16))
    x = inputs(LENGTH, 2, INPUTS)
    assert_close(later_call(compiled, [x]), run(x))
    w.mul_(0.5)  # in place: seen without a new plan
    assert_close(compiled(x), run(x))
    assert_certified(compiled, JacobiGS(16))


def filtered(x: Tensor) -> Tensor:
    """y[t] = 0.4 y[t-1] - 0.2 y[t-2] + x[t], written in place."""
    y = torch.zeros_like(x)
    y[:, 0] = x[:, 0]
    y[:, 1] = 0.4 * y[:, 0] + x[:, 1]
    for t in range(2, x.shape[1]):
        y[:, t] = 0.4 * y[:, t - 1] - 0.2 * y[:, t - 2] + x[:, t]
    return y


@pytest.mark.parametrize("solver", ALL, ids=str)
def test_in_place_filter(solver: Any) -> None:
    check_function(filtered, [inputs(3, LENGTH)], solver)


def test_states_written_into_a_buffer() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], LENGTH, HIDDEN, dtype=x.dtype)
        h = torch.zeros(x.shape[0], HIDDEN, dtype=x.dtype)
        for t in range(LENGTH):
            h = torch.tanh(x[:, t] + h @ w)
            out[:, t] = h
        return out

    check_function(run, [inputs(2, LENGTH, HIDDEN), 0.2 * inputs(HIDDEN, HIDDEN)], JacobiGS(16))


Pair = namedtuple("Pair", "ys last")


class Named(NamedTuple):
    inner: dict[str, Any]
    count: int


def nested(x: Tensor, w: Tensor) -> Any:
    h, ys = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = torch.tanh(x[t] + h @ w)
        ys.append(h)
    return {"pair": Pair(torch.stack(ys), h), "rest": [Named({"h": h * 2, "none": None}, len(ys)), (), "text"]}


@pytest.mark.parametrize("solver", ["auto", JacobiGS(16)], ids=str)
def test_results_in_containers(solver: Any) -> None:
    args = [inputs(LENGTH, 2, HIDDEN), 0.2 * inputs(HIDDEN, HIDDEN)]
    ours = later_call(fxsolve.compile(nested, solver=solver), args)
    theirs = nested(*args)
    assert_to_rounding(ours, theirs, nested(*map(doubled, args)))
    assert isinstance(ours["pair"], Pair) and isinstance(ours["rest"][0], Named)
    assert ours["rest"][0].count == LENGTH and ours["rest"][2] == "text"


def test_lists_and_single_states_as_results() -> None:
    def run(x: Tensor, w: Tensor) -> Any:
        h, ys = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = torch.tanh(x[t] + h @ w)
            ys.append(h)
        return ys, ys[3], ys[-1], torch.stack(ys[::2]), torch.cat(ys[5:20], -1)

    check_function(run, [inputs(LENGTH, 2, HIDDEN), 0.2 * inputs(HIDDEN, HIDDEN)], JacobiGS(16))


def test_steps_that_differ_at_the_ends() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        h = x[0] * 3
        for t in range(1, x.shape[0]):
            h = torch.tanh(x[t] + h @ w)
            if t == 1:
                h = h + 1
            if t == x.shape[0] - 1:
                h = h * 2
        return h

    check_function(run, [inputs(LENGTH, 2, HIDDEN), 0.2 * inputs(HIDDEN, HIDDEN)], JacobiGS(16))


def test_two_kinds_of_steps_alternate() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = torch.tanh(x[t] + h @ w) if t % 2 else torch.sigmoid(x[t] - h @ w)
        return h

    compiled = check_function(run, [inputs(LENGTH, 2, HIDDEN), 0.2 * inputs(HIDDEN, HIDDEN)], JacobiGS(8))
    assert compiled.solution.blocks[0].equations >= LENGTH // 2 - 2


def test_numbers_of_the_step_become_a_table() -> None:
    def run(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t] * (t % 5) + x[(7 * t) % x.shape[0]]
        return h

    check_function(run, [inputs(LENGTH, 2)], JacobiGS(16))


def test_readout_of_a_state_two_steps_back() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        before = now = torch.zeros_like(x[0])
        ys = []
        for t in range(x.shape[0]):
            before, now = now, torch.tanh(x[t] + now @ w - 0.3 * before)
            ys.append(now * before)
        return torch.stack(ys)

    check_function(run, [inputs(LENGTH, 2, HIDDEN), 0.2 * inputs(HIDDEN, HIDDEN)], JacobiGS(16))


@pytest.mark.parametrize("solver", PARALLEL, ids=str)
def test_no_state_at_all(solver: Any) -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        return torch.stack([torch.tanh(x[t] @ w) * x[t].sum() for t in range(x.shape[0])])

    quiet(lambda: check_function(run, [inputs(LENGTH, 2, HIDDEN), inputs(HIDDEN, HIDDEN)]))
    compiled = fxsolve.compile(run, solver=solver)
    args = [inputs(LENGTH, 2, HIDDEN), inputs(HIDDEN, HIDDEN)]
    assert_close(later_call(compiled, args), run(*args))


def test_a_forced_solver_that_cannot_apply_says_why() -> None:
    def run(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = h + torch._standard_gamma(1 + (h + x[t]) ** 2)
        return h

    with pytest.raises(ScheduleError, match=r"block0 .*test_recurrence.py:\d+.*random numbers"):
        fxsolve.compile(run, solver=Jacobi())(inputs(LENGTH, 2))


def test_bitwise_recurrences_stay_in_order_and_say_so() -> None:
    module = Loop(seeded(CELLS["RNNCell"]))
    compiled = fxsolve.compile(module, exactness="bitwise")
    ours = later_call(compiled, [inputs(256, 1, INPUTS)])
    with torch.no_grad():
        assert_same_bits(ours, module(inputs(256, 1, INPUTS)))
    assert "bitwise" in compiled.explain() and "in order" in compiled.explain()


@pytest.mark.parametrize("solver", ["auto", GaussSeidel()])
def test_an_empty_batch(solver: Any) -> None:
    compiled = fxsolve.compile(lambda x: looped_over(x), solver=solver)
    for _ in range(3):
        assert compiled(torch.randn(80, 0, 4)).shape == (80, 0, 4)
    with pytest.warns(fxsolve.FallbackWarning, match="the state of the loop at .*test_recurrence.py:.* is empty"):
        fxsolve.compile(looped_over, solver=JacobiGS(16))(torch.randn(80, 0, 4))


def looped_over(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = torch.tanh(0.5 * h + x[t])
        out.append(h)
    return torch.stack(out)
