"""Memory reused inside a step: golden text, equal values, nothing that is given or returned is written over."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from fxsolve.ir import TensorType, to_text
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse

aten = torch.ops.aten
SHAPE = (3, 4)


class Builder:
    """A graph of typed calls on a few placeholders of one shape."""

    def __init__(self, inputs: int) -> None:
        self.graph = fx.Graph()
        self.values = [self.typed(self.graph.create_node("placeholder", f"s{i}", name=f"s{i}"), SHAPE) for i in range(inputs)]

    def typed(self, node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        node.meta.update(type=TensorType.of(torch.empty(shape)), source="user.py:1")
        return node

    def call(self, target: Any, *args: Any, shape: tuple[int, ...] = SHAPE) -> fx.Node:
        return self.typed(self.graph.call_function(target, args), shape)


def lstm_like() -> fx.Graph:
    """Gates of one product, read in parts; the new state is computed from a part and must have memory of its own."""
    b = Builder(2)
    weight = b.typed(b.graph.create_node("placeholder", "c0", name="c0"), (4, 8))
    product = b.call(aten.mm.default, b.values[0], weight, shape=(3, 8))
    parts = b.graph.call_function(aten.unsafe_split.Tensor, (product, 4, 1))
    gate, new = (b.typed(b.graph.call_function(operator.getitem, (parts, i)), SHAPE) for i in range(2))
    kept = b.call(aten.mul.Tensor, b.call(aten.sigmoid.default, gate), b.values[1])
    cell = b.call(aten.addcmul.default, kept, b.call(aten.tanh.default, new), b.values[1])
    out = b.call(aten.mul.Tensor, b.values[0], b.call(aten.tanh.default, cell))
    b.graph.output((out, cell))
    return b.graph


def outputs(graph: fx.Graph) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Results and the arguments as they are afterwards."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(n.meta["type"].shape, generator=generator) for n in graph.nodes if n.op == "placeholder"]
    return list(generated(graph)(*given)), given


def assert_same_values(before: fx.Graph, after: fx.Graph) -> None:
    (wanted, _), (found, given) = outputs(before), outputs(after)
    untouched = outputs(before)[1]
    for a, b in zip([*wanted, *untouched], [*found, *given], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, equal_nan=True)


def test_golden(golden: Callable[[str, str], None]) -> None:
    before = lstm_like()
    after = reuse(before)
    golden("reuse", to_text(before) + "\n\n-->\n\n" + to_text(after))
    assert_same_values(before, after)
    assert to_text(reuse(after)) == to_text(after)


def random_graph(seed: int) -> fx.Graph:
    rng = random.Random(seed)
    b = Builder(3)
    for _ in range(rng.randint(3, 12)):
        kind = rng.choice((aten.sigmoid.default, aten.tanh.default, aten.neg.default, aten.mul.Tensor, aten.add.Tensor,
                           aten.sub.Tensor, aten.addcmul.default))  # fmt: skip
        recent = b.values[-3:]  # chains, with a value read twice now and then
        count = {aten.addcmul.default: 3, aten.mul.Tensor: 2, aten.add.Tensor: 2, aten.sub.Tensor: 2}.get(kind, 1)
        b.values.append(b.call(kind, *[rng.choice(recent) for _ in range(count)]))
    b.graph.output(tuple(rng.sample(b.values[3:], min(2, len(b.values) - 3))))
    return b.graph


@pytest.mark.parametrize("seed", range(100))
def test_random_steps(seed: int) -> None:
    before = random_graph(seed)
    assert_same_values(before, reuse(before))


def test_most_chains_are_written_in_place() -> None:
    methods = [sum(n.op == "call_method" for n in reuse(random_graph(seed)).nodes) for seed in range(100)]
    assert sum(m > 0 for m in methods) > 50
