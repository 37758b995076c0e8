"""The HTML elements that a report is made of. What is not markup already is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from fxsolve.visualize.amounts import DURATION, seconds_text

PLACE = r"/[^\s:&]*/([^\s:/&]+:\d+)"  # a file and a line of it


class Markup(str):
    """Text that is HTML already."""


Content = str | None  # plain text, or Markup as it is; None: nothing to say


def html(content: Content) -> Markup:
    """Anything as markup. In plain text, durations are marked as such, as they differ from run to run, and of a source file
    the name is shown.
    """
    if isinstance(content, Markup):
        return content
    text = re.sub(PLACE, lambda found: f"<span title='{found[0]}'>{found[1]}</span>", escape(content or ""))
    return Markup(re.sub(DURATION, lambda found: f"<span class='time'>{found[0]}</span>", text))


def time(seconds: float | None) -> Markup:
    return Markup("" if seconds is None else f"<span class='time'>{seconds_text(seconds)}</span>")


def element(tag: str, content: Content, classes: str = "") -> Markup:
    return Markup(f"<{tag}{f' class={classes!r}' if classes else ''}>{html(content)}</{tag}>")


def joined(parts: Iterable[Content]) -> Markup:
    return Markup("\n".join(html(part) for part in parts))


def pane(label: str, content: Markup, classes: str = "") -> Markup:
    """A part that scrolls by itself where it is wider than the page; keys reach it."""
    return Markup(f"<div class='pane {classes}' tabindex='0' role='region' aria-label='{escape(label)}'>{content}</div>")


def table(label: str, heads: Sequence[str], rows: Iterable[Sequence[Content]], chosen: int = -1) -> Markup:
    """A table in a pane; columns whose heading starts with "#" hold numbers. Row `chosen` stands out. On a narrow screen each
    row becomes a card, which says the headings again.
    """
    numbers = [head.startswith("#") for head in heads]
    names = [html(head.lstrip("#")) for head in heads]
    top = "".join(f"<th scope='col'{' class=number' * n}>{name}</th>" for name, n in zip(names, numbers, strict=True))
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(
            f"<td data-head='{name}'{' class=number' * n}>{html(content)}</td>"
            for name, content, n in zip(names, row, numbers, strict=True)
        )
        lines.append(f"<tr{' class=chosen' * (place == chosen)}>{cells}</tr>")
    return pane(label, Markup(f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"))


def facts(pairs: Iterable[tuple[str, Content]], classes: str = "facts") -> Markup:
    """Names and what they are; pairs with nothing to say are left out."""
    said = "".join(f"<div><dt>{html(name)}</dt><dd>{html(value)}</dd></div>" for name, value in pairs if value)
    return Markup(f"<dl class='{classes}'>{said}</dl>")


def details(summary: str, content: Markup) -> Markup:
    return Markup(f"<details><summary>{html(summary)}</summary>{content}</details>")


def section(key: str, title: str, content: Markup) -> Markup:
    return Markup(f"<section id='{key}'><h2>{html(title)}</h2>\n{content}</section>")
