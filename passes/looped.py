"""Looped: a step as one Python function that walks all steps.

    def walk(state, rows, indices, consts):
        (s0,) = state; (c0,) = consts; states = []; extras = []
        for (u0,), (i0,) in zip(rows, indices):
            <the step's calls>
            states.append((new state,)); extras.append((..)); (s0,) = (new state,)
        return states, extras                                       # or only the last state, where the others are not wanted

A call of the step for each of its equations, with all its arguments, would cost as much as a small tensor operation.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from fxsolve.ir import CARRY, CONST, INDEX, placeholders
from fxsolve.passes.readable import readable

NAME = "looped"
HOISTED = "u"


def looped(core: fx.Graph, carries: int, rows: str = HOISTED, last: bool = False) -> Callable[..., tuple[Any, list[Any]]]:
    """The walk (state, rows, indices, consts) -> (states, extras) of a step (s.., u.., i.., c..) -> (new state.., extras..).

    `rows`: the prefix of what it takes from row to row; `last`: whether the last state is all that is kept of them.
    """
    source, scope = looped_source(core, carries, rows, last)
    exec(source, scope)
    return scope["walk"]


def looped_source(core: fx.Graph, carries: int, rows: str = HOISTED, last: bool = False) -> tuple[str, dict[str, Any]]:
    """Its Python, and the names that it uses."""
    code = readable(core).python_code("self")
    (function,) = (node for node in ast.parse(code.src).body if isinstance(node, ast.FunctionDef))
    *body, end = function.body
    assert isinstance(end, ast.Return) and isinstance(end.value, ast.Tuple)
    returned = [ast.unparse(value) for value in end.value.elts]
    group = {prefix: packed([n.name for n in placeholders(core, prefix)]) for prefix in (CARRY, rows, INDEX, CONST)}
    state = packed(returned[:carries])
    lines = [
        "def walk(state, rows, indices, consts):",
        f"    {group[CARRY]} = state; {group[CONST]} = consts; states = []; extras = []",
        f"    for {group[rows]}, {group[INDEX]} in zip(rows, indices):",
        *(f"        {ast.unparse(statement)}" for statement in body if not forgets(statement)),
        *([] if last else [f"        states.append({state})"]),
        f"        extras.append({packed(returned[carries:])}); {group[CARRY]} = {state}",
        f"    return {group[CARRY] if last else 'states'}, extras",
    ]
    return "\n".join(lines), dict(code.globals)


def packed(names: Sequence[str]) -> str:
    return f"({', '.join(names)}{',' if names else ''})"


def forgets(statement: ast.stmt) -> bool:
    """Whether it is `name = None`, by which a value is let go: the next step may need it, or overwrites it."""
    return isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant) and statement.value.value is None
