"""What a run holds at a time, and that explain says it."""

from __future__ import annotations

import re
import weakref

import pytest
import torch
from torch import Tensor, nn

import fxsolve
from fxsolve.memory import Held, held_by, size_text

KB = torch.zeros(250)  # 1000 bytes


def test_tensors_count_for_as_long_as_they_live() -> None:
    def run() -> Tensor:
        a = KB + 1
        b = a * 2  # two at a time
        del a
        c = torch.stack([b, b])  # three
        del b
        return c[0]

    assert held_by(run) == 3000


def test_views_and_writes_in_place_hold_nothing() -> None:
    assert held_by(lambda: KB[:10].view(5, 2).t()) == 0
    assert held_by(lambda: KB.clone().add_(1).mul_(2).view(10, 25)) == 1000
    assert held_by(lambda: torch.add(KB, 1, out=KB).zero_()) == 0


def test_results_in_lists_count() -> None:
    assert held_by(lambda: torch.unbind(KB.view(10, 25))) == 0
    assert held_by(lambda: torch.var_mean(KB.view(10, 25), 1)) == 80
    assert held_by(lambda: torch._foreach_add([KB, KB], 1.0)) == 2000


def test_what_outlives_the_run_is_let_go_of() -> None:
    with Held() as held:
        kept = KB + 1
    assert (held.now, held.peak) == (1000, 1000)
    alive = weakref.ref(kept)
    del kept
    assert alive() is None and held.now == 0


def test_backward_counts() -> None:
    x = torch.zeros(250, requires_grad=True)

    def run() -> Tensor:
        y = (x * 2).exp()  # the product is not kept, the exponential is, for its own gradient
        return torch.autograd.grad(y, x, torch.ones(250))[0]

    assert 3000 <= held_by(run) <= 5000


@pytest.mark.parametrize(("count", "text"), [(12_300, "12 kB"), (4_560_000, "4.6 MB")])
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text


class Rnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.RNNCell(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros(x.shape[1], 8), []
        for t in range(x.shape[0]):
            h = self.cell(x[t], h)
            out.append(h)
        return torch.stack(out)


def test_the_plan_tells_it() -> None:
    model, x = Rnn(), torch.randn(512, 2, 4)
    compiled = fxsolve.compile(model)
    with torch.no_grad():
        compiled(x)
        compiled(x)
        profiled = peak(lambda: model(x))
    memory = compiled._compiler.last.memory
    results = 512 * 2 * 8 * 4
    assert memory["original"] >= 2 * results  # the states one by one, then all in one tensor
    assert 0.9 * profiled <= memory["original"] <= 1.1 * profiled
    assert memory["compiled"] >= results
    (line,) = re.findall("held at a time: (.*)", compiled.explain())
    assert line == f"original {size_text(memory['original'])}, compiled {size_text(memory['compiled'])}"
    (runner,) = (compiled._compiler.last.executable or compiled._compiler.last.rejected).runners.values()
    weighed = [c for c in runner.plan.candidates if c.memory is not None]
    assert weighed and all(c.memory >= results // 2 and c.seconds is not None for c in weighed)
    assert all(f" {size_text(c.memory)}, certified" in compiled.explain() for c in weighed)


def peak(run) -> float:
    """The same by torch's profiler, which sees every allocation."""
    total = most = 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most
