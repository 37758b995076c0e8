"""Makes the pictures of the documentation: `python docs/pictures.py`. They are committed, so a build needs no graphviz."""

from __future__ import annotations

from pathlib import Path

import torch

import fxsolve
from fxsolve.visualize.chart import frontier_chart

PICTURES = Path(__file__).parent / "pictures"
TEXT, LINE, ACCENT = "#7a8794", "#9aa5ae66", "#4a90e2"  # readable on white and on black
CHART = (
    f"<style>text {{ fill: {TEXT}; font: 11px system-ui, sans-serif; }} path {{ fill: none; stroke: {TEXT}; }} "
    f".grid {{ stroke: {LINE}; stroke-dasharray: 3 3; }} polyline {{ fill: none; stroke: {ACCENT}; stroke-width: 2; }} "
    f"circle, .cells {{ fill: {ACCENT}; stroke: none; }}</style>"
)
CELL = 13


def blocks(page: str) -> list[str]:
    """The Python of a page, so that the pictures show what the page runs."""
    parts = (Path(__file__).parent / page).read_text(encoding="utf-8").split("```python\n")[1:]
    return [part.split("```", 1)[0] for part in parts]


def sweeps(steps: int = 32, count: int = 16) -> str:
    """Jacobi on s_t = tanh(s_{t-1} / 2 + x_t): one row a sweep, one cell an equation, darker where it is farther off."""
    torch.manual_seed(0)
    x, state, guess = torch.randn(1000)[:steps], torch.zeros(()), torch.zeros(steps)
    solution = torch.stack([state := torch.tanh(0.5 * state + x_t) for x_t in x])
    left, top = 60, 24
    shades: dict[int, str] = {}  # tenths of the darkest: the cells of that shade, as one path
    for sweep in range(count + 1):
        off = (guess - solution).abs().clamp(1e-7, 1).log10()
        for t in range(steps):
            shade = max(round(10 + 10 * float(off[t]) / 7), 1)
            shades[shade] = shades.get(shade, "") + f"M{left + t * CELL},{top + sweep * CELL}h12v12h-12z"
        guess = torch.tanh(0.5 * torch.cat([torch.zeros(1), guess[:-1]]) + x)
    cells = "".join(f"<path class='cells' d='{d}' opacity='{shade / 10}'/>" for shade, d in sorted(shades.items()))
    width, height = left + steps * CELL + 8, top + (count + 1) * CELL + 8
    labels = "".join(
        f"<text x='{left - 8}' y='{top + k * CELL + 10}' text-anchor='end'>{'guess' if k == 0 else k}</text>"
        for k in range(0, count + 1, 2)
    )
    labels += f"<text x='{left}' y='14'>equations 1 to {steps}</text>"
    labels += f"<text transform='translate(12 {top + CELL * count / 2}) rotate(-90)' text-anchor='middle'>sweeps</text>"
    return svg(width, height, "Jacobi sweeps: how far each equation is from the solution", CHART + cells + labels)


def svg(width: float, height: float, title: str, body: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' role='img'>"
        f"<title>{title}</title>{body}</svg>\n"
    )


def chart(solution: fxsolve.BlockSolution) -> str:
    """The frontier chart of a block as a picture of its own."""
    drawn = frontier_chart(solution.frontier, solution.equations, solution.name)
    inside = drawn[drawn.index(">") + 1 : drawn.rindex("</svg>")]
    size = drawn.split("viewBox='0 0 ", 1)[1].split("'", 1)[0].split()
    body = inside[inside.index("</title>") + len("</title>") :]
    return svg(float(size[0]), float(size[1]), "Equations final after each sweep", CHART + body)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    page: dict = {"__name__": "tutorial"}
    for block in blocks("tutorial.md"):
        exec(compile(block, "tutorial.md", "exec"), page)
    page["fast_running"].draw(PICTURES / "dataflow.svg")
    (PICTURES / "sweeps.svg").write_text(sweeps(), encoding="utf-8")
    (PICTURES / "frontier.svg").write_text(chart(page["fast_sample"].solution.blocks[0]), encoding="utf-8")


if __name__ == "__main__":
    main()
