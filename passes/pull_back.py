"""Pull back: the gradients of a Recurrence's invariants, once the cotangents of its states and inputs are known.

    dc = sum_t (l_t, g_t)^T d(s_t, y_t)/dc

One vector-Jacobian product of all T steps as one call, recorded as ATen calls. On its way to dc it comes by the gradients
of the steps' inputs, dx, which the adjoint has found already: it starts from there, where it can.

    a = addmm(x, s, W)     -->    da = dx,   dW = s^T dx      nothing of the step is computed again
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from fxsolve.ir import CARRY, CONST, INDEX, STACKED, Recurrence, TensorType, placeholders, results
from fxsolve.passes.adjoint import Adjoint, NotDifferentiable, recorded, vector_jacobian
from fxsolve.passes.batch_step import batch_step
from fxsolve.passes.layouts import without_gaps
from fxsolve.passes.readable import generated

aten = torch.ops.aten
NAME = "pull back"
# the same elements in the same order
RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.detach.default, aten.alias.default, aten.clone.default)


def pull_back(block: Recurrence, found: Adjoint, wanted: Sequence[int]) -> tuple[fx.Graph, list[int]]:
    """(l.., g.., dx.., states before.., x.., c..) -> the gradients of the wanted invariants, and which of them have any.

    Stacks are of all steps, in memory of their own.
    """
    block = replace(block, step=without_gaps(block.step))
    varying = placeholders(block.step, CARRY, STACKED)
    step = batch_step(block.step, [n.name for n in varying + placeholders(block.step, INDEX)], block.length)
    run = generated(step)
    places = [*found.moving, *(block.carries + k for k in found.asked)]
    inputs = [placeholders(block.step, STACKED)[i] for i in found.reached]
    stacks = [*(results(block.step)[k] for k in places), *inputs, *varying]
    kinds: list[TensorType] = [n.meta["type"] for n in stacks]
    examples = [torch.zeros(block.length, *k.shape, dtype=k.dtype, device=k.device) for k in kinds]
    examples += [n.meta["type"].empty().zero_() for n in placeholders(block.step, CONST)]
    first = block.carries + block.stacked
    given: list[int] = []

    def backward(*flat: torch.Tensor) -> Sequence[torch.Tensor]:
        sought = [*(block.carries + i for i in found.reached), *(first + i for i in wanted)]
        gradients = vector_jacobian(run, block, places, flat[: len(places)], flat[len(places) + len(inputs) :], sought)
        dx, dc = gradients[: len(inputs)], gradients[len(inputs) :]
        given.extend(i for i, g in zip(wanted, dc, strict=True) if g is not None)
        if any(g is None for g in dx):
            raise NotDifferentiable("its steps together hang on other inputs than each of them")
        return [g for g in gradients if g is not None]

    names = [f"a{i}" for i in range(len(examples))]
    graph = recorded(backward, dict(zip(names, examples, strict=True)), names)
    made, known = results(graph), placeholders(graph)[len(places) : len(places) + len(inputs)]
    for gradient, dx in zip(made[: len(inputs)], known, strict=True):
        start_from(graph, gradient, dx)
    graph.output(made[len(inputs) :])
    graph.erase_node(next(n for n in graph.nodes if n.op == "output"))
    graph.eliminate_dead_code()
    return graph, given


def start_from(graph: fx.Graph, node: fx.Node, known: fx.Node) -> None:
    """Uses `known` for what `node` is a reshaped form of."""
    while node.target in RESHAPES:
        node = node.all_input_nodes[0]
    if node.op != "call_function":
        return
    with graph.inserting_after(placeholders(graph)[-1]):
        again = graph.call_function(aten.view.default, (known, list(node.meta["type"].shape)))
    again.meta.update(node.meta)
    node.replace_all_uses_with(again)
