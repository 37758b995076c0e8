"""Guards notice each kind of change by name, and nothing else; signatures tell calls apart."""

from __future__ import annotations

import copy
import functools
import logging
import math
import threading
import timeit
import types
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxsolve
from fxsolve.errors import CaptureError
from fxsolve.guards import Guards
from fxsolve.signature import signature

SCALE = 2.0
WEIGHT = torch.ones(3)
LIMITS = [1.0, 2.0]


class Settings:
    """A plain object with an attribute, a class attribute and a cycle."""

    limit = 4

    def __init__(self) -> None:
        self.rate = 0.1
        self.me = self

    @property
    def shifted(self) -> float:
        return self.rate + SCALE


class Cell(nn.Module):
    gain = 1.5

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("shift", torch.zeros(3))
        self.temperature = 0.7
        self.sizes = [3, 3]
        self.settings = Settings()
        self.heads = [nn.Linear(3, 1)]
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(self.linear(x)) * self.gain / self.temperature + self.settings.limit

    @torch.no_grad()
    def scale(self, x: torch.Tensor) -> torch.Tensor:
        return x * SCALE * WEIGHT


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)

    def unused(self) -> int:
        return len(LIMITS)


def use_globals(x: torch.Tensor, power: int = 2) -> torch.Tensor:
    return sum(v * SCALE + WEIGHT for v in (x,)) ** power


def set_parameter(model: Model) -> None:
    model.cell.linear.weight = nn.Parameter(torch.ones(3, 3))


def set_data(model: Model) -> None:
    model.cell.linear.weight.data = torch.ones(3, 3, dtype=torch.float64)


def freeze(model: Model) -> None:
    model.cell.linear.weight.requires_grad_(False)


def transpose_data(model: Model) -> None:
    model.cell.linear.weight.data = model.cell.linear.weight.data.t()


CHANGES = {
    "model.cell.temperature was 0.7, is 0.8": lambda m: setattr(m.cell, "temperature", 0.8),
    "model.cell.steps was 0, is 0.0": lambda m: setattr(m.cell, "steps", 0.0),
    "model.cell.steps was 0, is False": lambda m: setattr(m.cell, "steps", False),
    "model.cell.sizes was [3, 3], is [3, 3, 4]": lambda m: m.cell.sizes.append(4),
    "model.training was True, is False": lambda m: m.eval(),
    "model.cell.linear.training was True, is False": lambda m: m.cell.linear.eval(),
    "model.cell.settings.rate was 0.1, is 0.2": lambda m: setattr(m.cell.settings, "rate", 0.2),
    "model.cell.settings gained limit": lambda m: setattr(m.cell.settings, "limit", 5),
    "model.cell gained extra": lambda m: setattr(m.cell, "extra", 1),
    "model.cell.linear.weight was replaced by another Parameter float32[3, 3]": set_parameter,
    "requires_grad=True, is float64[3, 3]": set_data,
    "with strides [3, 1] on cpu, requires_grad=True, is float32[3, 3] with strides [1, 3]": transpose_data,
    "requires_grad=True, is float32[3, 3] with strides [3, 1] on cpu, requires_grad=False": freeze,
    "model.cell.shift was replaced": lambda m: setattr(m.cell, "shift", torch.zeros(3)),
    "model.cell.linear was replaced by another Linear": lambda m: setattr(m.cell, "linear", nn.Linear(3, 3)),
    "model.cell.linear was a Linear, is a Identity": lambda m: setattr(m.cell, "linear", nn.Identity()),
    "model.cell._forward_hooks gained": lambda m: m.cell.register_forward_hook(print),
    "model.cell.heads[0] was replaced": lambda m: m.cell.heads.__setitem__(0, nn.Linear(3, 1)),
    "model.cell.heads's length was 1, is 2": lambda m: m.cell.heads.append(nn.Linear(3, 1)),
    "model gained forward": lambda m: setattr(m, "forward", lambda x: x),
}


@pytest.mark.parametrize("sentence", CHANGES)
def test_change_of_a_module_is_named(sentence: str) -> None:
    model = Model()
    guards = Guards.collect(model)
    assert guards.check() is None
    CHANGES[sentence](model)
    assert sentence in (guards.check() or "")
    assert guards.changes()


