"""Gauss-Seidel with the recorded step: eager's own calls at eager's own shapes, one equation after another, as generated code.

What gives the same bits for all steps at once is computed before them (fxsolve.passes.ahead); what is left of a step is one
straight line in a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import fx

from fxsolve.ir import INDEX, STACKED, Recurrence, calls, placeholders
from fxsolve.passes.ahead import ahead
from fxsolve.passes.batch_step import batch_step
from fxsolve.passes.looped import looped
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from fxsolve.plan import Tensors

T = TypeVar("T")


class Stepwise:
    """The walk of a Recurrence, (initial state.., stacked inputs.., invariants..) -> (last state.., stacked outputs..), with
    nothing written over: autograd can follow it.
    """

    def __init__(self, block: Recurrence, step: fx.Graph | None = None) -> None:
        self.length, self.reverse = block.length, block.reverse
        self.indices = self.in_turn(block.table)
        self.walk = looped(step or block.step, block.carries, STACKED, last=True)

    def __call__(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[torch.Tensor, ...]:
        carry, outputs = self.walk(initial, self.in_turn([x.unbind(0) for x in stacked]), self.indices, consts)
        outputs = outputs[::-1] if self.reverse else outputs
        return (*carry, *[torch.stack(column) for column in zip(*outputs, strict=True)])

    def in_turn(self, columns: Sequence[Sequence[T]]) -> list[tuple[T, ...]]:
        """The rows of all columns, in the order of the steps."""
        rows = list(zip(*columns, strict=True)) if columns else [()] * self.length
        return rows[::-1] if self.reverse else rows


class WalkInOrder(Stepwise):
    """The same with eager's bits, as quick as it gets."""

    def __init__(self, block: Recurrence) -> None:
        pre, rest = ahead(block)
        self.ahead = None
        if any(True for _ in calls(pre)):
            together = [n.name for n in placeholders(pre, STACKED, INDEX)]
            self.ahead = generated(reuse(batch_step(pre, together, block.length)))
            self.columns = [torch.tensor(column) for column in block.table]
            block = rest
        super().__init__(block, reuse(block.step))

    def __call__(self, initial: Tensors, stacked: Tensors, consts: Tensors) -> tuple[torch.Tensor, ...]:
        if self.ahead is not None:
            device = next((x.device for x in [*initial, *stacked, *consts]), torch.device("cpu"))
            self.columns = [column.to(device) for column in self.columns]
            stacked = self.ahead(*stacked, *self.columns, *consts)
        return super().__call__(initial, stacked, consts)
