"""Growth: names the tensors that a loop lengthens step by step.

    for t: x = cat([x, f(x)])

Each step has shapes of its own, so no two are alike and nothing is rolled. A buffer of the final length would do. (The
layers of a DenseNet lengthen a tensor too, but each reads weights of its own: that is no loop.)
"""

from __future__ import annotations

import torch

from fxsolve.tape import Tape

aten = torch.ops.aten
NAME = "growth"
STEPS = 4


def growth(tape: Tape) -> str | None:
    """Why a program that lengthens a tensor in STEPS steps or more does not roll; None for others."""
    steps: dict[int, int] = {}  # result of a cat -> how many cats lie behind it, all with steps that read the same leaves
    read: set[int] = set()
    before: set[int] | None = None
    for row, number in enumerate(tape.symbol):
        read.update(value for value in tape.inputs[row] if tape.value_row[value] < 0)
        if tape.symbols.items[number].target is not aten.cat.default:
            continue
        behind = max((steps.get(value, 0) for value in tape.inputs[row]), default=0)
        if not behind and steps:
            continue  # a cat inside a step
        steps[tape.first[row]] = count = 1 + (behind if read == before or behind <= 1 else 0)
        before, read = read, set()
        if count >= STEPS:
            where = tape.sources.items[tape.source[row]]
            return (
                f"a tensor is lengthened by cat step by step at {where}, so each step has shapes of its own; "
                f"let the loop write into a buffer of the final length (x[:, t] = ...)"
            )
    return None