def test_updates_in_place_and_equal_values_are_no_change() -> None:
    model = Model()
    guards = Guards.collect(model)
    with torch.no_grad():
        model.cell.linear.weight.add_(1.0)
        model.cell.shift.fill_(3.0)
    model.cell.temperature = float("0.7")
    model.cell.sizes = [3, 3]
    model.cell.linear.weight.grad = torch.ones(3, 3)
    model.load_state_dict(copy.deepcopy(model).state_dict())
    assert guards.check() is None
    assert guards.changes() == ()


@pytest.mark.parametrize("before, after, same", [(math.nan, -math.nan, True), (0.0, -0.0, False), (1, True, False)])
def test_numbers_are_compared_strictly(before: float, after: float, same: bool) -> None:
    model = Cell()
    model.temperature = before
    guards = Guards.collect(model)
    model.temperature = float("nan") if math.isnan(after) else after
    assert (guards.check() is None) == same


def test_class_attributes_and_methods() -> None:
    guards = Guards.collect(Model())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cell, "gain", 2.0)
        assert guards.check() == "model.cell.gain was 1.5, is 2.0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "limit", 5)
        assert guards.check() == "model.cell.settings.limit was 4, is 5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cell, "scale", lambda self, x: x)
        assert "model.cell.scale was" in (guards.check() or "")
    assert guards.check() is None


def test_globals_of_functions_methods_and_decorated_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = [Guards.collect(fn) for fn in (use_globals, Model(), Model().forward)]
    monkeypatch.setitem(globals(), "LIMITS", [])  # only Model.unused reads it
    assert [guards.check() for guards in collected] == [None] * 3
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert [guards.check() for guards in collected] == ["global SCALE was 2.0, is 3.0"] * 3
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    monkeypatch.setitem(globals(), "WEIGHT", torch.ones(3))
    assert all("global WEIGHT was replaced" in (guards.check() or "") for guards in collected)


def test_closures_and_defaults() -> None:
    h0, factor = torch.zeros(3), 2
    inner: Any = Cell()

    def fn(x: torch.Tensor, offset: float = 0.5) -> torch.Tensor:
        return (lambda y: inner(y) * factor + h0)(x) + offset

    guards = Guards.collect(fn)
    tensors = guards.tensors()
    assert tensors["closure h0"] is h0
    assert tensors["closure inner.linear.weight"] is inner.linear.weight
    assert tensors["closure inner.shift"] is inner.shift
    assert tensors["global WEIGHT"] is WEIGHT
    factor = 3
    assert guards.check() == "closure factor was 2, is 3"
    factor = 2
    assert guards.check() is None
    fn.__defaults__ = (0.25,)
    assert "fn's defaults" in (guards.check() or "")


def test_methods_partials_and_callable_objects() -> None:
    model = Model()
    assert "model.cell.linear.weight" in Guards.collect(model.forward).tensors()
    guards = Guards.collect(functools.partial(use_globals, power=3))
    assert guards.check() is None and "global WEIGHT" in guards.tensors()

    class Sampler:
        def __init__(self) -> None:
            self.rate, self.net = 0.5, Model()

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * SCALE

    sampler = Sampler()
    guards = Guards.collect(sampler)
    assert "model.net.cell.shift" in guards.tensors()
    sampler.rate = 0.6
    assert guards.check() == "model.rate was 0.5, is 0.6"


def test_python_modules_and_caches_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    config = types.ModuleType("user_config")
    config.RATE, config.UNREAD = 0.5, 1  # type: ignore[attr-defined]
    cached = functools.lru_cache(lambda: SCALE)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return x * config.RATE + cached()

    guards = Guards.collect(fn)
    config.UNREAD = 2  # type: ignore[attr-defined]
    assert guards.check() is None
    config.RATE = 0.6  # type: ignore[attr-defined]
    assert guards.check() == "closure config.RATE was 0.5, is 0.6"
    config.RATE = 0.5  # type: ignore[attr-defined]
    monkeypatch.setitem(globals(), "SCALE", 9.0)
    assert guards.check() == "global SCALE was 2.0, is 9.0"


def test_library_objects_of_many_kinds() -> None:
    """Locks, loggers, parametrizations, distributions and the like neither fail nor change by themselves."""
    model = Model()
    model.cell.rnn = nn.LSTM(3, 3, 2, bidirectional=True)
    model.cell.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    model.cell.prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    model.cell.tools = [threading.Lock(), logging.getLogger("x"), torch.Generator(), deque(maxlen=3), torch.tanh]
    guards = Guards.collect(model)
    model(torch.ones(2, 3))
    model.cell.normed(torch.ones(2, 3))
    model.cell.prior.sample()
    assert guards.changes() == ()
    tensors = guards.tensors()
    assert tensors["model.cell.prior.loc"] is model.cell.prior.loc
    assert "model.cell.normed.parametrizations.weight.original0" in tensors
    assert {id(parameter) for parameter in model.parameters()} <= {id(tensor) for tensor in tensors.values()}


