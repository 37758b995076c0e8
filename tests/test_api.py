"""The public surface: options, what a compiled callable offers, modules that stay modules, and plans that never go stale."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsolve
from fxsolve import GaussSeidel, GSJacobi, Jacobi, JacobiGS

from .checking import assert_certified, assert_close, assert_same_bits, quiet

INPUTS, HIDDEN, LENGTH = 4, 6, 64
FORCED = JacobiGS(16)


class Model(nn.Module):
    """A GRU loop with a plain attribute, a buffer and a default argument."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(INPUTS, HIDDEN)
        self.readout = nn.Linear(HIDDEN, 2)
        self.temperature = 1.0
        self.register_buffer("offset", torch.zeros(2))

    def forward(self, x: Tensor, h: Tensor | None = None, scale: float = 1.0, *, shift: float = 0.0) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            h = self.cell(x[t], h)
            ys.append(h)
        return self.readout(torch.stack(ys)) * scale / self.temperature + shift + self.offset

    def helper(self) -> str:
        """Something of the original's own."""
        return "helper"


def x_of(length: int = LENGTH, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(length, batch, INPUTS, generator=torch.Generator().manual_seed(length), dtype=dtype)


def leaky(x: Tensor, decay: float = 0.5) -> Tensor:
    h, ys = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = decay * h + x[t]
        ys.append(h)
    return torch.stack(ys)


def compiled_model(**options: Any) -> tuple[Model, Any]:
    """A model and its compiled form, called once."""
    model = Model()
    compiled = fxsolve.compile(model, **{"solver": FORCED, **options})
    with torch.no_grad():
        compiled(x_of())
    return model, compiled


def agree(compiled: Any, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """The compiled callable answers as the original does, twice."""
    with torch.no_grad():
        for _ in range(2):
            assert_close(compiled(*args, **kwargs), fn(*args, **kwargs))


# -- options ---------------------------------------------------------------------------------------


def test_unknown_keywords_are_errors() -> None:
    with pytest.raises(TypeError, match="blocks"):
        fxsolve.compile(leaky, blocks=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="solver.*exactness.*verify.*fallback.*example_inputs.*plans"):
        fxsolve.compile(leaky, blocks=3)  # type: ignore[call-arg]  (the error names the known ones)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"exactness": "sloppy"}, "auto, bitwise, rounding.*'sloppy'"),
        ({"verify": "sometimes"}, "first, always, never.*'sometimes'"),
        ({"solver": "jacobi"}, "'auto'.*Jacobi.*'jacobi'"),
        ({"solver": {"block0": 3}}, "solver"),
        ({"solver": Jacobi}, "solver"),
        ({"solver": None}, "solver"),
        ({"fallback": "yes"}, "fallback"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        fxsolve.compile(leaky, **options)


def test_things_that_cannot_be_called() -> None:
    for thing in (3, "text", torch.ones(2), None):
        with pytest.raises(TypeError, match="module, function or bound method"):
            fxsolve.compile(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [lambda: JacobiGS(0), lambda: JacobiGS(4, 8), lambda: GSJacobi(0), lambda: JacobiGS(-1)])
def test_solvers_that_make_no_sense(make: Callable[[], Any]) -> None:
    with pytest.raises(fxsolve.ScheduleError, match="at least 1"):
        make()


def test_a_solver_for_one_block() -> None:
    compiled = fxsolve.compile(leaky, solver={"block0": FORCED})
    agree(compiled, leaky, x_of())
    assert_certified(compiled, FORCED)
    with pytest.raises(fxsolve.ScheduleError, match="block7.*block0"):
        fxsolve.compile(leaky, solver={"block7": FORCED})(x_of())


def test_example_inputs_compile_right_away() -> None:
    compiled = fxsolve.compile(leaky, solver=FORCED, example_inputs=(x_of(),))
    assert "block0" in compiled.explain()
    agree(compiled, leaky, x_of())
    assert_certified(compiled, FORCED)


@pytest.mark.parametrize("verify", ["first", "always", "never"])
@pytest.mark.parametrize("exactness", ["auto", "rounding"])
def test_verify_and_exactness(verify: str, exactness: str) -> None:
    compiled = fxsolve.compile(leaky, solver=FORCED, verify=verify, exactness=exactness)
    agree(compiled, leaky, x_of())
    assert_certified(compiled, FORCED)


def test_bitwise_means_bits() -> None:
    for fn in (leaky, Model()):
        compiled = fxsolve.compile(fn, exactness="bitwise")
        with torch.no_grad():
            for _ in range(3):
                assert_same_bits(compiled(x_of()), fn(x_of()))


def test_verify_always_works_with_noise_and_mutation() -> None:
    def noisy(x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t] + torch.randn_like(h)
            ys.append(h)
        x[0] = 7.0
        return torch.stack(ys)

    compiled = fxsolve.compile(noisy, solver=FORCED, verify="always")
    for seed in range(3):
        ours, theirs = x_of(), x_of()
        torch.manual_seed(seed)
        result, after = compiled(ours), None
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        assert_close(result, noisy(theirs))
        assert torch.equal(after, torch.get_rng_state())
        assert torch.equal(ours, theirs)


# -- what a compiled callable offers ---------------------------------------------------------------


@pytest.mark.parametrize("fn", [leaky, Model()], ids=["function", "module"])
def test_before_and_after_the_first_call(fn: Any) -> None:
    compiled = fxsolve.compile(fn, solver=FORCED)
    assert compiled.solution is None
    assert "not called yet" in compiled.explain()
    assert isinstance(compiled.source, str)
    with torch.no_grad():
        compiled(x_of())
        compiled(x_of())
    text = compiled.explain()
    for part in ("block0", "Recurrence", str(FORCED), "test_api.py:", "equations", "why"):
        assert part in text
    assert "def forward" in compiled.source and "block0" in compiled.source and str(FORCED) in compiled.source
    solution = compiled.solution
    assert solution.seconds > 0 and solution.blocks[0].seconds > 0
    assert "sweeps" in str(solution)
    assert "simulated on 2 devices" in compiled.explain(devices=2)
    with pytest.raises(ValueError, match="from 1 on"):
        compiled.explain(devices=0)


def test_functions_keep_their_name_and_doc() -> None:
    def documented(x: Tensor) -> Tensor:
        """Adds one."""
        return x + 1

    compiled = fxsolve.compile(documented)
    assert compiled.__name__ == "documented" and compiled.__doc__ == "Adds one."
    documented.note = 3  # type: ignore[attr-defined]
    assert compiled.note == 3


def test_bound_methods_partials_and_lambdas() -> None:
    model = Model()
    for fn in (model.forward, functools.partial(leaky, decay=0.25), lambda x: leaky(x, 0.75)):
        compiled = fxsolve.compile(fn, solver=FORCED)
        agree(compiled, fn, x_of())
        assert_certified(compiled, FORCED)


def test_the_first_call_answers_and_repeats() -> None:
    compiled = fxsolve.compile(leaky, solver=FORCED)
    assert_same_bits(compiled(x_of()), leaky(x_of()))
    first, second = compiled(x_of()), compiled(x_of())
    assert_same_bits(first, second)


def test_a_solver_instance_can_be_shown_and_compared() -> None:
    assert JacobiGS(4) == JacobiGS(4) and JacobiGS(4) != JacobiGS(8)
    assert str(Jacobi()) == "Jacobi()" and "4" in str(JacobiGS(4)) and "3" in str(GSJacobi(3))
    assert str(GaussSeidel()) == "GaussSeidel()"


# -- modules stay modules --------------------------------------------------------------------------


def test_state_dict_has_the_keys_of_the_original() -> None:
    model, compiled = compiled_model()
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert [n for n, _ in compiled.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [n for n, _ in compiled.named_modules() if n] == [n for n, _ in model.named_modules() if n]
    assert isinstance(compiled, nn.Module)
    assert all(a is b for a, b in zip(compiled.parameters(), model.parameters(), strict=True))
    assert compiled.helper() == "helper" and compiled.temperature == 1.0 and compiled.cell is model.cell
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = compiled.nothing_here


def test_inside_another_module() -> None:
    model = Model()
    outer = nn.Sequential(fxsolve.compile(model, solver=FORCED), nn.Linear(2, 2))
    assert len(list(outer.parameters())) == len(list(model.parameters())) + 2
    assert "0.cell.weight_ih" in outer.state_dict()
    with torch.no_grad():
        outer(x_of())
        assert_close(outer(x_of()), outer[1](model(x_of())))
        outer.eval()
        assert not model.training and not model.cell.training
        outer.double()
        assert model.cell.weight_ih.dtype == torch.float64
        assert_close(outer(x_of(dtype=torch.float64)), outer[1](model(x_of(dtype=torch.float64))))


def test_loading_a_state_dict_is_seen() -> None:
    model, compiled = compiled_model()
    other = Model()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    compiled.load_state_dict(other.state_dict())
    agree(compiled, other, x_of())
    assert_certified(compiled, FORCED)
    assert torch.equal(model.cell.weight_hh, other.cell.weight_hh)
    compiled.load_state_dict(Model().state_dict(), assign=True)
    agree(compiled, Model(), x_of())


def test_train_and_eval() -> None:
    class Dropping(Model):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return F.dropout(super().forward(x), 0.5, self.training)

    model = Dropping()
    compiled = fxsolve.compile(model, solver=FORCED)
    for training in (True, False, True, False):
        compiled.train(training)
        assert model.training is training and model.cell.training is training and compiled.training is training
        for _ in range(2):
            torch.manual_seed(1)
            with torch.no_grad():
                ours = compiled(x_of())
            torch.manual_seed(1)
            with torch.no_grad():
                assert_close(ours, model(x_of()))
    assert compiled.eval() is compiled
    model.train()
    assert compiled.training  # the original's mode, whoever changed it


def test_to_another_dtype() -> None:
    model, compiled = compiled_model()
    assert compiled.to(torch.float64) is compiled
    assert model.cell.weight_ih.dtype == torch.float64
    agree(compiled, model, x_of(dtype=torch.float64))
    assert_certified(compiled, FORCED)
    compiled.float()
    agree(compiled, model, x_of())
    compiled.half()
    assert model.cell.weight_ih.dtype == torch.float16


def test_zero_grad_requires_grad_and_apply_reach_the_original() -> None:
    model, compiled = compiled_model()
    compiled.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())
    compiled.apply(lambda m: m.weight.data.zero_() if isinstance(m, nn.Linear) else None)
    assert float(model.readout.weight.abs().sum()) == 0.0
    agree(compiled, model, x_of())


def test_deepcopy() -> None:
    model, compiled = compiled_model()
    twin = copy.deepcopy(compiled)
    assert twin.solution is None
    with torch.no_grad():
        twin.cell.weight_hh.zero_()
    assert float(model.cell.weight_hh.detach().abs().sum()) > 0
    agree(compiled, model, x_of())
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.cell.weight_hh.zero_()
    agree(twin, expected, x_of())
    assert_certified(twin, FORCED)


def test_deepcopy_and_pickle_of_functions() -> None:
    compiled = fxsolve.compile(leaky, solver=FORCED)
    compiled(x_of())
    for twin in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled)), copy.copy(compiled)):
        agree(twin, leaky, x_of())
        assert_certified(twin, FORCED)


