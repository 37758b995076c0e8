"""The printable plan of a compiled callable."""

from __future__ import annotations

from fxsolve.codegen import Executable
from fxsolve.schedule import BlockRunner
from fxsolve.solution import BlockSolution
from fxsolve.training import BlockGradient


def explain(executable: Executable | None, choice: str, timings: dict[str, float]) -> str:
    """Blocks, equations, source lines, solver, why, and what was measured."""
    lines = [choice]
    if timings:
        lines.append("first call: " + ", ".join(f"{name} {seconds:.4f} s" for name, seconds in timings.items()))
    if executable is not None:
        if not executable.runners:
            lines.append("no equation blocks were found: nothing in this program repeats")
        for runner in executable.runners.values():
            lines += block_lines(runner)
    return "\n".join(lines)


def block_lines(runner: BlockRunner) -> list[str]:
    block, plan = runner.block, runner.plan
    if plan is None:
        return [f"{block.name}: {block.length} equations at {block.source}: not decided yet"]
    lines = [
        f"{block.name}: {plan.kind} of {block.length} equations at {block.source}",
        f"  solver: {plan.solver}",
        f"  why: {plan.reason}",
    ]
    if runner.proof is not None:
        held = f"holds, at most {runner.proof.depth} sweeps" if runner.proof.holds else f"fails: {runner.proof.reason}"
        lines.append(f"  causality proof: {held}")
    if runner.fixed is not None and runner.fixed.bands is not None:
        lows = [level.low for level in runner.fixed.bands.levels if level.usable]
        lines += [f"  passes: of all {runner.fixed.bands.size} rows, then of those from row {lows} on"] if lows else []
    for candidate in plan.candidates:
        seconds = "-" if candidate.seconds is None else f"{candidate.seconds * 1e3:.2f} ms"
        lines.append(f"  tried {candidate.solver}: {seconds}, {candidate.note}")
    lines += last_call(runner.solution)
    if isinstance(runner.gradient, BlockGradient):
        lines += ["  backward:", *[f"  {line}" for line in block_lines(runner.gradient.runner)]]
    elif runner.gradient is not None:
        last = [f"  {line}" for line in last_call(runner.gradient.solution)]
        lines += ["  backward: by Jacobi(), from the last slot on", *last]
    return lines


def last_call(s: BlockSolution | None) -> list[str]:
    if s is None:
        return []
    return [f"  last call: {s.sweeps} sweeps, {s.steps} sequential steps, {s.certificate}, {s.seconds * 1e3:.2f} ms"]