def test_arrays_are_guarded_by_contents() -> None:
    table = np.arange(4.0)
    guards = Guards.collect(lambda x: x + torch.from_numpy(table))
    assert guards.check() is None
    table[2] = 7.0
    assert guards.check() == "the contents of closure table changed"


def test_objects_among_the_arguments() -> None:
    settings = Settings()
    guards = Guards.collect(use_globals, (torch.ones(3), settings))
    settings.rate = 0.3
    assert guards.check() == "argument 1.rate was 0.1, is 0.3"


def test_changes_made_by_the_recorded_call() -> None:
    model = Cell()
    before = Guards.collect(model)
    model.steps += 1
    model.h = torch.zeros(3)
    model.shift = torch.ones(3)
    changed = before.changes()
    assert set(changed) == {"model.steps", "model.h", "model.shift"}
    guards = Guards.collect(model).without(changed)
    model.steps += 1
    model.shift = torch.zeros(3)
    assert guards.check() is None
    model.temperature = 0.1
    assert guards.check() == "model.temperature was 0.7, is 0.1"


def test_time_of_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(*[Cell() for _ in range(50)])
    guards = Guards.collect(model)
    guards.check()
    seconds = min(timeit.repeat(guards.check, number=100, repeat=3)) / 100
    x, y = torch.ones(3), torch.ones(3)
    key = min(timeit.repeat(lambda: hash(signature((x, y), {})), number=1000, repeat=3)) / 1000
    with capsys.disabled():
        print(f"\n{len(guards)} guards: {seconds * 1e6:.0f} us; signature of two tensors: {key * 1e6:.1f} us")


def test_signature_of_tensors() -> None:
    a, b = torch.ones(3, 4), torch.zeros(3, 4)
    key = signature((a, b), {})
    assert key == signature((b, a), {}) == signature((a.clone(), b.clone()), {})
    others = [
        (a, a),
        (a, a.view(3, 4)),
        (a[:, :2], a[:, 2:]),
        (a, torch.ones(4, 3).t()),
        (a, b.double()),
        (a, b.clone().requires_grad_()),
        (a, nn.Parameter(b.clone())),
        (a, torch.complex(a, b).imag),
        (a,),
    ]
    keys = [signature(args, {}) for args in others]
    assert len({key, *keys}) == len(others) + 1


def test_signature_of_memory_shared_through_numpy() -> None:
    array = np.zeros(8, dtype=np.float32)
    apart = signature((torch.zeros(4), torch.zeros(4)), {})
    assert signature((torch.from_numpy(array[:4]), torch.from_numpy(array[4:])), {}) == apart
    assert signature((torch.from_numpy(array[:4]), torch.from_numpy(array[2:6])), {}) != apart


def test_signature_of_static_arguments() -> None:
    generator = torch.Generator()
    leaves = [1, 1.0, True, 0.0, -0.0, None, "a", 1j, torch.float32, slice(0, 1), slice(0, True), generator]
    leaves += [torch.Generator(), np.float32(1), (1,), [1], {"a": 1}, math.inf]
    assert len({signature((leaf,), {}) for leaf in leaves}) == len(leaves)
    assert signature((math.nan,), {}) == signature((-math.nan,), {})
    assert signature((), {"x": 1}) != signature((1,), {})


def test_signature_of_global_state() -> None:
    def key() -> object:
        return signature((), {})

    torch.set_float32_matmul_precision("highest")  # once set, the settings read "ieee" instead of "none"
    plain = key()
    with torch.no_grad():
        assert key() != plain
    with torch.inference_mode():
        assert key() != plain
    with torch.autocast("cpu", torch.bfloat16):
        assert key() != plain
    with torch.device("meta"):
        assert key() != plain
    torch.set_default_dtype(torch.float64)
    assert key() != plain
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("high")
    assert key() != plain
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(True)
    assert key() != plain
    torch.use_deterministic_algorithms(False)
    assert key() == plain


