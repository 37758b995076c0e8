"""The passes between a recorded tape and a program with equation blocks, in order."""

from __future__ import annotations

from collections.abc import Sequence

from fxsolve.clock import Clock
from fxsolve.ir import Program
from fxsolve.passes.build import build
from fxsolve.passes.clean import clean
from fxsolve.passes.functionalize import functionalize
from fxsolve.passes.growth import Padded, growth
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.hoist_noise import hoist_noise
from fxsolve.passes.roll import Loop, roll
from fxsolve.passes.settle import settle
from fxsolve.passes.slots import outputs_from_buffers
from fxsolve.tape import Tape


def clean_tape(tape: Tape, clock: Clock) -> Tape:
    """The passes over a recorded tape."""
    tape = functionalize(tape)
    clock("functionalize", tape)
    tape = clean(tape)
    clock("clean", tape)
    return tape


def find_loops(tape: Tape, bitwise: bool, clock: Clock) -> tuple[Padded | str | None, list[Loop]]:
    """The loops of a tape; where a sequence grows, those of the tape that has it in a buffer, if all its steps roll."""
    grown = growth(tape)
    if isinstance(grown, Padded) and bitwise:
        grown = f"a tensor is lengthened by cat at {grown.source}; a buffer of the final length would round differently"
    clock("growth", grown)
    if isinstance(grown, Padded):
        loops = [loop for loop in roll(grown.tape) if loop.count >= len(grown.steps) - 1]
        if len(loops) == 1:  # what else repeats, the layers of the last step say, stays as it is
            clock("roll", loops)
            return grown, loops
        grown = f"a tensor is lengthened by cat at {grown.source}, and its steps do not repeat in another way"
    loops = roll(tape)
    clock("roll", loops)
    return grown, loops


def lower_to_program(tape: Tape, loops: Sequence[Loop], clock: Clock) -> Program:
    """Tape and its loops --> program: the passes, in order."""
    program = build(tape, loops)
    clock("build", program)
    program = hoist_invariants(program)
    clock("hoist invariants", program)
    program = settle(program)
    clock("settle", program)
    program = outputs_from_buffers(program)
    clock("slots", program)
    program = hoist_noise(program)
    clock("hoist noise", program)
    return program
