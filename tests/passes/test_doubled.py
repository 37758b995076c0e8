"""The float64 twin of a graph."""

from __future__ import annotations

import torch
from torch import fx

from fxsolve.passes.doubled import doubled

aten = torch.ops.aten


def program() -> fx.Graph:
    """x + 1 in half precision, summed over where a mask says so."""
    graph = fx.Graph()
    x, mask = graph.placeholder("x"), graph.placeholder("mask")
    one = graph.call_function(aten.full.default, ([2], 1.0), {"dtype": torch.float32})
    rounded = graph.call_function(aten._to_copy.default, (x,), {"dtype": torch.float16})
    total = graph.call_function(aten.add.Tensor, (rounded, one))
    chosen = graph.call_function(aten.where.self, (mask, total, torch.tensor(0.5)))
    whole = graph.call_function(aten._to_copy.default, (mask,), {"dtype": torch.int64})
    graph.output((chosen, whole))
    return graph


def text(graph: fx.Graph) -> list[str]:
    return [str(n.format_node()) for n in graph.nodes]


def test_types_are_widened_and_nothing_is_rounded() -> None:
    x, mask = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([True, False])
    chosen, whole = fx.Interpreter(fx.GraphModule({}, doubled(program()))).run(x, mask)
    assert chosen.dtype == torch.float64 and chosen.tolist() == [0.1 + 1.0, 0.5]
    assert whole.dtype == torch.int64 and whole.tolist() == [1, 0]


def test_the_original_stays_as_it_is_and_a_second_run_changes_nothing() -> None:
    graph = program()
    before = text(graph)
    once = doubled(graph)
    assert text(graph) == before
    assert text(doubled(once)) == text(once)
