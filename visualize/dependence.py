"""Which equations of a block depend on which, as a matrix, with the verdict of the causality proof."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxsolve.chain import ChainRunner
from fxsolve.errors import FxsolveError
from fxsolve.ir import CONST, FixedPoint
from fxsolve.passes.dependence import Refusal
from fxsolve.passes.slot_dependence import slot_dependence
from fxsolve.passes.slots import fixed_point
from fxsolve.plan import Runner
from fxsolve.schedule import BlockRunner
from fxsolve.visualize import figure as draw
from fxsolve.visualize.record import Inputs, program_of, run

GROUPS = 64  # of slots: each takes one run of the analysis
CELLS = 600  # along an axis
LINE = 200  # equations, up to which a line marks the diagonal: it would hide what lies next to it
ABSENT, ALLOWED, FORBIDDEN = 0.0, 1.0, 2.0


@dataclass(frozen=True)
class Dependences:
    """`reached[t, g]`: equation t may depend on one of the equations starts[g] .. starts[g + 1] - 1; elsewhere it is proved
    not to. `verdict`: what that means, `holds` whether every equation depends on earlier ones only.
    """

    name: str
    reached: torch.Tensor
    starts: tuple[int, ...]
    verdict: str
    holds: bool

    @property
    def cells(self) -> torch.Tensor:
        """ABSENT, ALLOWED, or FORBIDDEN where all equations of the group come no earlier than the one that depends on them."""
        steps = torch.arange(len(self.reached))[:, None]
        late = torch.tensor(self.starts[:-1])[None] >= steps
        return torch.where(self.reached, torch.where(late, FORBIDDEN, ALLOWED), ABSENT)


def dependences(compiled: Any, args: Sequence[Any], block: str | None = None, groups: int = GROUPS) -> Dependences:
    """The figures of `dependence`."""
    executable = program_of(compiled, tuple(args), {})
    if not executable.runners:
        raise FxsolveError("the program has no blocks: nothing in it repeats")
    inputs = run(executable, tuple(args), {})
    name = block or max(executable.runners, key=lambda each: executable.runners[each].block.length)
    if name not in executable.runners:
        raise FxsolveError(f"there is no block {name!r}; there are {', '.join(executable.runners)}")
    return found_in(name, executable.runners[name], inputs[name], groups)


def found_in(name: str, runner: Runner, inputs: Inputs, groups: int) -> Dependences:
    length = runner.block.length
    singles = tuple(range(length + 1))
    if isinstance(runner, ChainRunner):
        reached = torch.zeros(length, length, dtype=torch.bool)
        for number, layer in enumerate(runner.layers):
            reached[number, layer.states] = True
        return Dependences(name, reached, singles, "each layer reads earlier layers only: so it was recorded", True)
    assert isinstance(runner, BlockRunner)
    block = causal_form(runner, inputs)
    if block is None:
        reached = torch.zeros(length, length, dtype=torch.bool)
        carried = runner.block.carries > 0
        if carried:
            reached.diagonal(-1).fill_(True)
        said = "each step reads the state that the one before it left" if carried else "no step reads another one's state"
        return Dependences(name, reached, singles, f"{said}: a loop of one step", True)
    try:
        found = slot_dependence(block, {f"{CONST}{i}": c for i, c in enumerate(inputs.consts)}, groups)
    except Refusal as why:
        raise FxsolveError(f"the slots of {name} cannot be told apart: {why}") from why
    proof = runner.proof
    assert proof is not None
    verdict = (
        f"proved causal: no slot depends on itself or a later one, so {proof.depth} sweeps are enough"
        if proof.holds
        else f"not proved causal: {proof.reason}"
    )
    return Dependences(name, found.reached, found.starts, verdict, proof.holds)


def causal_form(runner: BlockRunner, inputs: Inputs) -> FixedPoint | None:
    """The form of a block of which the causality proof was tried; None where there is none."""
    if runner.fixed is not None:
        return runner.fixed.block
    found = None if runner.block.reverse or runner.proof is None else fixed_point(runner.block)
    if not isinstance(found, FixedPoint):
        return None
    return runner.sunk(found, inputs.initial, inputs.stacked, inputs.consts)


def dependence(
    compiled: Any, args: Sequence[Any], path: str | os.PathLike[str], block: str | None = None, groups: int = GROUPS
) -> Path:
    """Draws which equations of a block depend on which, and what the causality proof says of it.

    A cell is blank where independence is proved; elsewhere the equation may depend on one of the column's. The columns of a
    fixed point are `groups` groups of neighbouring slots, each of which takes about as long as the proof did. The program
    runs once, for the weights and masks that the proof looks at.

    Writes .svg, .png or .pdf and returns the path. Raises FxsolveError where there is no such block.
    """
    draw.checked(path)
    found = dependences(compiled, args, block, groups)
    steps, columns = found.reached.shape
    with draw.drawn(path, 6.4, width=6.2) as (picture, ((axis,),)):
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        colours = {ABSENT: draw.EXACT, ALLOWED: draw.COLOURS[0], FORBIDDEN: draw.COLOURS[1]}
        axis.imshow(
            draw.shrunk(found.cells, CELLS, CELLS).numpy(),
            cmap=ListedColormap(list(colours.values())),
            vmin=ABSENT,
            vmax=FORBIDDEN,
            interpolation="nearest",
            extent=(0, steps, steps, 0),
        )
        if steps <= LINE:
            axis.plot([0, steps], [0, steps], color=draw.INK, linewidth=0.8)
        grouped = f", in groups of {-(-steps // columns)}" if columns < steps else ""
        axis.set(xlabel=f"depends on equation{grouped}", ylabel="equation")
        axis.set_title(f"{found.name}: {steps} equations\n" + textwrap.fill(found.verdict, 80), fontsize=9)
        said = {ABSENT: "proved independent", ALLOWED: "may depend on", FORBIDDEN: "may depend on, and is not earlier"}
        shown = [kind for kind in said if kind != FORBIDDEN or bool((found.cells == kind).any())]
        handles = [Patch(facecolor=colours[kind], edgecolor="#9aa5ae", label=said[kind]) for kind in shown]
        picture.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return Path(path)
