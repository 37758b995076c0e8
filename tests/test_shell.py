"""The shell: where the original is the choice, calls go straight to it, and a change is noticed in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxsolve
from fxsolve.shell import LEAST, MOST, Calls, Shell, calls_between, shell_of
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


def test_what_fits() -> None:
    x = torch.randn(2, 3)
    shell = shell_of((x, 2, None), {}, "why", Calls(LEAST))
    assert isinstance(shell, Shell)
    assert shell.fits((torch.zeros(2, 3), 2, None), {})
    assert not shell.fits((torch.zeros(3, 3), 2, None), {})
    assert not shell.fits((x, 3, None), {})
    assert not shell.fits((x, 2.0, None), {})
    assert not shell.fits((x, 2), {})
    assert not shell.fits((x, 2), {"h": None})
    with torch.no_grad():
        assert not shell.fits((x, 2, None), {})
    assert [shell.fits((x, 2, None), {}) for _ in range(LEAST)] == [True] * (LEAST - 1) + [False]
    assert shell_of(([x],), {}, "why", Calls(1)) is None and shell_of((x,), {"h": 1}, "why", Calls(1)) is None


def test_looks_take_a_hundredth_of_the_time_of_the_calls() -> None:
    lefts = [calls_between(look, 1.0).left for look in (0.0, 0.5, 2.0, 10.0, 100.0)]
    assert lefts == [LEAST, LEAST, 200, 1000, MOST]


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
