"""How far the calls on a buffer of the final length are from the calls on the sequence itself.

A step of a grown sequence is computed at other shapes than in the original program, so it rounds differently. Both are
run from the same tokens, and compared where the shapes meet again: the logits, say. A choice among them is the original's
unless another one lies as near as that (fxsolve.fixed_point: near ties).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fxsolve.passes.growth import NotPadded, Padded
from fxsolve.tape import Symbol, Tape, fill

NAME = "growth margin"
FAR = 1024  # eps: more is no rounding
SAFETY = 16


def margin(original: Tape, padded: Padded, leaves: Sequence[Tensor], tokens: Tensor) -> float:
    """What a choice must stand: SAFETY times the largest difference that was seen, relative to the largest value.

    `tokens`: a content of the buffer. Raises NotPadded where the two say different things.
    """
    given = [{leaf.value: value for leaf, value in zip(tape.leaves, leaves)} for tape in (original, padded.tape)]
    private = torch.Generator("cpu").manual_seed(0)
    order = torch.randperm(tokens.numel(), generator=private).to(tokens.device)
    others = tokens.flatten()[order].view_as(tokens)
    worst = 0.0
    for number in sorted({0, len(padded.steps) // 3, 2 * len(padded.steps) // 3, len(padded.steps) - 1}):
        step = padded.steps[number]
        for content in (tokens, others):
            prefix = content
            for dim, size in enumerate(original.type_of(step.sequence).shape):
                prefix = prefix.narrow(dim, 0, size)
            short = evaluated(original, [v for v, _ in step.pairs], given[0] | {step.sequence: prefix.contiguous()})
            long = evaluated(padded.tape, [v for _, v in step.pairs], given[1] | {step.buffer: content.clone()})
            for a, b in zip(short, long, strict=True):
                worst = max(worst, distance(a, b))
    return SAFETY * worst


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the largest value, at least one eps; raises NotPadded if it is no rounding."""
    if not a.is_floating_point():
        if not torch.equal(a, b):
            raise NotPadded("a step says something else where the sequence goes on")
        return 0.0
    finite = a.isfinite()
    eps = torch.finfo(a.dtype).eps
    gap = float((a - b)[finite].abs().max()) if bool(finite.any()) else 0.0
    scale = float(a[finite].abs().max()) if bool(finite.any()) else 1.0
    same = torch.equal(finite, b.isfinite()) and torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num())
    if not same or gap > FAR * eps * scale:
        raise NotPadded("a step says something else where the sequence goes on")
    return max(gap / scale if scale else 0.0, eps)


@torch.no_grad()
def evaluated(tape: Tape, wanted: Iterable[int], given: Mapping[int, Tensor]) -> list[Tensor]:
    """Values of a tape, computed from given ones."""
    known = dict(given)
    wanted = list(wanted)
    rows: set[int] = set()
    pending = [v for v in wanted if v not in known]
    while pending:
        row = tape.value_row[pending.pop()]
        if row not in rows:
            rows.add(row)
            pending += [v for v in tape.inputs[row] if v not in known]
    for row in sorted(rows):
        symbol: Symbol = tape.symbols.items[tape.symbol[row]]
        tensors, numbers = iter([known[v] for v in tape.inputs[row]]), iter(tape.numbers[row])
        args = [fill(a, tensors, numbers) for a in symbol.args]
        result = symbol.target(*args, **{k: fill(a, tensors, numbers) for k, a in symbol.kwargs})
        results = result if symbol.listed else (result,)
        known.update(zip(range(tape.first[row], tape.first[row] + len(results)), results))
    return [known[v] for v in wanted]
