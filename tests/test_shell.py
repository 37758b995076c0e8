"""The shell: where the original is the choice, calls go straight to it, and a change is noticed in time."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import fxsolve
import fxsolve.compiler
from fxsolve.shell import MOST, Patience, kind_of
from tests.checking import assert_same_bits


class Steps(nn.Module):
    """A loop whose length is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 3
        self.cell = nn.Linear(8, 8)
        nn.init.normal_(self.cell.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(self.length):
            h = torch.tanh(self.cell(h) + x)
        return h


def test_kinds_of_calls() -> None:
    x, h = torch.randn(2, 3), torch.zeros(2)
    other = object()
    kind = kind_of((x, 2, None), {})
    assert kind == kind_of((torch.zeros(2, 3), 2, None), {})
    for args, kwargs in (((torch.zeros(3, 3), 2, None), {}), ((x, 3, None), {}), ((x, 2.0, None), {}), ((x, True, None), {}),
                         ((x, 2), {}), ((x, 2), {"h": None}), ((x, 2, other), {}), ((x, 2, [None]), {})):  # fmt: skip
        assert kind_of(args, kwargs) != kind
    with torch.no_grad():
        assert kind_of((x, 2, None), {}) != kind
    assert kind_of((x, (h, [h])), {"k": {"a": h}}) == kind_of((x, (h + 1, [h])), {"k": {"a": h}})
    assert kind_of((x, (h, [h])), {"k": {"a": h}}) != kind_of((x, (h, [x])), {"k": {"a": h}})
    assert kind_of((other,), {}) == kind_of((other,), {}) != kind_of((object(),), {})


def test_looks_become_rare() -> None:
    patience = Patience()
    assert [patience.more().left for _ in range(9)] == [64, 128, 256, 512, 1024, 2048, 4096, 4096, 4096] and MOST == 4096


class State(nn.Module):
    def forward(self, x: Tensor, state: tuple[Tensor, list[Tensor]], *, scale: float = 1.0) -> Tensor:
        return scale * x + state[0] - state[1][0]


def test_calls_of_several_kinds_in_turns_go_straight() -> None:
    model = State()
    compiled = fxsolve.compile(model)
    calls = [((torch.randn(n, 3), (torch.randn(3), [torch.randn(3)])), {"scale": float(n)}) for n in (1, 2, 3)]
    with torch.no_grad():
        for _ in range(2):
            for args, kwargs in calls:
                assert_same_bits(compiled(*args, **kwargs), model(*args, **kwargs))
        straight = compiled._compiler.straight
        before = [s.calls.left for s in straight.values()]
        entries = []
        for _ in range(5):
            for args, kwargs in calls:
                assert_same_bits(compiled(*args, **kwargs), model(*args, **kwargs))
                entries.append(compiled._compiler.last)
    assert [s.calls.left for s in straight.values()] == [left - 5 for left in before] and len(before) == 3
    assert entries == 5 * list(compiled._compiler.entries.values())


def test_new_objects_in_each_call_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxsolve.compiler, "KINDS", 4)
    compiled = fxsolve.compile(lambda x, flag: x + 1)
    entries = compiled._compiler.entries
    for _ in range(20):
        compiled(torch.ones(2), Fraction(1, 2))  # equal, but another object each time
        assert len(compiled._compiler.straight) <= 4 and len(entries) == 1


def test_a_change_is_noticed_in_time_and_never_answered_wrongly() -> None:
    torch.manual_seed(0)
    model = Steps()
    compiled = fxsolve.compile(model)
    x = torch.randn(2, 8)
    with torch.no_grad():
        for _ in range(3):
            assert_same_bits(compiled(x), model(x))
        assert compiled.solution.fallback is not None
        model.length = 40
        entry = compiled._compiler.last
        for _ in range(MOST + 1):
            if compiled._compiler.last is not entry:
                break
            assert torch.allclose(compiled(x), model(x), atol=1e-6)
        assert compiled._compiler.last is not entry, "the guards were not looked at again"


def test_each_call_has_its_own_solution() -> None:
    compiled = fxsolve.compile(nn.Linear(2, 2))
    seen = []
    with torch.no_grad():
        for _ in range(4):
            compiled(torch.randn(1, 2))
            seen.append(compiled.solution)
    assert len({id(s) for s in seen}) == 4
    assert all(s.fallback and s.seconds > 0 and not s.blocks for s in seen)


def test_another_shape_is_compiled_beside_the_first() -> None:
    torch.manual_seed(0)
    cell = nn.RNNCell(8, 8)

    def loop(x: Tensor) -> Tensor:
        h, outs = x.new_zeros(1, 8), []
        for t in range(x.shape[0]):
            h = cell(x[t], h)
            outs.append(h)
        return torch.stack(outs)

    compiled = fxsolve.compile(loop)
    with torch.no_grad():
        for length in (3, 3, 3, 5, 3):
            x = torch.randn(length, 1, 8)
            assert_same_bits(compiled(x), loop(x))
    assert len(compiled._compiler.entries) == 2