def test_pickle_and_save() -> None:
    model, compiled = compiled_model()
    twin = pickle.loads(pickle.dumps(compiled))
    agree(twin, model, x_of())
    assert_certified(twin, FORCED)
    buffer = io.BytesIO()
    torch.save(compiled, buffer)
    buffer.seek(0)
    agree(torch.load(buffer, weights_only=False), model, x_of())


def test_compiling_twice() -> None:
    model = Model()
    once = fxsolve.compile(model, solver=FORCED)
    agree(fxsolve.compile(once, solver=FORCED), model, x_of())
    function = fxsolve.compile(fxsolve.compile(leaky, solver=FORCED), solver=FORCED)
    agree(function, leaky, x_of())


# -- never stale -----------------------------------------------------------------------------------


def test_a_plain_attribute() -> None:
    model, compiled = compiled_model()
    for temperature in (2.0, 0.5, 2, 1.0):
        compiled.temperature = temperature
        assert model.temperature == temperature
        agree(compiled, model, x_of())
        model.temperature = temperature + 1
        agree(compiled, model, x_of())
        assert_certified(compiled, FORCED)


def test_parameters_replaced_or_updated() -> None:
    model, compiled = compiled_model()
    with torch.no_grad():
        model.cell.weight_hh.mul_(0.5)
    agree(compiled, model, x_of())
    model.cell.weight_hh = nn.Parameter(0.3 * torch.randn_like(model.cell.weight_hh))
    agree(compiled, model, x_of())
    compiled.readout = nn.Linear(HIDDEN, 2)
    assert model.readout is compiled.readout
    agree(compiled, model, x_of())
    model.cell.weight_ih.data = 0.3 * torch.randn_like(model.cell.weight_ih)
    agree(compiled, model, x_of())
    model.offset = torch.ones(2)
    agree(compiled, model, x_of())
    model.offset += 1
    agree(compiled, model, x_of())
    with torch.no_grad():
        torch.optim.SGD(model.parameters(), 0.1)
        nn.utils.vector_to_parameters(0.9 * nn.utils.parameters_to_vector(model.parameters()), model.parameters())
    agree(compiled, model, x_of())
    assert_certified(compiled, FORCED)


