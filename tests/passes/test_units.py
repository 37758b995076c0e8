"""Rounding units: float32 steps stay within their bound of a float64 run, component by component; the bound is not loose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxsolve.ir import CARRY, placeholders, results
from fxsolve.passes.units import unit_step
from tests.passes.tracing import traced

EPS = torch.finfo(torch.float32).eps
generator = torch.Generator().manual_seed(0)
W, V, B = (torch.randn(*shape, generator=generator) for shape in ((5, 5), (5, 5), (5,)))

STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda s, x: F.linear(s, W, B),
    "rnn": lambda s, x: torch.tanh(F.linear(s, W, B) + F.linear(x, V)),
    "products": lambda s, x: s * x - s * s + 0.5 * s,
    "quotient": lambda s, x: s / (1 + x * x) + x / (2 + s * s),
    "gate": lambda s, x: torch.sigmoid(s @ W) * s + (1 - torch.sigmoid(s @ V)) * x,
    "relu": lambda s, x: torch.relu(s - x) * 2,
    "softplus": lambda s, x: F.softplus(s + x),
    "exp": lambda s, x: torch.exp(-s * s) + torch.log(2 + s * s),
    "sin": lambda s, x: torch.sin(3 * s) + torch.cos(x - s),
    "silu": lambda s, x: F.silu(s) + F.gelu(s - x),
    "root": lambda s, x: torch.sqrt(1 + s * s).abs() - s.neg(),
    "clamp": lambda s, x: torch.clamp(s + x, -1, 1) + F.leaky_relu(s) + F.elu(s),
    "views": lambda s, x: torch.cat([s[:, 2:], s[:, :2] * 3], 1).flip(1) + torch.stack([s, x]).sum(0),
    "chunks": lambda s, x: torch.cat([p.tanh() for p in (s @ W).split(2, 1)], 1),
    "mean": lambda s, x: s - s.mean(1, keepdim=True) + x.sum(),
    "bmm": lambda s, x: torch.bmm(s[:, None], W.expand(3, 5, 5))[:, 0],
    "addmm": lambda s, x: torch.addmm(B, s, W, beta=0.5, alpha=2) + s.t().contiguous().t().reshape(-1).view(3, 5),
}


def bounds(graph: fx.Graph, values: list[Tensor]) -> Tensor:
    (found,) = fx.GraphModule({}, unit_step(graph, 1))(*values)
    return found


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_within_its_units(name: str, scale: float) -> None:
    """Inputs that are off by half a unit of their own and every rounding inside: no component by more than 4 units."""
    torch.manual_seed(1)
    s, x = torch.randn(3, 5) * scale, torch.randn(3, 5)
    graph, values = traced(lambda s, x: (STEPS[name](s, x),), {"s0": s, "x0": x})
    given = [s, x, *values.values()]
    unit = bounds(graph, given) * EPS
    run = fx.GraphModule({}, graph)
    exact = run(*[v.double() for v in given])[0]
    assert unit.shape == exact.shape and bool((unit >= 0).all())
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        off = s.double() * (1 + (torch.rand(s.shape, generator=g, dtype=torch.float64) - 0.5) * EPS)
        found = run(off.float(), *given[1:])[0]
        assert bool(((found.double() - exact).abs() <= 4 * unit).all())


@pytest.mark.parametrize("name", ["linear", "rnn", "gate"])
def test_a_unit_is_not_loose(name: str) -> None:
    """An error of 100 eps relative to each component is more than 8 units of some."""
    torch.manual_seed(2)
    s, x = torch.randn(3, 5), torch.randn(3, 5)
    graph, values = traced(lambda s, x: (STEPS[name](s, x),), {"s0": s, "x0": x})
    unit = bounds(graph, [s, x, *values.values()]) * EPS
    value = fx.GraphModule({}, graph)(s, x, *values.values())[0]
    assert bool((100 * EPS * value.abs() > 8 * unit).any())


def test_a_small_component_beside_a_large_one_has_its_own_unit() -> None:
    s = torch.tensor([[1.0, 5e-7]])
    graph, _ = traced(lambda s: (s * 1.0,), {"s0": s})
    unit = bounds(graph, [s])
    assert torch.allclose(unit, 2 * s)


def test_an_op_without_a_rule_is_taken_strictly() -> None:
    s = torch.rand(2, 3) + 1
    graph, _ = traced(lambda s: (torch.lgamma(s * 2),), {"s0": s})
    assert torch.equal(bounds(graph, [s]), torch.lgamma(s * 2).abs())


def test_placeholders_and_results() -> None:
    """The same placeholders; a bound for each carry, in the carry's shape; the graph that is given stays as it is."""
    s, h = torch.randn(2, 3), torch.randn(2, 4)
    graph, _ = traced(lambda s, h, x: (torch.tanh(s) + x, h * 2, s.sum()), {"s0": s, "s1": h, "x0": s * 2})
    before = str(graph)
    made = unit_step(graph, 2)
    assert str(graph) == before
    assert [n.name for n in placeholders(made)] == ["s0", "s1", "x0"]
    assert len(results(made)) == 2 and len(placeholders(made, CARRY)) == 2
    found = fx.GraphModule({}, made)(s, h, s * 2)
    assert [f.shape for f in found] == [s.shape, h.shape]
