"""A loop that applies one function again and again, lowered: in order, until its state repeats bit for bit.

    for _ in range(T): x = F(x)    -->    x = F(x) until F(x) == x

Equal bits in, equal bits out: from the first repeat on every further step gives the same state. So flows invert their
masked autoregressive transforms (T passes, most of which change nothing), and so fixed-point and Newton iterations run on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fxsolve.bits import same_bits
from fxsolve.ir import CARRY, Recurrence, calls, placeholders
from fxsolve.passes.clean import is_random_target
from fxsolve.passes.readable import generated

Tensors = Sequence[torch.Tensor]
UNCHECKED = {"cuda": 3}  # steps between two comparisons, which wait for the device; going on is harmless


def repeats(block: Recurrence) -> bool:
    """Whether each step computes the same function of the state alone, and nothing but the last state is asked for."""
    alone = not (block.stacked or block.outputs or block.table)
    return alone and block.carries > 0 and not any(is_random_target(node.target) for node in calls(block.step))


class LoweredRepeat:
    """Such a block and its generated step."""

    def __init__(self, block: Recurrence) -> None:
        self.block = block
        self.step = generated(block.step)
        self.read = [k for k, node in enumerate(placeholders(block.step, CARRY)) if node.users]

    def solve(self, initial: Tensors, consts: Tensors) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """(final carries..) and the figures of a BlockSolution: eager's calls, as many as change something."""
        length = self.block.length
        patience = UNCHECKED.get(initial[0].device.type, 0)
        state, steps, final = tuple(initial), 0, False
        while steps < length and not final:
            before, state = state, self.step(*state, *consts)
            steps += 1
            if steps % (patience + 1) == 0:
                final = all(same_bits(before[k].contiguous(), state[k].contiguous()) for k in self.read)
        figures = {
            "sweeps": steps,
            "steps": steps,
            "frontier": (*range(1, steps), length),
            "residual": 0.0,
            "contraction": None,
            "certificate": "every equation holds bit for bit",
        }
        return state, figures
