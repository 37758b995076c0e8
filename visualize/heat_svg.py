"""The heat map of `convergence.py` as a small SVG element for a page, made without matplotlib."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from html import escape

import torch

from fxsolve.visualize import figure as draw
from fxsolve.visualize.convergence import Heat, bounds, heat
from fxsolve.visualize.record import Record

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 92, 22, 44
CELLS = 200  # along either axis
# viridis, at equal distances
ANCHORS = ("440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")


def heat_svg(seen: Record, block: str | None = None, of: str = "distance") -> str:
    """Equations by sweeps as an SVG element that takes its ink from the page: see `heat_map` for arguments and errors.

    At most 200 by 200 cells, each the largest of those that it stands for; final values are left blank.
    """
    return element(heat(seen, block, of))


def element(shown: Heat) -> str:
    cells = draw.shrunk(shown.cells, CELLS, CELLS)
    low, high = (0.0, 1.0) if shown.share else bounds(cells)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    sweeps, equations = shown.cells.shape
    corners = [(f, k + edge) for k, f in enumerate(shown.frontier) for edge in (0, 1)]
    points = " ".join(f"{LEFT + across * f / equations:.1f},{TOP + down * k / sweeps:.1f}" for f, k in corners)
    bar, bottom = WIDTH - RIGHT + 14, TOP + down
    middle, title = LEFT + across / 2, escape(shown.title)
    return (
        f"<svg class='chart heat' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' font-family='system-ui, sans-serif' font-size='11'>"
        f"<title>{title}</title>"
        f"{picture(levels(cells, low, high, shown.share), LEFT, TOP, across, down)}"
        f"{picture(torch.arange(255, 0, -1)[:, None], bar, TOP, 12, down)}"
        f"<polyline points='{points}' fill='none' style='stroke: {draw.ACCENT}; stroke-width: 2'/>"
        f"<g class='axes' fill='currentColor'>"
        f"<path d='M{LEFT},{TOP} V{bottom} H{LEFT + across}' fill='none' stroke='currentColor'/>"
        f"{text(LEFT - 6, TOP + 9, 'end', 0)}{text(LEFT - 6, bottom, 'end', sweeps - 1)}"
        f"{text(LEFT, bottom + 14, 'start', 0)}{text(LEFT + across, bottom + 14, 'end', equations)}"
        f"{text(middle, bottom + 14, 'middle', 'equation')}"
        f"<text transform='translate(14 {TOP + down / 2}) rotate(-90)' text-anchor='middle'>sweep</text>"
        f"{text(bar + 17, TOP + 9, 'start', f'{high:.1g}')}{text(bar + 17, bottom, 'start', f'{low:.1g}')}"
        f"{text(LEFT, TOP - 8, 'start', shown.what)}"
        f"{text(middle, HEIGHT - 8, 'middle', 'line: the frontier; blank: final, bit for bit')}</g></svg>"
    )


def text(x: float, y: float, anchor: str, said: object) -> str:
    return f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}'>{escape(str(said))}</text>"


def levels(cells: torch.Tensor, low: float, high: float, linear: bool) -> torch.Tensor:
    """Colours 1 .. 255, and 0 for a distance of zero."""
    scaled = cells if linear else (cells.clamp(min=low, max=high) / low).log() / math.log(high / low)
    return torch.where(cells == 0, 0, 1 + (254 * scaled).round()).long()


def picture(colours: torch.Tensor, x: float, y: float, width: float, height: float) -> str:
    """A matrix of colours as an image element."""
    data = base64.b64encode(png(colours)).decode().replace("/", "%2F")  # so that nothing looks like an address
    return (
        f"<image x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' preserveAspectRatio='none' "
        f"style='image-rendering: pixelated' href='data:image/png;base64,{data}'/>"
    )


def png(colours: torch.Tensor) -> bytes:
    """A PNG of one byte a pixel: colour 0 is transparent, the others are viridis'."""
    rows, columns = colours.shape
    lines = b"".join(b"\0" + bytes(line) for line in colours.tolist())
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", palette()), (b"tRNS", b"\0"), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def palette() -> bytes:
    anchors = torch.tensor([list(bytes.fromhex(a)) for a in ANCHORS], dtype=torch.float64)
    place = torch.linspace(0, len(ANCHORS) - 1, 255, dtype=torch.float64)
    below = place.long().clamp(max=len(ANCHORS) - 2)
    share = (place - below)[:, None]
    mixed = anchors[below] * (1 - share) + anchors[below + 1] * share
    return bytes([0, 0, 0]) + bytes(mixed.round().long().flatten().tolist())
