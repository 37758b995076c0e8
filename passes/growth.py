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
    # result of a cat -> how many cats lie behind it, its row, and which leaves its step read
    chains: dict[int, tuple[int, int, frozenset[int] | None]] = {}
    for row, number in enumerate(tape.symbol):
        if tape.symbols.items[number].target is not aten.cat.default:
            continue
        longest = max((chains[v] for v in tape.inputs[row] if v in chains), key=lambda chain: chain[0], default=None)
        if longest is None:
            chains[tape.first[row]] = (1, row, None)
            continue
        count, start, before = longest
        read = frozenset(v for r in range(start + 1, row + 1) for v in tape.inputs[r] if tape.value_row[v] < 0)
        count = count + 1 if before in (None, read) else 1
        chains[tape.first[row]] = (count, row, read)
        if count >= STEPS:
            where = tape.sources.items[tape.source[row]]
            return (
                f"a tensor is lengthened by cat step by step at {where}, so each step has shapes of its own; "
                f"let the loop write into a buffer of the final length (x[:, t] = ...)"
            )
    return None
