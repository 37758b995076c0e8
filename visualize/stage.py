"""One pass of the pipeline, and what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DOES = {
    "record": "runs the original once and writes every call onto a tape",
    "functionalize": "in-place calls become pure",
    "clean": "drops dead rows, computes once what is computed again",
    "growth": "a sequence that a loop lengthens gets a buffer of its final length",
    "roll": "finds runs of rows that repeat, and proves them to be steps of one loop",
    "build": "tape and loops become a graph that calls equation blocks",
    "hoist invariants": "what a step computes from invariants alone moves before its block",
    "settle": "weights that every step masks in place are masked once",
    "slots": "buffers that a loop only writes become outputs of their block",
    "hoist noise": "random draws move before the block",
    "chain": "where no loop was found, layers that skip connections join become a block",
    "decide": "each block tries solvers on the inputs and makes its plan",
    "time": "the compiled program against the original",
}


@dataclass(frozen=True)
class Stage:
    """One pass and what it made: a sentence, how many calls there are where, what is other than before, a picture."""

    name: str
    seconds: float
    said: str
    counts: Mapping[tuple[str, str], int]  # (place, op): calls
    changes: Mapping[tuple[str, str], int]  # (place, op): calls more (or fewer) than after the pass before
    new: int = 0  # calls of the program that were not there before
    picture: str = ""  # an SVG element; "" before there is a program, and where the pass changed none

    @property
    def does(self) -> str:
        return DOES.get(self.name, "")
