"""The checks against the original: a compiled program's results, writes and gradients, and the generators it leaves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import fx

from fxsolve.bits import same_bits
from fxsolve.codegen import Executable
from fxsolve.errors import VerificationError
from fxsolve.ir import Chain, Program, Recurrence, TensorType, results
from fxsolve.passes.graphs import needed_for
from fxsolve.training import FLOOR, gradients

FAR = 1024.0  # eps, relative to the largest element: readouts amplify what the state's certificate bounds, gradients are sums,
MOST = 0.25  # which eager itself rounds at every step in bfloat16, until they no longer grow


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
    program, plans = executable.program, [r.plan for r in executable.runners.values()]
    exact = bits or exactness == "bitwise" or (exactness == "auto" and all(p is None or p.bitwise for p in plans))
    expected = {n: (f"result {n}", theirs) for n, theirs in enumerate(eager) if program.outputs[n].leaf not in program.mutated}
    for n, number in enumerate(program.mutated, len(program.outputs)):
        leaf = program.leaves[number]
        expected[n] = f"what is written to {leaf.kind} {leaf.name}", leaves[number]
    for n, (name, theirs) in expected.items():
        problem = difference(values[n], theirs, exact, coarsest(program, [results(program.graph)[n]]))
        if problem is not None:
            blocks = ", ".join(f"{r.block.name} ({r.block.source})" for r in executable.runners.values())
            raise VerificationError(f"{name} differs from the original's: {problem}; blocks: {blocks}")


def difference(ours: torch.Tensor, theirs: torch.Tensor, exact: bool, eps: float) -> str | None:
    """What is wrong with a result that was computed with a precision of eps, or None."""
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
    allowed = min(FAR * eps, MOST) * float(scale)
    return None if float(gap) <= allowed else f"by {float(gap):.3g}, more than {allowed:.3g}"


def coarsest(program: Program, wanted: Iterable[fx.Node]) -> float:
    """The largest eps of the floating-point types in which some values of a program are computed."""
    nodes = needed_for(wanted)
    blocks = [program.blocks[str(node.target)] for node in nodes if node.op == "call_module"]
    inside = [n for block in blocks if isinstance(block, Recurrence | Chain) for n in block.body.nodes]
    kinds = [kind for node in [*nodes, *inside] if isinstance(kind := node.meta.get("type"), TensorType)]
    return max((torch.finfo(kind.dtype).eps for kind in kinds if kind.dtype.is_floating_point), default=0.0)


def same_gradients(
    program: Program, values: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor], eager: Sequence[torch.Tensor]
) -> None:
    """Raises VerificationError unless our gradients are those of the recorded run."""
    eps = coarsest(program, results(program.graph))
    for number, (ours, theirs) in enumerate(zip(gradients(values, leaves), gradients(eager, leaves), strict=True)):
        if (ours is None) != (theirs is None):
            raise VerificationError(f"gradient {number} is missing, or not zero as the original's")
        if ours is None or theirs is None:
            continue
        gap, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if not gap <= min(FAR * eps, MOST) * scale + 64 * FLOOR * eps:  # the cotangents are of the order of one
            raise VerificationError(f"gradient {number} differs from the original's by {gap:.3g} of {scale:.3g}")
