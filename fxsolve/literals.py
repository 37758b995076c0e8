"""Lists that stand in the user's source as indices: `x[:, [-1]]`.

torch makes a tensor of such a list without a call that the dispatcher sees. A list that is written out in the line which
runs now is the same at every call.
"""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any


def literal_lists(frame: FrameType) -> list[Any]:
    """The lists of numbers among the indices of the subscript that a frame evaluates now, in order; [] if it is none."""
    return of_instruction(frame.f_code, frame.f_lasti)


@lru_cache(maxsize=1024)
def of_instruction(code: CodeType, offset: int) -> list[Any]:
    lines = getattr(code, "co_positions", list)()  # from Python 3.11 on
    first, last, start, stop = next((p for i, p in enumerate(lines) if 2 * i == offset), (None,) * 4)
    if first is None or last is None or start is None or stop is None:
        return []
    text = [line.encode() for line in linecache.getlines(code.co_filename)[first - 1 : last]]
    if len(text) != last - first + 1:
        return []
    text[-1] = text[-1][:stop]
    text[0] = text[0][start:]
    try:
        node = ast.parse(b"(" + b"".join(text) + b")", mode="eval").body
    except SyntaxError:
        return []
    if not isinstance(node, ast.Subscript):
        return []
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    try:
        return [ast.literal_eval(part) for part in parts if isinstance(part, ast.List)]
    except ValueError:  # a list of something else
        return []
