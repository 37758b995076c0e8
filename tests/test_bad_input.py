"""What cannot be compiled runs as the original, said once and with the user's line; errors stay the original's own."""

from __future__ import annotations

import array
import math
import queue
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxsolve
from fxsolve import GaussSeidel, GSJacobi, Jacobi, JacobiGS

from .checking import assert_close, assert_same_bits, quiet

LENGTH = 64
HERE = r"test_bad_input\.py:\d+"


def x_of(*shape: int) -> Tensor:
    shape = shape or (LENGTH, 2, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def steps_with(body: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A loop whose step is `body(h, x[t])`."""

    def run(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = body(h, x[t])
        return h

    return run


# -- values that leave torch -----------------------------------------------------------------------


def branches(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x if h.sum() > 0 else 0.5 * h - x


def asks_item(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x * h.mean().item()


def to_float(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x * float(h[0, 0])


def to_list(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x * h.tolist()[0][0]


def to_numpy(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x + torch.from_numpy(np.tanh(h.numpy()))


def as_array(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x * float(np.asarray(h).sum())


def through_dlpack(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + torch.from_dlpack(np.from_dlpack(h)) + x


def through_list_of_tensors(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x + torch.tensor([h[0, 0], h[0, 1], h[1, 0], h[1, 1]])


def selects(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x + (h[h > 0].sum() if h.shape else 0)


def nonzero(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x + h.nonzero().shape[0]


def indexed_by_value(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x[int(h.argmax()) % 2]


def equality(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x if torch.equal(h, x) else 0.25 * h + x


def allclose(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x if torch.allclose(h, x) else 0.25 * h + x


def formatted(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x + len(f"{h[0, 0]:.3f}")


def in_a_list(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x if h[0, 0] in [1.0, 2.0] else 0.3 * h + x


def loop_over_values(h: Tensor, x: Tensor) -> Tensor:
    while h.abs().max() > 1:
        h = h * 0.5
    return h + 0.3 * x


LEAVING = [
    branches, asks_item, to_float, to_list, to_numpy, as_array, through_dlpack, through_list_of_tensors, selects, nonzero,
    indexed_by_value, equality, allclose, formatted, in_a_list, loop_over_values,
]  # fmt: skip


@pytest.mark.parametrize("body", LEAVING, ids=lambda f: f.__name__)
def test_values_that_leave_torch(body: Callable[..., Tensor]) -> None:
    run = steps_with(body)
    compiled = fxsolve.compile(run)
    with pytest.warns(fxsolve.FallbackWarning, match=HERE) as caught:
        for k in range(3):
            x = x_of() * (1 - 2 * (k % 2))
            assert_same_bits(compiled(x), run(x))
    assert len([w for w in caught if w.category is fxsolve.FallbackWarning]) == 1
    assert "original" in compiled.explain()
    assert compiled.solution.fallback
    with pytest.raises(fxsolve.CaptureError, match=HERE):
        fxsolve.compile(run, fallback=False)(x_of())


def test_the_named_line_is_the_users() -> None:
    def run(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t]
            if h.sum() > 0:
                h = h * 2
        return h

    line = run.__code__.co_firstlineno + 4
    with pytest.raises(fxsolve.CaptureError, match=rf"test_bad_input\.py:{line}\b"):
        fxsolve.compile(run, fallback=False)(x_of())


def test_the_warning_points_at_the_call() -> None:
    with pytest.warns(fxsolve.FallbackWarning) as caught:
        fxsolve.compile(steps_with(branches))(x_of())
    assert caught[0].filename == __file__


def test_fallback_off_leaves_the_function_uncalled_twice() -> None:
    """An error is the same on every call, and no half-done work is returned."""
    compiled = fxsolve.compile(steps_with(branches), fallback=False)
    for _ in range(3):
        with pytest.raises(fxsolve.CaptureError, match="leaves torch"):
            compiled(x_of())


def test_a_value_dependent_branch_that_goes_the_same_way_at_first() -> None:
    def run(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t] if x[t].sum() < 1e6 else h * 0
        return h

    compiled = fxsolve.compile(run)
    for x in (x_of(), x_of() + 1e7, x_of()):
        assert_same_bits(quiet(lambda: compiled(x)), run(x))  # noqa: B023


def test_validated_arguments_of_distributions() -> None:
    def run(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.5 * h + torch.distributions.Normal(x[t], h.exp(), validate_args=True).log_prob(x[t])
        return h

    compiled = fxsolve.compile(run, solver=GaussSeidel())
    for _ in range(2):
        assert_same_bits(quiet(lambda: compiled(x_of())), run(x_of()))
    bad = x_of()
    bad[40] = math.nan
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        run(bad)
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        quiet(lambda: compiled(bad))


# -- what else enters ------------------------------------------------------------------------------


def python_noise(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x * random.random()


def numpy_noise(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x * float(np.random.rand())


def numpy_array_noise(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x + torch.from_numpy(np.random.rand(2, 4).astype(np.float32))


@pytest.mark.parametrize("body", [python_noise, numpy_noise, numpy_array_noise], ids=lambda f: f.__name__)
def test_noise_from_outside(body: Callable[..., Tensor]) -> None:
    run = steps_with(body)
    compiled = fxsolve.compile(run)
    for seed in (0, 1, 0):
        random.seed(seed)
        np.random.seed(seed)
        ours = quiet(lambda: compiled(x_of()))
        random.seed(seed)
        np.random.seed(seed)
        assert_same_bits(ours, run(x_of()))


def test_arrays_from_outside_are_not_frozen() -> None:
    scale = np.ones(4, dtype=np.float32)
    run = steps_with(lambda h, x: 0.5 * h + x * torch.from_numpy(scale))
    compiled = fxsolve.compile(run)
    for value in (1.0, 2.0, 3.0, 3.0):
        scale[:] = value
        assert_close(quiet(lambda: compiled(x_of())), run(x_of()))


def test_an_iterator_among_the_arguments() -> None:
    def run(x: Tensor, numbers: Any) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t] * next(numbers)
        return h

    compiled = fxsolve.compile(run)
    for start in (0, 5, 9):
        ours = quiet(lambda: compiled(x_of(), iter(range(start, start + LENGTH))))  # noqa: B023
        assert_close(ours, run(x_of(), iter(range(start, start + LENGTH))))


def test_an_iterator_in_the_closure() -> None:
    def make() -> Callable[[Tensor], Tensor]:
        numbers = iter(range(1000))
        return steps_with(lambda h, x: 0.5 * h + x * next(numbers))

    ours, theirs = fxsolve.compile(make()), make()
    for _ in range(4):
        assert_close(quiet(lambda: ours(x_of())), theirs(x_of()))


NUMBERS = iter(range(1000))


class Taking(nn.Module):
    """Takes from an iterator that it holds, or just holds it."""

    def __init__(self, takes: bool) -> None:
        super().__init__()
        self.numbers, self.takes = iter(range(1000)), takes

    def forward(self, x: Tensor) -> Tensor:
        return steps_with(lambda h, x: 0.5 * h + x * self.factor())(x)

    def factor(self) -> int:
        return 1


class Taken(Taking):
    def factor(self) -> int:
        return next(self.numbers)


def test_iterators_elsewhere() -> None:
    ours, theirs = fxsolve.compile(Taken(True)), Taken(True)
    with pytest.warns(fxsolve.FallbackWarning, match="can take from an iterator, model.numbers, which"):
        for _ in range(4):
            assert_close(ours(x_of()), theirs(x_of()))
    held = fxsolve.compile(Taking(False), solver=fxsolve.JacobiGS(8))
    for _ in range(3):  # it is not taken from: no code mentions it
        assert_close(held(x_of()), Taking(False)(x_of()))
    assert held.solution.fallback is None

    def from_global(x: Tensor) -> Tensor:
        return steps_with(lambda h, x: 0.5 * h + x)(x) * next(NUMBERS)

    compiled, plain = fxsolve.compile(from_global), steps_with(lambda h, x: 0.5 * h + x)(x_of())
    for number in range(4):
        assert_close(quiet(lambda: compiled(x_of())), plain * number)

    def from_argument(x: Tensor, numbers: Any) -> Tensor:
        return steps_with(lambda h, x: 0.5 * h + x)(x) * next(numbers)

    compiled, numbers = fxsolve.compile(from_argument), iter(range(9))
    for number in range(4):
        assert_close(quiet(lambda: compiled(x_of(), numbers)), plain * number)


def queue_of(numbers: Any) -> queue.Queue[int]:
    made: queue.Queue[int] = queue.Queue()
    made.queue.extend(numbers)
    return made


def next_of(buffer: Any) -> int:
    buffer[0] += 1
    return buffer[0]


HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "random.Random": (lambda: random.Random(0), lambda r: r.random()),
    "random.SystemRandom": (lambda: random.SystemRandom(), lambda r: 1.0 + 0.0 * r.random()),
    "numpy Generator": (lambda: np.random.default_rng(0), lambda r: float(r.random())),
    "numpy RandomState": (lambda: np.random.RandomState(0), lambda r: float(r.rand())),
    "queue": (lambda: queue_of(range(9)), lambda q: q.get()),
    "bytearray": (lambda: bytearray(1), next_of),
    "memoryview": (lambda: memoryview(bytearray(1)), next_of),
    "array": (lambda: array.array("i", [0]), next_of),
    "numpy array": (lambda: np.zeros(1, dtype=np.int64), next_of),
}


@pytest.mark.parametrize("kind", HELD)
def test_objects_that_each_call_changes(kind: str) -> None:
    make, draw = HELD[kind]

    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = make()

        def forward(self, x: Tensor, draws: bool = True) -> Tensor:
            h = steps_with(lambda h, x: 0.5 * h + x)(x)
            return h * draw(self.held) if draws else h

    module, other = Holding(), Holding()
    compiled = fxsolve.compile(module, solver=fxsolve.JacobiGS(8))
    with pytest.warns(fxsolve.FallbackWarning, match="the call itself changes model.held"):
        for _ in range(4):
            assert_close(compiled(x_of()), other(x_of()))
    quietly = fxsolve.compile(module, solver=fxsolve.JacobiGS(8))
    for _ in range(3):
        assert_close(quiet(lambda: quietly(x_of(), draws=False)), module(x_of(), draws=False))
    assert (quietly.solution.fallback is None) == (kind != "random.SystemRandom")


def test_buffers_of_bytes_that_change_outside() -> None:
    scale = bytearray(b"\1")
    compiled, plain = fxsolve.compile(steps_with(lambda h, x: 0.5 * h + x * scale[0])), steps_with(lambda h, x: 0.5 * h + x)
    for value in (1, 1, 3, 3, 2):
        scale[0] = value
        assert_close(compiled(x_of()), plain(x_of()) * value)


def test_attributes_of_functions() -> None:
    def counting(x: Tensor) -> Tensor:
        counting.calls = getattr(counting, "calls", 0) + 1  # type: ignore[attr-defined]
        return steps_with(lambda h, x: 0.5 * h + x)(x) * counting.calls  # type: ignore[attr-defined]

    compiled, plain = fxsolve.compile(counting), steps_with(lambda h, x: 0.5 * h + x)(x_of())
    for number in range(1, 5):
        assert_close(quiet(lambda: compiled(x_of())), plain * number)


def test_results_that_hold_objects_are_each_calls_own() -> None:
    class Out:
        def __init__(self, last: Tensor) -> None:
            self.last = last

    def run(x: Tensor) -> tuple[Tensor, Out]:
        h = steps_with(lambda h, x: 0.5 * h + x)(x)
        return h, Out(h + 1)

    compiled = fxsolve.compile(run)
    for k in range(1, 4):
        ours, theirs = quiet(lambda: compiled(k * x_of())), run(k * x_of())  # noqa: B023
        assert_close(ours[0], theirs[0])
        assert_close(ours[1].last, theirs[1].last)


def test_states_that_are_handed_over_in_a_dict() -> None:
    def run(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        h = state["h"]
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t]
        state["h"] = h
        return h * 2

    compiled = fxsolve.compile(run)
    ours, theirs = ({"h": torch.zeros(2, 4)} for _ in range(2))
    for _ in range(4):
        x = torch.randn(8, 2, 4)
        assert_close(quiet(lambda: compiled(x, ours)), run(x, theirs))  # noqa: B023
        assert_close(ours["h"], theirs["h"])


def test_sparse_quantized_and_odd_arguments() -> None:
    def run(x: Tensor, extra: Any) -> Tensor:
        h = torch.zeros(2, 4)
        for t in range(8):
            h = 0.5 * h + (torch.sparse.mm(extra, x[t]) if isinstance(extra, Tensor) else x[t])
        return h

    compiled = fxsolve.compile(run)
    for extra in (torch.eye(2).to_sparse(), object(), [object()], {1, 2}, lambda: 3):
        for _ in range(2):
            assert_close(quiet(lambda: compiled(x_of(), extra)), run(x_of(), extra))  # noqa: B023


# -- errors stay the original's --------------------------------------------------------------------


def outcome(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[type[BaseException], str]:
    with torch.no_grad(), pytest.raises(Exception) as caught:
        fn(*args, **kwargs)
    return caught.type, str(caught.value)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        for t in range(x.shape[0]):
            h = self.cell(x[t], h)
        assert h is not None
        return h


WRONG: list[tuple[Any, ...]] = [
    (x_of(LENGTH, 2, 5),), (x_of().double(),), (x_of(), x_of(3, 4)), (x_of(), x_of(2, 5)), (x_of().long(),), (3,),
    (None,), ("text",), (), (x_of(), None, 3), (torch.randn(()),),
]  # fmt: skip


@pytest.mark.parametrize("args", WRONG, ids=range(len(WRONG)))
def test_errors_are_unchanged(args: tuple[Any, ...]) -> None:
    model = Cell()
    expected = outcome(model, *args)
    compiled = fxsolve.compile(model, solver=JacobiGS(16))
    assert outcome(compiled, *args) == expected
    with torch.no_grad():
        compiled(x_of())
        assert outcome(compiled, *args) == expected  # after a good call too
        assert outcome(compiled, *args) == expected
        assert_close(compiled(x_of()), model(x_of()))


def test_an_error_in_the_middle_of_a_recording() -> None:
    def run(x: Tensor, fail: list[bool]) -> Tensor:
        for t in range(1, x.shape[0]):
            x[t] = 0.5 * x[t - 1] + x[t]
            if fail[0] and t == 30:
                raise KeyError("the user's own")
        return x

    fail = [True]
    compiled = fxsolve.compile(run, solver=GaussSeidel())
    expected = x_of()
    with pytest.raises(KeyError):
        run(expected, fail)
    x = x_of()
    with pytest.raises(KeyError, match="the user's own"):
        compiled(x, fail)
    assert_same_bits(x, expected)  # what the original wrote before it failed stays written
    for fail in ([False], [False]):
        assert_same_bits(compiled(x_of(), fail), run(x_of(), fail))
    assert torch.Tensor.tolist(torch.ones(2)) == [1.0, 1.0]  # the doors are open again
    assert torch.tensor([1, 2]).tolist() == [1, 2]


def test_unknown_keyword_arguments() -> None:
    model = Cell()
    compiled = fxsolve.compile(model)
    assert outcome(compiled, x_of(), temperature=2) == outcome(model, x_of(), temperature=2)


def test_an_index_out_of_range() -> None:
    table = torch.randn(5, 4)

    def run(tokens: Tensor) -> Tensor:
        h = torch.zeros(4)
        for t in range(tokens.shape[0]):
            h = torch.tanh(0.5 * h + nn.functional.embedding(tokens[t], table))
        return h

    compiled = fxsolve.compile(run, solver=JacobiGS(8))
    good, bad = torch.arange(40) % 5, torch.arange(40) % 6
    for _ in range(2):
        assert_close(compiled(good), run(good))
    assert outcome(compiled, bad) == outcome(run, bad)
    assert_close(compiled(good), run(good))


# -- numbers that are not finite -------------------------------------------------------------------

SOLVERS: list[Any] = ["auto", JacobiGS(16), JacobiGS(16, 4), Jacobi(), GSJacobi(10), GaussSeidel(), GaussSeidel(8)]
ODD = [math.nan, math.inf, -math.inf, 3e38]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_odd_inputs_of_recurrences(solver: Any, value: float) -> None:
    w = 0.3 * x_of(4, 4)
    for body in (lambda h, x: torch.tanh(h @ w + x), lambda h, x: 0.5 * h + x, lambda h, x: torch.relu(h @ w + x)):

        def run(x: Tensor, body: Any = body) -> Tensor:
            h, ys = torch.zeros_like(x[0]), []
            for t in range(x.shape[0]):
                h = body(h, x[t])
                ys.append(h)
            return torch.stack(ys)

        compiled = fxsolve.compile(run, solver=solver)
        compiled(x_of())
        for place in (0, 20, LENGTH - 1):
            x = x_of()
            x[place, 1, 2] = value
            for _ in range(2):
                agree_with_odd_values(quiet(lambda: compiled(x)), run(x))  # noqa: B023
        fresh = fxsolve.compile(run, solver=solver)
        for _ in range(2):
            agree_with_odd_values(quiet(lambda: fresh(x)), run(x))  # noqa: B023


def agree_with_odd_values(ours: Tensor, theirs: Tensor) -> None:
    """NaN and infinities at the same places, the rest to rounding, row by row of the batch."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(0, 1, -1)[~theirs.isfinite()], theirs.nan_to_num(0, 1, -1)[~theirs.isfinite()])
    finite = theirs.isfinite()
    scale = theirs[finite].abs().clamp(min=1.0)
    assert bool(((ours[finite] - theirs[finite]).abs() <= 1e-5 * scale).all())


def test_a_bad_sample_does_not_spoil_the_others() -> None:
    def run(x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = torch.tanh(0.5 * h + x[t])
            ys.append(h)
        return torch.stack(ys)

    x = x_of()
    x[:, 0] = math.nan
    for solver in SOLVERS:
        compiled = fxsolve.compile(run, solver=solver)
        compiled(x_of())
        ours = quiet(lambda: compiled(x))  # noqa: B023
        agree_with_odd_values(ours[:, 1], run(x)[:, 1])
        assert bool(ours[:, 0].isnan().all())


def test_a_state_that_overflows_on_the_way() -> None:
    def run(x: Tensor) -> Tensor:
        h, ys = torch.ones_like(x[0]), []
        for t in range(x.shape[0]):
            h = h * 40 + x[t]
            ys.append(h)
        return torch.stack(ys)

    for solver in SOLVERS:
        compiled = fxsolve.compile(run, solver=solver)
        for _ in range(2):
            agree_with_odd_values(quiet(lambda: compiled(x_of())), run(x_of()))  # noqa: B023


def test_denormal_and_signed_zeros() -> None:
    def run(x: Tensor) -> Tensor:
        h, ys = -torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = h * -0.5 + x[t] * 1e-40
            ys.append(h)
        return torch.stack(ys)

    for solver in SOLVERS:
        compiled = fxsolve.compile(run, solver=solver)
        for _ in range(2):
            ours, theirs = compiled(x_of()), run(x_of())
            assert float((ours - theirs).abs().max()) <= 8 * 1.4e-45


# -- things that must be kept or refused by name ---------------------------------------------------


class Double(torch.autograd.Function):
    """Doubles; its gradient is deliberately another one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * 7


def with_function(x: Tensor, w: Tensor) -> Tensor:
    h = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        h = torch.tanh(Double.apply(h @ w) + x[t])
    return h


def with_hook(x: Tensor, w: Tensor) -> Tensor:
    h = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        h = torch.tanh(h @ w + x[t])
        if h.requires_grad:
            h.register_hook(lambda g: g * 0.5)
    return h


def with_no_grad(x: Tensor, w: Tensor) -> Tensor:
    h = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        with torch.no_grad():
            shift = h @ w
        h = torch.tanh(h @ w + x[t] + shift)
    return h


def with_detach(x: Tensor, w: Tensor) -> Tensor:
    h = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        h = torch.tanh(h.detach() @ w + x[t])
    return h


def with_inner_gradient(x: Tensor, w: Tensor) -> Tensor:
    h = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        with torch.enable_grad():
            z = (h.detach() + x[t]).requires_grad_()
            (g,) = torch.autograd.grad((z**2 @ w).sum(), z)
        h = torch.tanh(0.5 * h + 0.1 * g)
    return h


@pytest.mark.parametrize(
    "fn", [with_function, with_hook, with_no_grad, with_detach, with_inner_gradient], ids=lambda f: f.__name__
)
def test_gradients_are_never_wrong(fn: Callable[..., Tensor]) -> None:
    compiled = fxsolve.compile(fn)
    w = 0.3 * x_of(4, 4)
    with torch.no_grad():
        for _ in range(2):
            assert_close(quiet(lambda: compiled(x_of(), w)), fn(x_of(), w))
    for _ in range(2):
        ours, theirs = w.clone().requires_grad_(), w.clone().requires_grad_()
        a, b = quiet(lambda: compiled(x_of(), ours)), fn(x_of(), theirs)  # noqa: B023
        assert_close(a.detach(), b.detach())
        assert a.requires_grad == b.requires_grad
        if b.requires_grad:
            a.sum().backward()
            b.sum().backward()
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None and theirs.grad is not None:
                assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_old_weight_norm_and_spectral_norm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = [
            torch.nn.utils.weight_norm(nn.Linear(4, 4)),
            torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)).eval(),
        ]
    for layer in layers:
        run = steps_with(lambda h, x, layer=layer: torch.tanh(0.5 * layer(h) + x))
        compiled = fxsolve.compile(run)
        with torch.no_grad():
            for _ in range(3):
                assert_close(quiet(lambda: compiled(x_of())), run(x_of()))  # noqa: B023
                for p in layer.parameters():
                    p.mul_(0.9)


def test_spectral_norm_in_training_goes_on() -> None:
    torch.manual_seed(0)
    ours = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    torch.manual_seed(0)
    theirs = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    run_ours = steps_with(lambda h, x: torch.tanh(0.5 * ours(h) + x))
    run_theirs = steps_with(lambda h, x: torch.tanh(0.5 * theirs(h) + x))
    compiled = fxsolve.compile(run_ours)
    with torch.no_grad():
        for _ in range(3):
            assert_close(quiet(lambda: compiled(x_of())), run_theirs(x_of()), 256)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert_close(a, b, 256)


def test_writing_to_self_inside_the_loop() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []
            self.last: Any = None

        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros_like(x[0])
            for t in range(x.shape[0]):
                h = 0.5 * h + x[t]
                self.seen.append(h)
                self.last = h
            return h

    ours, theirs = Writing(), Writing()
    compiled = fxsolve.compile(ours)
    for k in range(3):
        assert_close(quiet(lambda: compiled(x_of() + k)), theirs(x_of() + k))  # noqa: B023
        assert_close(ours.last, theirs.last)
        assert len(ours.seen) == len(theirs.seen)
        assert_close(ours.seen, theirs.seen)


def test_resizing_and_views_of_another_dtype() -> None:
    def reinterprets(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.5 * h + (x[t].view(torch.int32) & -256).view(torch.float32)
        return h

    def resizes(x: Tensor) -> Tensor:
        h = torch.zeros(2)
        for t in range(8):
            h = torch.cat([h, x[t, 0, :1]])
        h.resize_(4)
        return h

    def transposes_in_place(x: Tensor) -> Tensor:
        h = torch.zeros(4, 2)
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t].clone().t_()
        return h

    for fn in (reinterprets, resizes, transposes_in_place):
        compiled = fxsolve.compile(fn)
        for _ in range(3):
            assert_close(quiet(lambda: compiled(x_of())), fn(x_of()))  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.float64, torch.bool])
@pytest.mark.parametrize("solver", ["auto", JacobiGS(16), GaussSeidel()], ids=str)
def test_other_dtypes(dtype: torch.dtype, solver: Any) -> None:
    def run(x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = h ^ x[t] if dtype == torch.bool else h // 2 + x[t] if dtype == torch.int64 else h * 0.5 + x[t]
            ys.append(h)
        return torch.stack(ys)

    x = (x_of() * 10).to(dtype) if dtype != torch.bool else x_of() > 0
    compiled = fxsolve.compile(run, solver=solver)
    for _ in range(2):
        ours, theirs = quiet(lambda: compiled(x)), run(x)
        if dtype.is_floating_point:
            assert_close(ours, theirs, 8)
        elif dtype.is_complex:
            assert_close(torch.view_as_real(ours), torch.view_as_real(theirs), 8)
        else:
            assert torch.equal(ours, theirs)


def test_no_endless_loop_on_values_that_never_settle() -> None:
    """A chaotic map, forced: as many sweeps as there are blocks and no more."""

    def run(x: Tensor) -> Tensor:
        h, ys = x[0] * 0 + 0.3, []
        for _ in range(x.shape[0]):
            h = 3.9 * h * (1 - h)
            ys.append(h)
        return torch.stack(ys)

    for solver in (JacobiGS(8), Jacobi(), GSJacobi(16)):
        compiled = fxsolve.compile(run, solver=solver)
        for _ in range(2):
            ours = quiet(lambda: compiled(x_of()))  # noqa: B023
            assert_same_bits(ours, run(x_of()))
