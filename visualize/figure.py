"""The set-up that all pictures made with matplotlib share; it is imported when the first one is drawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from fxsolve.errors import FxsolveError

FORMATS = (".svg", ".png", ".pdf")
WIDTH = 8.0  # inches, at DPI dots each
DPI = 120
MAP = "viridis"  # for the colour-blind, too, and readable in grey
INK, ACCENT, EXACT = "#1c2329", "#d1495b", "#f1f3f5"
# Okabe and Ito's colours, which the colour-blind tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b6670", "#f0e442")
SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8.5,
    "axes.edgecolor": "#5b6670",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "svg.hashsalt": "fxsolve",  # the same picture, the same file
}


@contextmanager
def drawn(
    path: str | os.PathLike[str], height: float, rows: int = 1, columns: int = 1, width: float = WIDTH, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure of so many inches and its axes, (rows, columns); at the end it is written to `path`, folders included.

    Raises FxsolveError where matplotlib is missing, and for a name that does not end in .svg, .png or .pdf.
    """
    path = checked(path)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FxsolveError("pictures need matplotlib: pip install fxsolve[viz]") from error
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def checked(path: str | os.PathLike[str]) -> Path:
    """A path whose name says how to write a picture. Raises FxsolveError."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise FxsolveError(f"cannot draw {path.name}: the name must end in {', '.join(FORMATS)}")
    return path


def shrunk(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A matrix of at most so many cells, each the largest of those that it stands for."""
    for dim, most in enumerate((rows, columns)):
        size = matrix.shape[dim]
        if size > most:
            starts = [size * k // most for k in range(most + 1)]
            matrix = torch.stack([matrix.narrow(dim, a, b - a).amax(dim) for a, b in pairwise(starts)], dim)
    return matrix
