"""Arguments, results and random generators of a call, as the first call needs them again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxsolve.capture import Recording
from fxsolve.codegen import Executable


def tensors_of(result: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]


def copied_from(args: Any, kwargs: Any, recording: Recording) -> tuple[Any, Any]:
    """The arguments, those that the recorded run wrote to as they were before it."""
    flat, spec = pytree.tree_flatten((args, kwargs))
    for number, content in recording.before.items():
        leaf = recording.tape.leaves[number]
        if leaf.position >= 0:
            flat[leaf.position] = content.clone()
    return pytree.tree_unflatten(flat, spec)


def trial_inputs(executable: Executable, recording: Recording, flat: Sequence[Any]) -> list[torch.Tensor]:
    """The leaves as they were before the recorded run wrote to them."""
    leaves = executable.inputs(flat)
    for number, content in recording.before.items():
        leaves[number] = content
    return leaves


def generator_states(flat: Sequence[Any]) -> list[tuple[torch.Generator, torch.Tensor]]:
    """The default generators in use and those among the arguments, with their states."""
    generators = [torch.default_generator, *(g for g in flat if isinstance(g, torch.Generator))]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        generators += list(torch.cuda.default_generators)
    return [(g, g.get_state()) for g in generators]


def same_states(
    some: Sequence[tuple[torch.Generator, torch.Tensor]], others: Sequence[tuple[torch.Generator, torch.Tensor]]
) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for (_, a), (_, b) in zip(some, others, strict=True))


def set_generator_states(states: Sequence[tuple[torch.Generator, torch.Tensor]]) -> None:
    for generator, state in states:
        generator.set_state(state)