@pytest.mark.parametrize(
    "args, kwargs, name",
    [
        ((torch.ones(1), {"m": bytearray(3)}), {}, "argument 1['m'] is a bytearray"),
        ((), {"h": torch.eye(2).to_sparse()}, "argument h is a Tensor"),
        ((np.ones(2),), {}, "argument 0 is a ndarray"),
    ],
)
def test_signature_refuses_by_name(args: tuple, kwargs: dict, name: str) -> None:
    with pytest.raises(CaptureError) as error:
        signature(args, kwargs)
    assert name in str(error.value)


class LazyTable(nn.Module):
    """Fills a cache in its first call, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0.0, 1.0, 8)
        for _ in range(20):
            x = torch.floor(x / 2 + self.table)
        return x


def test_a_cache_filled_by_the_first_call() -> None:
    """The first call runs the original and says why; from the second on the program is compiled."""
    compiled = fxsolve.compile(LazyTable(), solver=fxsolve.GaussSeidel())
    x = torch.arange(8.0)
    expected = LazyTable()(x)
    assert torch.equal(compiled(x), expected)
    assert "changes model.table" in compiled.explain()
    for _ in range(2):
        assert torch.equal(compiled(x), expected)
    assert compiled.solution.fallback is None, compiled.explain()


class Ordered(nn.Module):
    """Goes through its own buffer of indices, as numbers that leave torch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("order", torch.tensor([4, 2, 7, 0, 5, 3, 6, 1]))
        self.register_buffer("mask", torch.ones(8, 8))
        self.place()

    def place(self) -> None:
        rank = torch.argsort(self.order)
        self.mask.copy_((rank[:, None] > rank).float() * torch.linspace(-0.5, 0.5, 8))

    def forward(self, noise: Tensor) -> Tensor:
        x = torch.zeros_like(noise)
        if self.how == "tolist":
            order = self.order.tolist()
        else:
            order = self.order if self.how == "iterate" else [self.order[i].item() for i in range(8)]
        for i in order:
            x[:, i] = (x @ self.mask.t())[:, i] + noise[:, i]
        return x


@pytest.mark.parametrize("how", ["tolist", "item", "iterate"])
def test_numbers_read_out_of_a_buffer(how: str) -> None:
    """They are guarded by contents: another order is another program."""
    model = Ordered(how)
    compiled = fxsolve.compile(model, fallback=False, solver=fxsolve.Jacobi())
    noise = torch.randn(3, 8)
    for _ in range(2):
        for _ in range(2):
            assert torch.equal(compiled(noise), model(noise))
        assert [b.kind for b in compiled.solution.blocks] == ["FixedPoint"]
        model.order.copy_(model.order.flip(0))
        model.place()


def test_numbers_read_out_of_what_the_call_writes() -> None:
    count = torch.zeros(2)

    def program(x: Tensor) -> Tensor:
        count.add_(1)
        return x * count.tolist()[0]

    with pytest.raises(CaptureError, match="count"):
        fxsolve.compile(program, fallback=False)(torch.ones(2))


def test_an_attribute_under_another_name_is_a_change() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = 3.5

    model = Scaled()
    guards = Guards.collect(model)
    assert guards.check() is None
    value = model.last
    del model.last
    model.other = value  # the same object, in the same place
    assert guards.check() is not None


def test_an_attribute_that_shadows_a_method_is_seen_though_another_one_is_gone() -> None:
    """As many attributes as before, and none that was read has changed."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    model[1].note = "nobody reads it"  # type: ignore[assignment]
    compiled = fxsolve.compile(lambda x: looped(model, x), solver=fxsolve.GaussSeidel())
    x = torch.randn(2, 4)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), looped(model, x))
        del model[1].note
        model[1].forward = torch.sigmoid  # type: ignore[method-assign]
        torch.testing.assert_close(compiled(x), looped(model, x))


def looped(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    for _ in range(12):
        x = 0.5 * model(x) + x.sum() * 0.01
    return x


def test_compiled_callables_inside_are_what_they_stand_for() -> None:
    """What they note for themselves, call by call, is no change of the outer program; what the original holds is."""
    inner = nn.Linear(2, 2)
    inner.scale = 2.0  # type: ignore[assignment]
    compiled = fxsolve.compile(inner)
    outer = nn.Sequential(compiled)
    guards = Guards.collect(outer)
    assert {id(t) for t in guards.tensors().values()} == {id(p) for p in inner.parameters()}
    for rows in (1, 2, 3):
        compiled(torch.ones(rows, 2))
        assert guards.check() is None and not guards.changes()
    inner.scale = 3.0  # type: ignore[assignment]
    assert "scale was 2.0, is 3.0" in (guards.check() or "")
