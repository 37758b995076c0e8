"""How a block converged: distances of its equations sweep by sweep, and images on their way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxsolve.errors import FxsolveError
from fxsolve.ir import FixedPoint
from fxsolve.visualize import figure as draw
from fxsolve.visualize.record import BlockRecord, Record

CELLS = 600  # along either axis
DECADES = 1e9  # from the largest distance to the smallest that has a colour of its own


@dataclass(frozen=True)
class Heat:
    """What a heat map shows: `cells` (sweeps + 1, equations), the largest over the samples, or the `share` of the samples whose
    discrete value differs; the solver's frontier; for each sweep the least and the most that is final in one of the samples.
    """

    cells: torch.Tensor
    frontier: Sequence[int]
    spread: tuple[Sequence[int], Sequence[int]]
    samples: int
    share: bool
    what: str  # the cells are
    title: str


def heat(seen: Record, block: str | None = None, of: str = "distance") -> Heat:
    """The figures of `heat_map`. Raises FxsolveError where nothing was swept, ValueError for another `of`."""
    if of not in ("distance", "residual"):
        raise ValueError(f"of is 'distance' or 'residual', not {of!r}")
    found = seen.block(block)
    values = found.distances if of == "distance" else found.residuals
    fronts = found.sample_frontiers
    spread = fronts.amin(1).tolist(), fronts.amax(1).tolist()
    solution = found.solution
    sweeps = f"{len(found.iterates)} sweep{'s' * (len(found.iterates) > 1)}"
    title = f"{solution.name}: {solution.equations} equations, {solution.solver}, {sweeps}"
    if solution.fallback is not None:
        title += "\n(without a certificate: completed in order after these sweeps)"
    cells = values.mean(2) if found.discrete else values.amax(2)
    return Heat(cells, found.frontier, spread, values.shape[2], found.discrete, said_of(found, of), title)


def said_of(found: BlockRecord, of: str) -> str:
    """What the colours stand for, in words."""
    if found.discrete:
        return f"share of samples whose value {'its equation does not give' if of == 'residual' else 'is not the final one'}"
    if of == "residual":
        return "residual |h(s) - s|, largest component"
    if found.relative:
        return "distance to the final state, relative to each layer"
    return "distance to the final state, largest component"


def bounds(cells: torch.Tensor) -> tuple[float, float]:
    """The distances of the first and the last colour of a logarithmic scale."""
    seen = cells[(cells > 0) & cells.isfinite()]
    high = float(seen.max()) if seen.numel() else 1.0
    least = float(seen.min()) if seen.numel() else high
    return min(max(least, high / DECADES), high / 10), high


def heat_map(seen: Record, path: str | os.PathLike[str], block: str | None = None, of: str = "distance") -> Path:
    """Equations by sweeps, coloured by how far each is from its final value; the frontier as a line over it.

    seen: a run that `record` made. block: its name, as `explain` gives it; None: the block with the most equations.
    of: "distance" to the final state, or "residual" where each sweep's residual is known.
    Writes .svg, .png or .pdf and returns the path. Raises FxsolveError where nothing was swept, for another suffix, and
    where matplotlib is missing.
    """
    shown = heat(seen, block, of)
    with draw.drawn(path, 4.4) as (picture, ((axis,),)):
        paint(picture, axis, shown)
        axis.set_title(shown.title)
    return Path(path)


def paint(picture: Any, axis: Any, shown: Heat) -> None:
    """The heat map on an axis, with its colour bar and legend."""
    from matplotlib import colormaps, colors, patheffects
    from matplotlib.patches import Patch

    sweeps, equations = shown.cells.shape
    cells = draw.shrunk(shown.cells, CELLS, CELLS)
    low, high = bounds(cells)
    image = axis.imshow(
        cells.masked_fill(cells == 0, torch.nan).numpy(),
        norm=colors.Normalize(0, 1) if shown.share else colors.LogNorm(low, high),
        cmap=colormaps[draw.MAP].with_extremes(bad=draw.EXACT),
        aspect="auto",
        interpolation="nearest",
        extent=(0, equations, sweeps - 0.5, -0.5),
    )
    less = not shown.share and bool(((cells > 0) & (cells < low)).any())
    picture.colorbar(image, ax=axis, label=shown.what, extend="min" if less else "neither")
    edges = [edge for k in range(sweeps) for edge in (k - 0.5, k + 0.5)]
    for side in shown.spread if shown.samples > 1 else ():
        label = f"leading final values: slowest and quickest of {shown.samples} samples" if side is shown.spread[0] else None
        style = {"color": "white", "linewidth": 1.1, "linestyle": (0, (4, 2)), "label": label}
        style["path_effects"] = [patheffects.withStroke(linewidth=2.2, foreground=draw.INK)]
        axis.plot([f for final in side for f in (final, final)], edges, **style)
    frontier = [f for final in shown.frontier for f in (final, final)]
    axis.plot(frontier, edges, color=draw.ACCENT, linewidth=1.6, label="frontier: known to be final", clip_on=False)
    axis.set(xlabel="equation, in the program's order", ylabel="sweep (0: the guess)", xlim=(0, equations))
    axis.yaxis.get_major_locator().set_params(integer=True)
    exact = Patch(facecolor=draw.EXACT, edgecolor="#9aa5ae", label="final value, bit for bit")
    lines, _ = axis.get_legend_handles_labels()
    picture.legend(handles=[*lines[::-1], exact], loc="outside lower center", ncols=3, frameon=False)


def images(
    seen: Record,
    path: str | os.PathLike[str],
    block: str | None = None,
    shape: Sequence[int] | None = None,
    samples: Iterable[int] = (0,),
    sweeps: Iterable[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    buffer: int = 0,
    span: tuple[float, float] | None = None,
) -> Path:
    """Samples on their way: the image after these sweeps in a row, the final one at its end; below, how much is final.

    seen: a run that `record` made. shape: of one image, (height, width) or (channels, height, width); None: as the buffer
    has it behind its batch dimension. samples: which of the batch, a row each. buffer: which of the block's buffers.
    span: the values of black and white; None: the final images' range. Writes .svg, .png or .pdf and returns the path.

    Raises FxsolveError where no fixed point was swept, or its buffer holds no images.
    """
    found = seen.block(block)
    if not isinstance(found.block, FixedPoint):
        raise FxsolveError(f"{found.block.name} is a {found.block.kind}: only fixed points sweep buffers that can hold images")
    chosen = [k for k in dict.fromkeys(sweeps) if 0 < k < len(found.iterates)]
    last = len(found.iterates)
    steps = [*chosen, last]
    ways = [[picture_of(found.iterates[k - 1].state[buffer], n, shape) for k in steps] for n in samples]
    ends = torch.stack([way[-1] for way in ways])
    low, high = span or (float(ends.min()), float(ends.max()))
    width = (high - low) or 1.0
    tall = ways[0][0].shape[0] / ways[0][0].shape[1]
    each = draw.WIDTH / len(steps)
    total = found.solution.equations
    with draw.drawn(path, len(ways) * each * tall + 0.4, len(ways), len(steps)) as (_, axes):
        for line, way in zip(axes, ways, strict=True):
            for axis, image in zip(line, way, strict=True):
                axis.imshow(((image.double() - low) / width).clamp(0, 1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
        for axis, k in zip(axes[0], steps, strict=True):
            share = "final" if k == last else f"{100 * found.frontier[k] / total:.0f} % final"
            axis.set_title(f"{k} sweep{'s' * (k > 1)}\n{share}", fontsize=8)
    return Path(path)


def picture_of(buffer: torch.Tensor, sample: int, shape: Sequence[int] | None) -> torch.Tensor:
    """One image of a batch, (height, width) or (height, width, 3). Raises FxsolveError."""
    if not 0 <= sample < len(buffer):
        raise FxsolveError(f"there is no sample {sample}: the batch has {len(buffer)}")
    one = buffer[sample]
    wanted = tuple(shape) if shape is not None else tuple(one.shape)
    if one.numel() != torch.Size(wanted).numel() or len(wanted) not in (2, 3) or (len(wanted) == 3 and wanted[0] not in (1, 3)):
        raise FxsolveError(
            f"{tuple(one.shape)} is no image of shape {wanted}: give shape=(height, width), (1, height, width) or (3, ..)"
        )
    one = one.reshape(wanted)
    return one if one.dim() == 2 else one[0] if wanted[0] == 1 else one.permute(1, 2, 0)
