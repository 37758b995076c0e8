"""The printable plan of a compiled callable."""

from __future__ import annotations

from collections.abc import Mapping

from fxsolve.codegen import Executable
from fxsolve.memory import size_text
from fxsolve.plan import Candidate, Runner
from fxsolve.schedule import BlockRunner
from fxsolve.solution import BlockSolution
from fxsolve.training import BlockGradient


def explain(
    executable: Executable | None, choice: str, timings: Mapping[str, float], memory: Mapping[str, int], devices: int
) -> str:
    """Blocks, equations, source lines, solver, why, and what was measured."""
    lines = [choice]
    if timings:
        lines.append("first call: " + ", ".join(f"{name} {seconds:.4f} s" for name, seconds in timings.items()))
    if memory:
        lines.append("held at a time: " + ", ".join(f"{name} {size_text(count)}" for name, count in memory.items()))
    if executable is not None:
        if not executable.runners:
            lines.append("no equation blocks were found: nothing in this program repeats")
        for runner in executable.runners.values():
            lines += block_lines(runner, devices)
    return "\n".join(lines)


def block_lines(runner: Runner, devices: int) -> list[str]:
    block, plan = runner.block, runner.plan
    if plan is None:
        return [f"{block.name}: {block.length} equations at {block.source}: not decided yet"]
    lines = [
        f"{block.name}: {plan.kind} of {block.length} equations at {block.source}",
        f"  solver: {plan.solver}",
        f"  why: {plan.reason}",
    ]
    lines += runner.lines()
    for candidate in plan.candidates:
        lines.append(f"  {said(candidate)}")
    lines += last_call(runner.solution) + simulated(runner, devices)
    gradient = runner.gradient if isinstance(runner, BlockRunner) else None
    if isinstance(gradient, BlockGradient):
        lines += ["  backward:", *[f"  {line}" for line in block_lines(gradient.runner, devices)]]
    elif gradient is not None:
        last = [f"  {line}" for line in last_call(gradient.solution)]
        lines += ["  backward: by Jacobi(), from the last slot on", *last]
    return lines


def said(candidate: Candidate) -> str:
    expected = "" if candidate.expected is None else f"{candidate.expected * 1e3:.2f} ms expected"
    if candidate.seconds is not None:
        beside = f" ({expected})" if expected else ""
        sweeps = f"{candidate.sweeps} sweep{'s' * (candidate.sweeps != 1)}, " if candidate.sweeps is not None else ""
        memory = f"{size_text(candidate.memory)}, " if candidate.memory is not None else ""
        return f"tried {candidate.solver}: {candidate.seconds * 1e3:.2f} ms{beside}, {sweeps}{memory}{candidate.note}"
    return f"not tried {candidate.solver}: {expected}" if expected else f"tried {candidate.solver}: -, {candidate.note}"


def last_call(s: BlockSolution | None) -> list[str]:
    if s is None:
        return []
    return [f"  last call: {s.sweeps} sweeps, {s.steps} sequential steps, {s.certificate}, {s.seconds * 1e3:.2f} ms"]


def simulated(runner: Runner, devices: int) -> list[str]:
    """What the cost model says of the last call."""
    alone, together = runner.predicted(1), runner.predicted(devices)
    if alone is None or together is None:
        return []
    lines = [f"  predicted on this device: {alone * 1e3:.2f} ms"]
    if devices > 1:
        lines.append(
            f"  simulated on {devices} devices: {together * 1e3:.2f} ms, {alone / together:.2f} times as quick "
            f"(what they send one another is not counted)"
        )
    return lines + runner.outlook(devices)
