"""The public entry: compile a callable, and the callable that comes out. What happens inside is compiler.py's."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fxsolve.compiler import Compiler, Options
from fxsolve.errors import FxsolveError
from fxsolve.plan_file import PlanFile
from fxsolve.reach import Wrapper
from fxsolve.solution import Solution
from fxsolve.solvers import Solver

EXACTNESS = ("auto", "bitwise", "rounding")
VERIFY = ("first", "always", "never")


def compile(
    fn: Callable[..., Any],
    *,
    solver: Any = "auto",
    exactness: str = "auto",
    verify: str = "first",
    fallback: bool = True,
    example_inputs: Sequence[Any] | None = None,
    plans: str | os.PathLike[str] | None = None,
    **unknown: Any,
) -> Any:
    """A callable that computes what `fn` computes, with its sequential parts solved in parallel.

    Args:
        fn: an `nn.Module`, a function or a bound method (`model.sample`).
        solver: "auto", a solver for every block, or a dict from block names (as `explain` gives them) to solvers.
        exactness: "auto" (fixed points bitwise, recurrences to rounding), "bitwise" or "rounding" for all blocks.
        verify: compare with the original on the "first" call of each kind, "always", or "never".
        fallback: whether what cannot be compiled runs as the original with one FallbackWarning; if False, CaptureError.
        example_inputs: positional arguments to compile for right away, instead of at the first call.
        plans: a JSON file that keeps what first calls found quickest, so that other processes need not try again (not for
            calls with gradients). It is made if it is not there. Whatever it says, results are proved and checked as ever.

    Returns:
        A `Compiled` callable: of an `nn.Module` a module, else a function.

    Raises:
        TypeError: for a thing that cannot be called, and for unknown keywords.
        ValueError: for other values than these.
        FxsolveError: for a file of plans that is something else.
    """
    if unknown:
        known = "solver, exactness, verify, fallback, example_inputs, plans"
        raise TypeError(f"fxsolve.compile has no keyword {', '.join(map(repr, unknown))}; it has {known}")
    if not callable(fn):
        raise TypeError(f"fxsolve.compile takes a module, function or bound method, not {type(fn).__name__}")
    if exactness not in EXACTNESS:
        raise ValueError(f"exactness is one of {', '.join(EXACTNESS)}, not {exactness!r}")
    if verify not in VERIFY:
        raise ValueError(f"verify is one of {', '.join(VERIFY)}, not {verify!r}")
    if not isinstance(fallback, bool):
        raise ValueError(f"fallback is True or False, not {fallback!r}")
    solvers = {"*": solver} if isinstance(solver, Solver) else {} if solver == "auto" else solver
    if not isinstance(solvers, Mapping) or not all(isinstance(s, Solver) for s in solvers.values()):
        raise ValueError(f"solver is 'auto', a solver like fxsolve.Jacobi(), or a dict of solvers by block, not {solver!r}")
    options = Options(dict(solvers), exactness, verify, fallback, None if plans is None else PlanFile(plans))
    compiled = restored(fn, options)
    if example_inputs is not None:
        compiled(*example_inputs)
    return compiled


class Compiled(Wrapper):
    """What compiled modules and functions offer beside being called."""

    _compiler: Compiler

    def explain(self, devices: int = 1) -> str:
        """The plan of the last call's program: blocks, equations, source lines, solvers, why, and what was measured.

        With `devices`, also what the same sweeps would take on so many: a simulation (fxsolve.cost), not a measurement.
        Raises ValueError for fewer than one.
        """
        if devices < 1:
            raise ValueError(f"explain() takes a number of devices from 1 on, not {devices}")
        return self._compiler.explanation(devices)

    def predict(self, devices: int = 1) -> float | None:
        """The seconds that the last call would take on so many devices: its blocks as `explain(devices)` has them, and what
        lies outside of them as it was. After a first call, which also compiles, the blocks alone.

        None where no block was found, or it was not solved yet. Raises ValueError for fewer than one device.
        """
        if devices < 1:
            raise ValueError(f"predict() takes a number of devices from 1 on, not {devices}")
        return self._compiler.prediction(devices)

    @property
    def solution(self) -> Solution | None:
        """How the last call was solved and what was checked; None before the first call."""
        return self._compiler.solution

    @property
    def source(self) -> str:
        """The generated Python of the last call's program."""
        entry = self._compiler.last
        executable = None if entry is None else entry.executable or entry.rejected
        return "# not compiled" if executable is None else executable.source()

    def draw(self, path: str | os.PathLike[str], *, unfold: int = 0) -> Path:
        """Draws the last call's program and its equation blocks as .svg, .png, .pdf or .dot; returns the path.

        A block's equations are folded into one; with `unfold`, so many of them are drawn one after another.

        Raises FxsolveError before the first call, where nothing was compiled, and where graphviz' `dot` is missing (the .dot
        text is written all the same); ValueError for an `unfold` that is no count.
        """
        from fxsolve.visualize import draw

        entry = self._compiler.last
        if entry is None:
            raise FxsolveError("there is nothing to draw yet: call it once first, the plan is made at the first call")
        executable = entry.executable or entry.rejected
        if executable is None:
            raise FxsolveError(f"there is nothing to draw: {entry.choice}")
        return draw(executable, path, unfold=unfold)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes one HTML page on the last call: certificate, graph, schedule, convergence, source, environment; returns the
        path. Before the first call the page says so.
        """
        from fxsolve.visualize import Told, report

        compiler = self._compiler
        entry, name = compiler.last, getattr(compiler.fn, "__qualname__", type(compiler.fn).__qualname__)
        if entry is None:
            return report(Told(name, self.explain()), path)
        key = next((key for key, known in compiler.entries.items() if known is entry), None)
        executable = entry.executable or entry.rejected
        told = Told(name, self.explain(), executable, self.solution, entry.told(), entry.timings, entry.memory, key)
        return report(told, path)


class CompiledFunction(Compiled):
    """A compiled function or bound method."""

    def __init__(self, fn: Callable[..., Any], options: Options) -> None:
        self._compiler = Compiler(fn, options)
        functools.update_wrapper(self, fn, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiler(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_compiler"].fn, name)

    def __reduce__(self) -> Any:
        return restored, (self._compiler.fn, self._compiler.options)


class CompiledModule(Compiled, torch.nn.Module):
    """A compiled `nn.Module`: parameters, buffers, submodules, modes and `state_dict` are the original's own."""

    def __init__(self, module: torch.nn.Module, options: Options) -> None:
        # nn.Module.__init__ would make dicts of its own: these are the original's, hooks included.
        self.__dict__.update({name: value for name, value in module.__dict__.items() if name.startswith("_")})
        self.__dict__["_original"] = module
        self.__dict__["_compiler"] = Compiler(module, options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiler(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiler(*args, **kwargs)

    @property
    def training(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._original.training

    def train(self, mode: bool = True) -> CompiledModule:
        self._original.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_original"], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__dict__["_original"], name)

    def __reduce__(self) -> Any:
        return restored, (self._original, self._compiler.options)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        return CompiledModule(copy.deepcopy(self._original, memo), self._compiler.options)

    def __repr__(self) -> str:
        return f"fxsolve.compile({self._original!r})"


def restored(fn: Callable[..., Any], options: Options) -> CompiledModule | CompiledFunction:
    """What pickle rebuilds: the callable and its options, with nothing compiled yet."""
    return CompiledModule(fn, options) if isinstance(fn, torch.nn.Module) else CompiledFunction(fn, options)
