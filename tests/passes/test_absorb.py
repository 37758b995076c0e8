"""Sums absorbed into products: golden text, equal values to rounding, idempotence, random steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from fxsolve.ir import TensorType, to_text
from fxsolve.passes.absorb import absorb
from fxsolve.passes.readable import generated, readable

aten = torch.ops.aten


def step(build: Callable[..., Any], **shapes: tuple[int, ...]) -> fx.Graph:
    """A step graph with the given placeholders; `build` gets a function that adds typed calls."""
    graph = fx.Graph()
    nodes = {}
    for name, shape in shapes.items():
        nodes[name] = graph.create_node("placeholder", name, name=name)
        nodes[name].meta.update(type=TensorType.of(torch.empty(shape)), source="")

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = graph.call_function(target, args, kwargs)
        real = fx.map_arg(args, lambda n: n.meta["type"].empty())
        node.meta.update(type=TensorType.of(target(*real, **kwargs)), source="user.py:1")
        return node

    graph.output((build(call, **nodes),))
    return graph


def cell(call: Any, s0: Any, x0: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:
    """tanh(h W + b + (x V + a)) + h * h, as nn.RNNCell adds it up."""
    projected = call(aten.addmm.default, c0, x0, c1)
    product = call(aten.addmm.default, c2, s0, c3)
    total = call(aten.add.Tensor, projected, product)
    return call(aten.add.Tensor, call(aten.tanh.default, total), call(aten.mul.Tensor, s0, s0))


SHAPES = {"s0": (2, 3), "x0": (2, 4), "c0": (3,), "c1": (4, 3), "c2": (3,), "c3": (3, 3)}


def outputs(graph: fx.Graph, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    shapes = [n.meta["type"].shape for n in graph.nodes if n.op == "placeholder"]
    return generated(graph)(*[torch.randn(s, dtype=torch.float64) for s in shapes])[0]


def test_golden(golden: Callable[[str, str], None]) -> None:
    before = step(cell, **SHAPES)
    after = absorb(before)
    golden("absorb", to_text(before) + "\n\n-->\n\n" + to_text(after))


def adjoint_cell(call: Any, s0: Any, x0: Any, x1: Any, c0: Any) -> Any:
    """((l + k) f') W, as the adjoint of a tanh cell has it."""
    return call(aten.mm.default, call(aten.mul.Tensor, call(aten.add.Tensor, s0, x0), x1), c0)


def test_sums_are_multiplied_out(golden: Callable[[str, str], None]) -> None:
    before = step(adjoint_cell, s0=(2, 3), x0=(2, 3), x1=(2, 3), c0=(3, 3))
    after = absorb(before)
    golden("absorb_sum", to_text(before) + "\n\n-->\n\n" + to_text(after))
    assert to_text(absorb(after)) == to_text(after)
    torch.testing.assert_close(outputs(after), outputs(before), rtol=1e-13, atol=1e-13)


def test_values_and_idempotence() -> None:
    before = step(cell, **SHAPES)
    after = absorb(before)
    assert to_text(absorb(after)) == to_text(after)
    assert len(after.nodes) < len(before.nodes)
    torch.testing.assert_close(outputs(after), outputs(before), rtol=1e-13, atol=1e-13)


def test_sums_with_other_uses_stay() -> None:
    def used_twice(call: Any, s0: Any, x0: Any, c0: Any) -> Any:
        product = call(aten.mm.default, s0, c0)
        return call(aten.mul.Tensor, call(aten.add.Tensor, product, x0), product)

    before = step(used_twice, s0=(2, 3), x0=(2, 3), c0=(3, 3))
    assert to_text(absorb(before)) == to_text(before)


def test_scaled_sums_stay() -> None:
    def scaled(call: Any, s0: Any, x0: Any, c0: Any) -> Any:
        return call(aten.add.Tensor, call(aten.mm.default, s0, c0), x0, alpha=2)

    before = step(scaled, s0=(2, 3), x0=(2, 3), c0=(3, 3))
    assert to_text(absorb(before)) == to_text(before)


@pytest.mark.parametrize("seed", range(40))
def test_random_steps(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=rng))

    def random_body(call: Any, s0: Any, x0: Any, c0: Any, c1: Any, **_: Any) -> Any:
        values = [s0, x0]
        for _ in range(8):
            a, b = values[draw(len(values))], values[draw(len(values))]
            kind = draw(5)
            if kind == 0:
                values.append(call(aten.addmm.default, c1, a, c0))
            elif kind == 1:
                values.append(call(aten.mm.default, a, c0))
            elif kind == 2:
                values.append(call(aten.mul.Tensor, a, b))
            elif kind == 3:
                values.append(call(aten.tanh.default, a))
            else:
                values.append(call(aten.add.Tensor, a, b))
        return call(aten.add.Tensor, values[-1], values[-2])

    before = step(random_body, s0=(2, 3), x0=(2, 3), c0=(3, 3), c1=(3,))
    after = absorb(before)
    torch.testing.assert_close(outputs(after, seed), outputs(before, seed), rtol=1e-10, atol=1e-10)
    assert to_text(absorb(after)) == to_text(after)


def test_readable_calls_are_the_same_calls() -> None:
    before = step(cell, **SHAPES)
    torch.manual_seed(1)
    args = [torch.randn(n.meta["type"].shape) for n in before.nodes if n.op == "placeholder"]
    plain = fx.GraphModule({}, before)(*args)[0]
    assert torch.equal(generated(before)(*args)[0], plain)
    code = fx.GraphModule({}, readable(before)).code
    assert "torch.addmm(" in code and "torch.ops.aten" not in code
