"""The first call's check: a compiled program's results, and the random generators it leaves, beside the original's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxsolve.bits import same_bits
from fxsolve.codegen import Executable
from fxsolve.errors import VerificationError

TRAJECTORY = 1024.0  # eps, relative to the largest result: readouts amplify what the state's certificate bounds


def same_generators(expected: Sequence[tuple[torch.Generator, torch.Tensor]]) -> None:
    """Raises VerificationError unless the generators are in these states."""
    if not all(torch.equal(generator.get_state(), state) for generator, state in expected):
        raise VerificationError("the compiled program leaves a random generator in another state than the original")


def same_results(
    executable: Executable,
    values: Sequence[torch.Tensor],
    eager: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor],
    exactness: str,
    bits: bool = False,
) -> None:
    """Raises VerificationError unless results, and what the program writes, are as the original left them (`leaves`): in bits
    if they have to be, or where only bitwise blocks were solved; else to rounding.
    """
    program = executable.program
    plans = [r.plan for r in executable.runners.values()]
    exact = bits or exactness == "bitwise" or (exactness == "auto" and all(p is None or p.bitwise for p in plans))
    compared = [(f"result {number}", *pair) for number, pair in enumerate(zip(values, eager, strict=False))]
    compared = [each for each, out in zip(compared, program.outputs, strict=True) if out.leaf not in program.mutated]
    for number, content in zip(program.mutated, values[len(program.outputs) :], strict=False):
        leaf = program.leaves[number]
        compared.append((f"what is written to {leaf.kind} {leaf.name}", content, leaves[number]))
    for name, ours, theirs in compared:
        problem = difference(ours, theirs, exact)
        if problem is not None:
            blocks = ", ".join(f"{r.block.name} ({r.block.source})" for r in executable.runners.values())
            raise VerificationError(f"{name} differs from the original's: {problem}; blocks: {blocks}")


def difference(ours: torch.Tensor, theirs: torch.Tensor, exact: bool) -> str | None:
    """What is wrong with a result, or None."""
    ours, theirs = ours.detach(), theirs.detach()
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{tuple(ours.shape)} {ours.dtype} instead of {tuple(theirs.shape)} {theirs.dtype}"
    if same_bits(ours.contiguous(), theirs.contiguous()):
        return None
    if exact or not theirs.is_floating_point():
        return f"{int((ours != theirs).sum())} of {theirs.numel()} elements are not equal bit for bit"
    finite = theirs.isfinite()
    if not torch.equal(finite, ours.isfinite()) or not torch.equal(ours[~finite].nan_to_num(), theirs[~finite].nan_to_num()):
        return "the non-finite elements are not the same"
    gap = (ours[finite] - theirs[finite]).abs().max() if bool(finite.any()) else torch.zeros(())
    scale = theirs[finite].abs().max().clamp(min=1.0) if bool(finite.any()) else torch.ones(())
    allowed = TRAJECTORY * torch.finfo(theirs.dtype).eps * float(scale)
    return None if float(gap) <= allowed else f"by {float(gap):.3g}, more than {allowed:.3g}"
