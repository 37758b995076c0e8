"""The dataflow graph inside a report: an inline SVG whose colours follow the page's light or dark setting."""

from __future__ import annotations

import colorsys
import re

from fxsolve.codegen import Executable
from fxsolve.errors import FxsolveError
from fxsolve.memory import size_text
from fxsolve.visualize.graph import svg
from fxsolve.visualize.markup import Markup, element, joined, pane

PAGE = "#14181c"  # report.css: the page where it is dark
LARGEST = 3_000_000  # bytes of SVG; more would make the page slow on a phone
NAMESPACES = (' xmlns="http://www.w3.org/2000/svg"', ' xmlns:xlink="http://www.w3.org/1999/xlink"')
NAMED = {"white": "#ffffff", "black": "#000000"}
KEYS = "Drag or use the arrow keys to move, + and - (or Ctrl and the wheel) to zoom, 0 to see all of it. "
TIPS = "Hold the pointer over a call to see the line of source that it comes from."


def picture(executable: Executable) -> Markup:
    """The graph inline, or why it is not there."""
    try:
        drawn = svg(executable)
    except FxsolveError as error:
        return element("p", str(error))
    if len(drawn) > LARGEST:
        return element(
            "p",
            f"The picture of this graph takes {size_text(len(drawn))}, too much for a page that opens quickly: "
            "draw('graph.svg') writes it to a file of its own.",
        )
    for namespace in NAMESPACES:
        drawn = drawn.replace(namespace, "")
    return joined([pane("dataflow graph", Markup(drawn), "picture"), element("p", KEYS + TIPS, "soft")])


def both_schemes(page: str) -> str:
    """CSS rules that give each colour of the graphs on a page its counterpart for dark pages."""
    used = sorted(set(re.findall(r'\b(fill|stroke)="(#[0-9a-fA-F]{6}|white|black)"', page)))
    return "\n".join(
        f'.picture svg [{what}="{colour}"] {{ {what}: light-dark({colour}, {dark(colour, what)}); }}'
        for what, colour in used
    )


def dark(colour: str, what: str) -> str:
    """The same hue on a dark page: what was nearly white becomes nearly black, pastels become deep, ink becomes light, and
    faint lines stay faint.
    """
    colour = NAMED.get(colour, colour)
    if colour == NAMED["white"]:
        return PAGE
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    if light <= 0.7:
        light = max(0.62, 1 - light)
    elif what == "stroke":
        light = max(0.4, 1 - light)
    else:  # a background: the paler, the closer to the page
        light, saturation = 0.11 + 0.7 * (1 - light), saturation * 0.5
    channels = colorsys.hls_to_rgb(hue, light, saturation)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
