"""The torch.compile backend: `torch.compile(model, backend="fxsolve")`.

Dynamo hands over a graph, which is compiled as any other callable: recorded when it first runs. Dynamo unrolls loops
while it traces, which takes long for many steps; `fxsolve.compile(model)` does without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from fxsolve.api import compile as compile_callable


def compile_fx(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """What dynamo calls for each graph that it captures."""
    return compile_callable(graph)
