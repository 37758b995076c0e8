"""Python source as HTML, its keywords, strings, numbers, comments and defined names in spans: no library runs in the page."""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Iterator
from html import escape

from fxsolve.visualize.markup import Markup

KINDS = {tokenize.STRING: "string", tokenize.NUMBER: "number", tokenize.COMMENT: "comment"}


def highlighted(source: str) -> Markup:
    """The source with spans; without them from where on it is not Python."""
    lines = source.splitlines(keepends=True)
    parts: list[str] = []
    row, column = 1, 0

    def upto(end_row: int, end_column: int) -> str:
        nonlocal row, column
        text = ""
        while row < end_row and row <= len(lines):
            text, row, column = text + lines[row - 1][column:], row + 1, 0
        if row <= len(lines):
            text, column = text + lines[row - 1][column:end_column], end_column
        return escape(text, quote=False)

    for kind, start, end in marked(source):
        parts.append(upto(*start))
        parts.append(f"<span class='{kind}'>{upto(*end)}</span>")
    parts.append(upto(len(lines) + 1, 0))
    return Markup("".join(parts))


def marked(source: str) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """(kind, start, end) of what stands out."""
    before = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            kind = KINDS.get(token.type)
            if token.type == tokenize.NAME:
                kind = "keyword" if keyword.iskeyword(token.string) else "name" if before in ("def", "class") else None
            if kind is not None:
                yield kind, token.start, token.end
            before = token.string
    except (tokenize.TokenError, SyntaxError):
        return