def test_a_submodule_replaced() -> None:
    model, compiled = compiled_model()
    model.cell = nn.RNNCell(INPUTS, HIDDEN)
    agree(compiled, model, x_of())
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert_certified(compiled, FORCED)


def test_hooks() -> None:
    model, compiled = compiled_model()
    handle = model.readout.register_forward_hook(lambda module, args, out: out * 3)
    agree(compiled, model, x_of())
    handle.remove()
    agree(compiled, model, x_of())
    handle = model.cell.register_forward_pre_hook(lambda module, args: (args[0] * 0.5, *args[1:]))
    agree(compiled, model, x_of())
    handle.remove()
    handle = model.register_forward_hook(lambda module, args, out: out + 1)
    agree(compiled, model, x_of())
    handle.remove()
    agree(compiled, model, x_of())
    assert_certified(compiled, FORCED)


def test_a_hook_on_the_compiled_module() -> None:
    model, compiled = compiled_model()
    handle = compiled.register_forward_hook(lambda module, args, out: out + 1)
    with torch.no_grad():
        plain = Model()(x_of())
        assert_close(compiled(x_of()), plain + 1)
        assert_close(compiled(x_of()), plain + 1)
    handle.remove()
    agree(compiled, Model(), x_of())


def test_a_method_replaced() -> None:
    model, compiled = compiled_model()
    model.forward = lambda x: x * 2  # type: ignore[method-assign]
    agree(compiled, lambda x: x * 2, x_of())


