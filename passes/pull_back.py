"""Pull back: the gradients of a Recurrence's inputs, once the cotangents of all its states are known.

    dx_t = (l_t, g_t)^T d(s_t, y_t)/dx_t,     dc = sum_t (l_t, g_t)^T d(s_t, y_t)/dc

One vector-Jacobian product of all T steps as one call, recorded as ATen calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxsolve.ir import CARRY, CONST, INDEX, STACKED, Recurrence, TensorType, placeholders, results
from fxsolve.passes.adjoint import Adjoint, recorded, vector_jacobian
from fxsolve.passes.batch_step import batch_step
from fxsolve.passes.readable import generated

NAME = "pull back"


def pull_back(block: Recurrence, found: Adjoint, wanted: Sequence[int]) -> tuple[fx.Graph, list[int]]:
    """(l.., g.., states before.., x.., c..) -> the gradients of the wanted ones of (s.., x.., c..), those that have any.

    They are named beside the graph. Stacks are of all steps.
    """
    varying = placeholders(block.step, CARRY, STACKED)
    step = batch_step(block.step, [n.name for n in varying + placeholders(block.step, INDEX)], block.length)
    run = generated(step)
    places = [*found.moving, *(block.carries + k for k in found.asked)]
    stacks = [results(block.step)[k] for k in places] + varying
    kinds: list[TensorType] = [n.meta["type"] for n in stacks + placeholders(block.step, CONST)]
    shapes = [(block.length, *k.shape) if i < len(stacks) else k.shape for i, k in enumerate(kinds)]
    examples = [
        torch.zeros(shape, dtype=k.dtype, device=k.device) if i < len(stacks) else k.empty().zero_()
        for i, (shape, k) in enumerate(zip(shapes, kinds, strict=True))
    ]
    given: list[int] = []

    def backward(*flat: torch.Tensor) -> Sequence[torch.Tensor]:
        gradients = vector_jacobian(run, block, places, flat[: len(places)], flat[len(places) :], wanted)
        given.extend(i for i, g in zip(wanted, gradients, strict=True) if g is not None)
        return [g for g in gradients if g is not None]

    names = [f"a{i}" for i in range(len(examples))]
    return recorded(backward, dict(zip(names, examples, strict=True)), names), given
