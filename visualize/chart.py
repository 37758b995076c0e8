"""Small charts of how a block converged, as SVG elements that take their colours from the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from fxsolve.visualize.markup import Markup

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
SHADES = 10
LARGEST_DOTS = 60
LARGEST_CELL = 28

Cells = Sequence[Sequence["float | None"]]  # rows of values from 0 to 1; None: nothing there


def frontier_chart(frontier: Sequence[int], equations: int, name: str, sweeps: int = 0) -> Markup:
    """How many leading equations were final after each stopping test, of which there was one every few of all sweeps.

    A dashed line shows what one equation a sweep would give, the order of the original program.
    """
    sweeps = max(sweeps, len(frontier), 1)
    across, up, bottom = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM
    every = sweeps / max(len(frontier), 1)

    def place(sweep: float, final: float) -> str:
        return f"{LEFT + across * sweep / sweeps:.1f},{TOP + up * (1 - final / max(equations, 1)):.1f}"

    points = [place(0, 0), *(place(k * every, final) for k, final in enumerate(frontier, 1))]
    dots = "".join(
        "<circle cx='{}' cy='{}' r='3'><title>after {:.0f}: {} final</title></circle>".format(*p.split(","), k * every, final)
        for k, (p, final) in enumerate(zip(points[1:], frontier, strict=True), 1)
        if len(frontier) <= LARGEST_DOTS
    )
    one_by_one = f"<path class='grid' d='M{place(0, 0)} L{place(min(sweeps, equations), min(sweeps, equations))}'/>"
    texts = [
        (LEFT - 6, TOP + 4, "end", str(equations)),
        (LEFT - 6, bottom, "end", "0"),
        (LEFT, bottom + 16, "middle", "0"),
        (LEFT + across, bottom + 16, "end", str(sweeps)),
        (LEFT + across / 2, HEIGHT - 6, "middle", "sweeps"),
    ]
    return figure(
        f"{name}: {equations} equations final after {sweeps} sweeps",
        f"<g class='axes'><path d='M{LEFT},{TOP} V{bottom} H{LEFT + across}'/>{one_by_one}{labels(texts)}"
        f"<text transform='translate(14 {TOP + up / 2}) rotate(-90)' text-anchor='middle'>final equations</text></g>"
        f"<g class='curve'><polyline points='{' '.join(points)}'/>{dots}</g>",
    )


def heat_map(cells: Cells, name: str, across: str, down: str, low: str, high: str) -> Markup:
    """Rows of shaded cells, the stronger the higher the value. across, down: what columns and rows are; low, high: what the
    ends of the scale are, "" where there is none.
    """
    rows, columns = len(cells), max(map(len, cells))
    side = min((WIDTH - LEFT - RIGHT) / columns, (HEIGHT - TOP - BOTTOM) / rows, LARGEST_CELL)
    if max(rows, columns) <= 4 * min(rows, columns):
        wide, tall = side, side
    else:  # a strip: its cells are stretched
        wide, tall = (WIDTH - LEFT - RIGHT) / columns, (HEIGHT - TOP - BOTTOM) / rows
    shades = "".join(
        f"<path fill-opacity='{(shade + 1) / SHADES:.1f}' d='{''.join(outlines)}'/>"
        for shade, outlines in enumerate(paths(cells))
        if outlines
    )
    right, bottom = LEFT + wide * columns, TOP + tall * rows
    scale = "".join(
        f"<rect x='{i * 8}' width='8' height='9' fill-opacity='{(i + 1) / SHADES:.1f}'/>" for i in range(SHADES if low else 0)
    )
    texts = [
        (LEFT + wide * columns / 2, bottom + 14, "middle", across),
        (LEFT + 86, HEIGHT - 6, "end", low),
        (LEFT + 180, HEIGHT - 6, "start", high),
    ]
    return figure(
        name,
        f"<rect class='ground' x='{LEFT}' y='{TOP}' width='{right - LEFT:.2f}' height='{bottom - TOP:.2f}'/>"
        f"<g class='heat' transform='translate({LEFT} {TOP}) scale({wide:.4f} {tall:.4f})'>{shades}</g>"
        f"<g class='heat' transform='translate({LEFT + 92} {HEIGHT - 14})'>{scale}</g>"
        f"<g class='axes'>{labels(texts)}<text transform='translate({LEFT - 8} {(TOP + bottom) / 2:.1f}) rotate(-90)' "
        f"text-anchor='middle'>{escape(down)}</text></g>",
    )


def paths(cells: Cells) -> list[list[str]]:
    """For each shade the outlines of its cells, neighbours in a row as one."""
    outlines: list[list[str]] = [[] for _ in range(SHADES)]
    for y, row in enumerate(cells):
        for shade, x, count in runs(row):
            outlines[shade].append(f"M{x} {y}h{count}v1h-{count}z")
    return outlines


def runs(row: Sequence[float | None]) -> Iterator[tuple[int, int, int]]:
    """(shade, first column, how many) of equal neighbours; cells with nothing there are left out."""
    shades = [None if value is None else min(int(value * SHADES), SHADES - 1) for value in row]
    x = 0
    for shade, group in groupby(shades):
        count = len(list(group))
        if shade is not None:
            yield shade, x, count
        x += count


def labels(texts: Sequence[tuple[float, float, str, str]]) -> str:
    return "".join(f"<text x='{x:.0f}' y='{y:.0f}' text-anchor='{at}'>{escape(said)}</text>" for x, y, at, said in texts)


def figure(title: str, content: str) -> Markup:
    return Markup(
        f"<svg class='chart' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(title)}'>"
        f"<title>{escape(title)}</title>{content}</svg>"
    )