RATE = 0.5


def with_global(x: Tensor) -> Tensor:
    h = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        h = RATE * h + x[t]
    return h


def test_closed_over_and_global_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    rate, rates = 0.5, {"a": [0.5]}

    def with_closure(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = rate * h + rates["a"][0] * x[t]
        return h

    compiled, other = fxsolve.compile(with_closure, solver=FORCED), fxsolve.compile(with_global, solver=FORCED)
    agree(compiled, with_closure, x_of())
    rate = 0.25
    agree(compiled, with_closure, x_of())
    rates["a"][0] = 2.0
    agree(compiled, with_closure, x_of())
    rates["a"] = [3.0]
    agree(compiled, with_closure, x_of())
    agree(other, with_global, x_of())
    monkeypatch.setitem(with_global.__globals__, "RATE", 0.125)
    agree(other, with_global, x_of())
    assert_certified(other, FORCED)


def test_closed_over_tensors() -> None:
    w = 0.2 * torch.randn(INPUTS, INPUTS)

    def run(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = torch.tanh(h @ w + x[t])
        return h

    compiled = fxsolve.compile(run, solver=FORCED)
    agree(compiled, run, x_of())
    w.mul_(-1)
    agree(compiled, run, x_of())
    w = 0.1 * torch.randn(INPUTS, INPUTS)
    agree(compiled, run, x_of())
    w.requires_grad_()
    agree(compiled, run, x_of())


# -- arguments -------------------------------------------------------------------------------------


def test_new_lengths_and_batch_sizes() -> None:
    model, compiled = compiled_model()
    for length in (64, 65, 10, 128, 64):
        for batch in (1, 3):
            agree(compiled, model, x_of(length, batch))
    agree(fxsolve.compile(leaky), leaky, x_of(512))


def test_the_plan_of_another_size_is_used_again() -> None:
    def forgets(x: Tensor) -> Tensor:
        return leaky(x, 0.1)

    compiled = fxsolve.compile(forgets)
    for length in (2048, 1024, 1500):
        agree(compiled, forgets, x_of(length, 1))


def test_keywords_and_defaults() -> None:
    model, compiled = compiled_model()
    h = torch.randn(2, HIDDEN)
    for args, kwargs in [
        ((x_of(),), {}),
        ((x_of(), h), {}),
        ((x_of(),), {"h": h}),
        ((), {"h": h, "x": x_of()}),
        ((x_of(), None, 2.0), {}),
        ((x_of(),), {"scale": 2.0, "shift": 1.0}),
        ((x_of(),), {"shift": -1.0}),
        ((x_of(),), {"scale": 3}),
    ]:
        agree(compiled, model, *args, **kwargs)
        assert_certified(compiled, FORCED)


def test_static_arguments() -> None:
    def run(x: Tensor, steps: int, mode: str = "sum", flag: bool = False, options: Any = None) -> Tensor:
        h, total = x[0], torch.zeros_like(x[0])
        for t in range(steps):
            h = torch.tanh(0.5 * h + x[t]) if flag else 0.5 * h + x[t]
            total = total + h if mode == "sum" else torch.maximum(total, h)
        return total * (1.0 if options is None else options["gain"])

    compiled = fxsolve.compile(run, solver=GaussSeidel())
    for args in [(10,), (20,), (20, "max"), (20, "max", True), (20, "max", 1), (20, "sum", False, {"gain": 2.0})]:
        for _ in range(2):
            assert_same_bits(compiled(x_of(), *args), run(x_of(), *args))


def test_tensors_inside_containers() -> None:
    def run(batch: dict[str, Any]) -> dict[str, Any]:
        x, (w, k) = batch["x"], batch["rest"]
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = torch.tanh(h @ w + k * x[t])
        return {"h": h, "k": k, "x": batch["x"]}

    batch = {"x": x_of(), "rest": (0.2 * torch.randn(INPUTS, INPUTS), 0.5)}
    compiled = fxsolve.compile(run, solver=FORCED)
    for k in (0.5, 0.25, 0.5):
        batch["rest"] = (batch["rest"][0], k)
        agree(compiled, run, batch)
    result = compiled(batch)
    assert result["x"] is batch["x"] and result["k"] == 0.5


def test_the_same_tensor_twice() -> None:
    def run(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for t in range(1, a.shape[0]):
            a[t] = 0.5 * a[t - 1] + b[t]
        return a, b

    compiled = fxsolve.compile(run, solver=GaussSeidel())
    for _ in range(2):
        for shared in (True, False, True):
            a, c = x_of(), x_of()
            b, d = (a, c) if shared else (x_of() * 2, x_of() * 2)
            ours, theirs = compiled(a, b), run(c, d)
            assert_same_bits(ours, theirs)
            assert ours[0] is a and ours[1] is b
            assert_same_bits((a, b), (c, d))


def test_arguments_that_overlap() -> None:
    def run(a: Tensor, b: Tensor) -> Tensor:
        h = torch.zeros_like(a[0])
        for t in range(a.shape[0]):
            h = 0.5 * h + b[t]
            a[t] = h
        return a + b

    compiled = fxsolve.compile(run, solver=GaussSeidel())
    for low, high in [(0, 1), (0, 40), (1, 0), (0, 0), (0, 1)]:
        ours, theirs = x_of(128), x_of(128)
        a = quiet(lambda: compiled(ours[low : low + 64], ours[high : high + 64]))  # noqa: B023
        assert_same_bits(a, run(theirs[low : low + 64], theirs[high : high + 64]))
        assert_same_bits(ours, theirs)


def test_strided_arguments() -> None:
    compiled = fxsolve.compile(leaky, solver=FORCED)
    for x in (x_of(), x_of(128)[::2], x_of().transpose(0, 1).contiguous().transpose(0, 1), x_of()[:, :1]):
        agree(compiled, leaky, x)
    agree(compiled, leaky, torch.ones(1, 2, 4).expand(64, 2, 4))


# -- results and mutation --------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", FORCED, GaussSeidel()], ids=str)
def test_mutated_arguments(solver: Any) -> None:
    def run(x: Tensor, log: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t]
            log[t] = h
        x.mul_(2)
        return h

    compiled = fxsolve.compile(run, solver=solver)
    for k in range(4):
        x, log = x_of() * (k + 1), torch.zeros(LENGTH, 2, INPUTS)
        again, expected = x.clone(), log.clone()
        assert_close(compiled(x, log), run(again, expected))
        assert_close((x, log), (again, expected))


@pytest.mark.parametrize("solver", ["auto", FORCED, GaussSeidel()], ids=str)
def test_mutated_buffers_and_closures(solver: Any) -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("h", torch.zeros(2, INPUTS))

        def forward(self, x: Tensor) -> Tensor:
            for t in range(x.shape[0]):
                self.h.mul_(0.5).add_(x[t])
            return self.h

    ours, theirs = Remembering(), Remembering()
    compiled = fxsolve.compile(ours, solver=solver)
    for k in range(4):
        result = compiled(x_of() + k)
        assert result is ours.h
        assert_close(result, theirs(x_of() + k))
        assert_close(ours.h, theirs.h)


def test_a_state_that_is_rebound_on_self_is_not_forgotten() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h: Any = None

        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros_like(x[0]) if self.h is None else self.h
            for t in range(x.shape[0]):
                h = 0.5 * h + x[t]
            self.h = h
            return h

    ours, theirs = Stateful(), Stateful()
    compiled = fxsolve.compile(ours, solver=FORCED)
    for k in range(5):
        assert_close(quiet(lambda: compiled(x_of() + k)), theirs(x_of() + k))  # noqa: B023
        assert_close(ours.h, theirs.h)


def test_counters_on_self_go_on() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return leaky(x) * self.calls

    ours, theirs = Counting(), Counting()
    compiled = fxsolve.compile(ours, solver=FORCED)
    for _ in range(5):
        assert_close(quiet(lambda: compiled(x_of())), theirs(x_of()))
        assert ours.calls == theirs.calls


def test_results_that_are_inputs_or_views_of_them() -> None:
    def run(x: Tensor) -> Any:
        h = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t]
        return x, x[3:7, 1], x.transpose(0, 2), h, x.detach()

    compiled = fxsolve.compile(run, solver=FORCED)
    for _ in range(3):
        x = x_of()
        same, part, turned, _, detached = compiled(x)
        assert same is x
        x[4, 1] = 9.0
        assert float(part[1, 0]) == 9.0 and float(turned[0, 1, 4]) == 9.0 and float(detached[4, 1, 0]) == 9.0
        assert part.stride() == x[3:7, 1].stride() and turned.stride() == x.transpose(0, 2).stride()


def test_results_that_share_memory() -> None:
    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.zeros_like(x)
        for t in range(1, x.shape[0]):
            y[t] = 0.5 * y[t - 1] + x[t]
        return y, y[5], y.flatten()

    compiled = fxsolve.compile(run, solver=FORCED)
    for _ in range(3):
        whole, row, flat = compiled(x_of())
        whole[5] = 3.0
        assert bool((row == 3.0).all()) and float(flat[5 * 2 * INPUTS]) == 3.0
        row.fill_(4.0)
        assert bool((whole[5] == 4.0).all())


def test_results_that_do_not_share_memory() -> None:
    def run(x: Tensor) -> Any:
        h, ys = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t]
            ys.append(h)
        return ys, torch.stack(ys), h, h.clone(), x.clone(), x[0] + 0, torch.ones(2)

    compiled = fxsolve.compile(run, solver=FORCED)
    for _ in range(3):
        x = x_of()
        ys, whole, last, copied, cloned, row, ones = compiled(x)
        expected = run(x_of())
        assert last is ys[-1] or last.data_ptr() == ys[-1].data_ptr()  # eager's alias
        last.fill_(5.0)
        assert_close((whole, copied, cloned, row, ones), tuple(expected[i] for i in (1, 3, 4, 5, 6)))
        assert bool((ys[-1] == 5.0).all())
        ys[0].fill_(6.0)
        assert_close((whole, ys[1], x), (expected[1], expected[0][1], x_of()))
        cloned.zero_()
        ones.zero_()
        row.zero_()
        assert_close(x, x_of())


def test_writing_into_a_result_does_not_reach_the_next_call() -> None:
    weight = torch.full((3,), 2.0)

    def run(x: Tensor) -> Any:
        return leaky(x), weight * 1, weight * 2, torch.zeros(3), torch.arange(4), torch.tensor([1.0, 2.0])

    compiled = fxsolve.compile(run, solver=FORCED)
    expected = run(x_of())
    for _ in range(3):
        result = compiled(x_of())
        assert_close(result, expected)
        for tensor in result:
            tensor.fill_(-1)


def test_strides_of_results() -> None:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        y = leaky(x)
        return y.transpose(0, 1), y.permute(2, 0, 1), y[:, 0], y[::2], y.transpose(0, 1).contiguous(), y[0].t()

    compiled = fxsolve.compile(run, solver=FORCED)
    for _ in range(2):
        ours, theirs = compiled(x_of()), run(x_of())
        assert_close(ours, theirs)
        assert [a.stride() for a in ours] == [b.stride() for b in theirs]


def test_results_that_are_parameters() -> None:
    model = Model()

    def run(x: Tensor) -> Any:
        return leaky(x), model.readout.weight, model.readout.weight[0], model.offset

    compiled = fxsolve.compile(run, solver=FORCED)
    with torch.no_grad():
        for _ in range(2):
            _, weight, row, offset = quiet(lambda: compiled(x_of()))
            assert weight is model.readout.weight and offset is model.offset
            assert row.data_ptr() == model.readout.weight[0].data_ptr()


def test_without_loops() -> None:
    def plain(x: Tensor) -> Tensor:
        return torch.softmax(x @ x.transpose(1, 2), -1).sum()

    compiled = fxsolve.compile(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxsolve.FallbackWarning)  # nothing to solve is no failure
        for _ in range(3):
            assert_same_bits(compiled(x_of()), plain(x_of()))
    assert "no sequential part" in compiled.explain()
    compiled.source  # noqa: B018


def test_results_without_tensors() -> None:
    for result in (None, 3, "text", (), [], {"a": (1, None)}):

        def run(x: Tensor, result: Any = result) -> Any:
            leaky(x)
            return result

        compiled = fxsolve.compile(run)
        assert quiet(lambda: compiled(x_of())) == result  # noqa: B023
        assert compiled(x_of()) == result


def test_without_tensor_arguments() -> None:
    def run(n: int) -> Tensor:
        h = torch.ones(3)
        for k in range(n):
            h = torch.cos(h) * 0.5 + k
        return h

    compiled = fxsolve.compile(run, solver=FORCED)
    for n in (40, 50, 40):
        agree(compiled, run, n)


# -- modes -----------------------------------------------------------------------------------------


def test_gradients_are_compiled_and_eagers() -> None:
    model = Model()
    compiled = fxsolve.compile(model, solver=FORCED)
    for _ in range(3):
        model.zero_grad()
        compiled(x_of()).sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        model(x_of()).sum().backward()
        assert_close(grads, [p.grad for p in model.parameters() if p.grad is not None])
    assert compiled.solution is not None and compiled.solution.fallback is None
    agree(compiled, model, x_of())
    x, y = x_of().requires_grad_(), x_of().requires_grad_()
    for _ in range(2):
        compiled(x).sum().backward()
        model(y).sum().backward()
    assert_close(x.grad, y.grad)


def test_gradients_with_fallback_off() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        scale = w
        for row in x:
            with torch.no_grad():
                scale = scale + row.mean()
        return scale * w

    with pytest.raises(fxsolve.CaptureError, match="gradients"):
        fxsolve.compile(run, fallback=False)(x_of(), torch.ones(3, requires_grad=True).exp())


def test_a_decorated_sampler_is_compiled() -> None:
    model = Model()

    @torch.no_grad()
    def sample(x: Tensor) -> Tensor:
        return model(x)

    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        @torch.no_grad()
        def sample(self, x: Tensor) -> Tensor:
            return self.inner(x)

        @torch.inference_mode()
        def infer(self, x: Tensor) -> Tensor:
            return self.inner(x)

    for fn in (sample, Sampler().sample):
        compiled = fxsolve.compile(fn, solver=FORCED)
        for _ in range(2):
            ours = compiled(x_of())
            assert not ours.requires_grad
            assert_close(ours, fn(x_of()))
        assert_certified(compiled, FORCED)
    compiled = fxsolve.compile(Sampler().infer, solver=FORCED)
    for _ in range(3):
        assert_close(quiet(lambda: compiled(x_of())), Sampler().infer(x_of()))


def test_inference_mode_and_back() -> None:
    model, compiled = compiled_model()
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            for _ in range(2):
                ours = quiet(lambda: compiled(x_of()))
                theirs = model(x_of())
                assert_close(ours, theirs)
                assert ours.is_inference() == theirs.is_inference()


def test_autocast() -> None:
    model, compiled = compiled_model()
    with torch.no_grad():
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                ours, theirs = quiet(lambda: compiled(x_of())), model(x_of())
            assert ours.dtype == theirs.dtype
            assert float((ours - theirs).abs().max()) < 0.05
        agree(compiled, model, x_of())


def test_default_dtype() -> None:
    def run(x: Tensor) -> Tensor:
        h = torch.zeros(3)
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t, 0, 0]
        return h

    compiled = fxsolve.compile(run, solver=FORCED)
    agree(compiled, run, x_of())
    try:
        torch.set_default_dtype(torch.float64)
        agree(compiled, run, x_of())
    finally:
        torch.set_default_dtype(torch.float32)
    agree(compiled, run, x_of())


def test_threads() -> None:
    model, compiled = compiled_model()
    expected = {}
    with torch.no_grad():
        for length in (32, 48, 64):
            expected[length] = model(x_of(length))
    problems: list[str] = []

    def work(length: int) -> None:
        try:
            with torch.no_grad():
                for _ in range(10):
                    assert_close(compiled(x_of(length)), expected[length])
        except BaseException as error:
            problems.append(repr(error))

    workers = [threading.Thread(target=work, args=(length,)) for length in (32, 48, 64, 64)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems, problems


def test_torch_compile_backend() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(leaky, backend="fxsolve")
    for _ in range(2):
        assert_close(quiet(lambda: compiled(x_of(8))), leaky(x_of(8)))


def test_reentrancy() -> None:
    inner = fxsolve.compile(leaky, solver=FORCED)

    def outer(x: Tensor) -> Tensor:
        return inner(inner(x)) + inner(x)

    def plain(x: Tensor) -> Tensor:
        return leaky(leaky(x)) + leaky(x)

    agree(outer, plain, x_of())
    agree(fxsolve.compile(outer, solver=FORCED), plain, x_of())
