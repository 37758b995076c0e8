"""From a program to an executable: a runner for each of its blocks, with what is known of it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch

from fxsolve.chain import ChainRunner
from fxsolve.codegen import Executable
from fxsolve.entry import Options
from fxsolve.errors import CaptureError, ScheduleError
from fxsolve.fixed_point_gradient import FixedPointGradient
from fxsolve.ir import Chain, FixedPoint, Program, Recurrence, to_text
from fxsolve.passes.adjoint import NotDifferentiable
from fxsolve.passes.growth import NotPadded, Padded
from fxsolve.passes.growth_margin import margin
from fxsolve.passes.slots import fixed_point
from fxsolve.plainly import plainly
from fxsolve.plan import Plan, Runner
from fxsolve.schedule import BlockRunner
from fxsolve.solution import NotSolved
from fxsolve.solvers import Solver
from fxsolve.tape import Tape
from fxsolve.training import BlockGradient


def scheduled(program: Program, options: Options, plans: Mapping[Hashable, Plan], padded: bool, trains: bool) -> Executable:
    """An executable whose blocks decide on their solver when they first run; `plans`: those of other sizes."""
    runners: dict[str, Runner] = {}
    unknown = set(options.solvers) - {"*"} - set(program.blocks)
    if unknown:
        raise ScheduleError(f"solver names unknown blocks {sorted(unknown)}; there are {sorted(program.blocks)}")
    own = frozenset(leaf.tensor.untyped_storage().data_ptr() for leaf in program.leaves if leaf.position < 0)
    for name, block in program.blocks.items():
        forced = options.solvers.get(name, options.solvers.get("*"))
        if isinstance(block, Chain):
            runners[name] = ChainRunner(block, forced, options.exactness)
            runners[name].own = own
            continue
        assert isinstance(block, Recurrence)  # the scheduler finds out which of them are fixed points
        gradient = gradient_of(block, forced, options.exactness) if trains else None
        block = block if gradient is None else gradient.forward
        known = plans.get(plan_key(block))
        if known is not None and not known.in_order:
            known = replace(known, reason=f"{known.reason} (as found before for another size)")
        else:
            known = None
        runner = runners[name] = BlockRunner(block, forced, options.exactness, known, padded)
        runner.gradient, runner.own = gradient, own
    return Executable(program, runners, trains)


def gradient_of(block: Recurrence, forced: Solver | None, exactness: str) -> BlockGradient | FixedPointGradient:
    try:
        if isinstance(fixed_point(block), FixedPoint):
            return FixedPointGradient(block)
        return BlockGradient(block, BlockRunner, forced, exactness)
    except NotDifferentiable as why:
        raise CaptureError(f"gradients are asked for, and the loop at {block.source} has no adjoint: {why}") from None


def set_slack(grown: Padded, tape: Tape, executable: Executable, leaves: Sequence[torch.Tensor]) -> None:
    """Measures how far the longer calls are from eager's; raises NotSolved where that is no rounding."""
    (runner,) = executable.runners.values()
    assert isinstance(runner, BlockRunner) and runner.fixed is not None and runner.final is not None
    try:
        with plainly():
            runner.slack = runner.fixed.slack = margin(tape, grown, leaves, runner.final)
    except NotPadded as why:
        raise NotSolved(f"a tensor is lengthened by cat at {grown.source}, and {why}") from None


def plan_key(block: Recurrence | Chain) -> Hashable:
    """Blocks with the same key get the same plan: one step, at lengths of the same order."""
    return structure(block), block.length.bit_length() // 2


def structure(block: Recurrence | Chain) -> str:
    """What two sizes of one program have in common: the equations without shapes and tables."""
    lines = []
    for line in to_text(block.body).splitlines():
        left, _, right = line.partition(" = ")
        lines.append(left.split(":")[0] + right.split("(")[0])
    return "\n".join(lines)
