"""Code generation: a program and its block runners as one GraphModule that a person can read, and its execution.

The graph computes values only. Execution then does what the original does besides: it writes mutated arguments and
buffers, and hands out results that are views of an input as such views.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxsolve.ir import Program
from fxsolve.passes.readable import readable
from fxsolve.plainly import plainly
from fxsolve.plan import Runner
from fxsolve.solution import NotSolved
from fxsolve.tape import Leaf, Output


class GuardFailed(NotSolved):
    """A value that Python branched on while recording came out differently."""


class Executable:
    """A compiled program, ready to be called with the flat arguments of the user's call."""

    def __init__(self, program: Program, runners: Mapping[str, Runner], trains: bool = False) -> None:
        self.program = program
        self.trains = trains  # whether autograd follows the program
        self.runners = dict(runners)
        self.module = fx.GraphModule(dict(runners), readable(program.graph))
        self.run = self.module.forward
        self.fetch: list[tuple[int, torch.Tensor]] = [(leaf.position, leaf.tensor) for leaf in program.leaves]
        self.on_gpu = any(leaf.tensor.is_cuda for leaf in program.leaves)  # calls return before they are done
        self.strides: list[tuple[int, ...]] = []
        self.copied: frozenset[int] = frozenset()
        self.shared: dict[int, tuple[int, int]] = {}  # result -> (the result that it is a view of, offset in it)

    def inputs(self, flat: Sequence[Any]) -> list[torch.Tensor]:
        return [tensor if position < 0 else flat[position] for position, tensor in self.fetch]

    def values(self, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Results, final contents of mutated leaves, guarded values; nothing is written yet. Raises NotSolved."""
        with torch.set_grad_enabled(self.trains), plainly():
            values = self.run(*leaves)
        program = self.program
        first_guard = len(program.outputs) + len(program.mutated)
        for value, expected in zip(values[first_guard:], program.guards, strict=True):
            if bool(value) is not expected:
                raise GuardFailed("a validation that held on the first call fails on these inputs")
        return values

    def finish(self, values: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Writes what the program mutates and returns the results as the original would."""
        program = self.program
        count = len(program.outputs)
        mutated = program.mutated
        if mutated:
            contents = list(values[count : count + len(mutated)])
            if len(mutated) > 1:
                contents = [c.clone() for c in contents]
            with torch.no_grad():
                for number, content in zip(mutated, contents, strict=True):
                    if content is not leaves[number]:
                        leaves[number].copy_(content)
        results = [
            values[i] if i in self.shared else self.result(i, out, values[i], leaves) for i, out in enumerate(program.outputs)
        ]
        for i, (base, offset) in self.shared.items():
            whole = results[base]
            results[i] = whole.as_strided(values[i].shape, self.strides[i], whole.storage_offset() + offset)
        return results

    def result(self, number: int, out: Output, value: torch.Tensor, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        if out.leaf >= 0 and out.region is not None:
            leaf = leaves[out.leaf]
            shape, stride, offset = out.region
            if offset == 0 and shape == tuple(leaf.shape) and stride == leaf.stride():
                return leaf
            return leaf.as_strided(shape, stride, leaf.storage_offset() + offset)
        stride = self.strides[number]
        if value.stride() != stride:
            part = value
            for dim, step in enumerate(stride):
                part = part if step else part.narrow(dim, 0, min(1, part.shape[dim]))  # eager's result is an expanded one
            fresh = torch.empty_strided(part.shape, stride, dtype=value.dtype, device=value.device).copy_(part)
            return fresh.expand(value.shape)
        return value.clone() if number in self.copied else value

    def settle_outputs(
        self, values: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor], eager: Sequence[torch.Tensor]
    ) -> None:
        """Learns from the first call which strides eager's results have, and which results must be copied.

        Forwarding writes and sharing equal values can make two results, or a result and an input, one tensor where
        eager has two; and two results that share memory in eager are views of the larger one. Raises NotSolved where
        they overlap in another way.
        """
        self.strides = [tuple(e.stride()) for e in eager]
        taken = {leaf.untyped_storage()._cdata for leaf in leaves}
        copied = set()
        cells: dict[int, int] = {}
        for number, out in enumerate(self.program.outputs):
            if out.leaf >= 0:
                continue
            storage = values[number].untyped_storage()._cdata
            if storage in taken or cells.setdefault(storage, out.cell) != out.cell:
                copied.add(number)
        self.copied = frozenset(copied)
        owner: dict[int, int] = {}
        order = sorted(range(len(eager)), key=lambda i: -eager[i].numel())
        for number in (i for i in order if self.program.outputs[i].leaf < 0):
            whole = owner.setdefault(eager[number].untyped_storage()._cdata, number)
            if whole != number:
                self.shared[number] = (whole, offset_in(eager[number], eager[whole]))

    def forget_arguments(self) -> None:
        """Lets go of the first call's arguments: their shapes and types are all that matters from now on."""
        leaves = [
            replace(leaf, tensor=nothing_like(leaf.tensor)) if leaf.position >= 0 else leaf for leaf in self.program.leaves
        ]
        self.program = replace(self.program, leaves=tuple(leaves))
        self.fetch = [(leaf.position, leaf.tensor) for leaf in leaves]

    def source(self) -> str:
        """The generated Python: the program, then each block's equations."""
        parts = ["# the program", plain_sight(self.module.code, self.runners, self.program.leaves)]
        for name, runner in self.runners.items():
            plan = runner.plan
            parts.append(
                f"# {name}: {runner.block.kind} of {runner.block.length} equations, solved by {plan.solver if plan else '?'}"
            )
            parts.append(fx.GraphModule({}, readable(runner.block.body)).code.strip())
        return "\n\n".join(parts)


def nothing_like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and type, with the memory of one element."""
    return torch.empty(1, dtype=tensor.dtype, device=tensor.device).as_strided(tensor.shape, (0,) * tensor.dim())


def offset_in(part: torch.Tensor, whole: torch.Tensor) -> int:
    """Where a view starts in another tensor of the same storage. Raises NotSolved if it reaches outside of it."""
    offset = int(part.storage_offset() - whole.storage_offset())
    reach = sum(s * (n - 1) for s, n in zip(part.stride(), part.shape, strict=True))
    dense = whole.numel() == 1 + sum(s * (n - 1) for s, n in zip(whole.stride(), whole.shape, strict=True))
    if part.dtype != whole.dtype or offset < 0 or offset + reach >= whole.numel() or not dense:
        raise NotSolved("two results share memory, and neither holds all of it")
    return offset


def plain_sight(code: str, runners: Mapping[str, Runner], leaves: Sequence[Leaf]) -> str:
    """Generated code with each block's solver and size, and each leaf's name, beside it."""
    lines = []
    for line in code.strip().splitlines():
        called = re.search(r"self\.(block\d+)\(", line)
        if called and called[1] in runners:
            runner = runners[called[1]]
            solver = runner.plan.solver if runner.plan is not None else "not decided"
            line += f"  # {runner.block.kind}: {runner.block.length} equations by {solver}"
        lines.append(line)
    names = "\n".join(f"# {leaf.kind[0]}{i} = {leaf.name}" for i, leaf in enumerate(leaves))
    return names + "\n" + "\n".join(lines)
