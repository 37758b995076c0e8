"""A small chart of how a block converged, as an SVG element that takes its colours from the page."""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 34


def frontier_chart(frontier: Sequence[int], equations: int, name: str) -> str:
    """How many leading equations were final after each sweep."""
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    sweeps = max(len(frontier), 1)

    def place(sweep: float, final: float) -> str:
        return f"{LEFT + across * sweep / sweeps:.1f},{TOP + up * (1 - final / max(equations, 1)):.1f}"

    points = [place(0, 0), *(place(k, final) for k, final in enumerate(frontier, 1))]
    dots = "".join("<circle cx='{}' cy='{}' r='2.5'/>".format(*p.split(",")) for p in points) if sweeps <= 60 else ""
    title = f"{name}: {equations} equations final after {len(frontier)} sweeps"
    bottom = TOP + up
    return (
        f"<svg class='chart' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'><title>{html.escape(title)}</title>"
        f"<g class='axes'><path d='M{LEFT},{TOP} V{bottom} H{LEFT + across}'/>"
        f"<path class='grid' d='M{LEFT},{TOP} H{LEFT + across}'/>"
        f"<text x='{LEFT - 6}' y='{TOP + 4}' text-anchor='end'>{equations}</text>"
        f"<text x='{LEFT - 6}' y='{bottom}' text-anchor='end'>0</text>"
        f"<text x='{LEFT}' y='{bottom + 14}' text-anchor='middle'>0</text>"
        f"<text x='{LEFT + across}' y='{bottom + 14}' text-anchor='end'>{len(frontier)}</text>"
        f"<text x='{LEFT + across / 2}' y='{HEIGHT - 6}' text-anchor='middle'>sweeps</text>"
        f"<text transform='translate(12 {TOP + up / 2}) rotate(-90)' text-anchor='middle'>final equations</text></g>"
        f"<g class='curve'><polyline points='{' '.join(points)}'/>{dots}</g></svg>"
    )
