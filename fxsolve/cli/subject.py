"""A program with its inputs, as a command line names them, and one run of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxsolve
from fxsolve import solvers
from fxsolve.cli.target import UsageError, load
from fxsolve.solvers import Solver

SOLVERS = {kind.__name__: kind for kind in vars(solvers).values() if isinstance(kind, type) and issubclass(kind, Solver)}
del SOLVERS["Solver"]


@dataclass(frozen=True)
class Subject:
    """A program and its inputs. Each run starts from the same seed and on copies of the inputs, which it may change."""

    name: str
    program: Callable[..., Any]
    inputs: tuple[Any, ...]
    seed: int
    trains: bool

    def fresh(self) -> tuple[Any, ...]:
        """The inputs, copied, and the generators as they are at the start of every run."""
        copies = pytree.tree_map_only(Tensor, lambda x: x.detach().clone().requires_grad_(x.requires_grad), self.inputs)
        torch.manual_seed(self.seed)
        return copies

    def run(self, program: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Any]:
        """The leaves of the result; with gradients those of the module's parameters and of the inputs, too."""
        if not self.trains:
            with torch.no_grad():
                return pytree.tree_leaves(program(*inputs))
        learning = [*self.parameters(), *(x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.requires_grad)]
        for tensor in learning:
            tensor.grad = None
        results = pytree.tree_leaves(program(*inputs))
        ends = [x for x in results if isinstance(x, Tensor) and x.requires_grad]
        if not ends:
            raise UsageError("--grad: nothing in the result requires a gradient; leave --grad out, or make an input that does")
        torch.autograd.backward(ends, [torch.ones_like(x) for x in ends])
        return [*results, *(x.grad for x in learning)]

    def parameters(self) -> list[Tensor]:
        module = module_of(self.program)
        return [] if module is None else [p for p in module.parameters() if p.requires_grad]


def module_of(program: Callable[..., Any]) -> nn.Module | None:
    """The module that a program is, or whose method it is."""
    found = getattr(program, "__self__", program)
    return found if isinstance(found, nn.Module) else None


def subject_of(options: argparse.Namespace) -> Subject:
    """What the target and --inputs name. Weights that are drawn while a file is run follow --seed, too."""
    torch.manual_seed(options.seed)
    program = load(options.target)
    module = module_of(program)
    if module is not None and not options.train:
        module.eval()
    torch.manual_seed(options.seed)
    return Subject(options.target, program, inputs_of(options.inputs), options.seed, options.grad)


def inputs_of(text: str | None) -> tuple[Any, ...]:
    """The arguments that the expression of --inputs makes: a tuple gives several, no expression none."""
    if text is None:
        return ()
    try:
        made = eval(text, {"torch": torch})
    except Exception as error:
        raise UsageError(f"--inputs {text!r} could not be evaluated: {type(error).__name__}: {error}") from None
    return made if isinstance(made, tuple) else (made,)


def solver_of(text: str) -> Any:
    """"auto", a solver as it is written in Python, or a dict of them by block."""
    if text == "auto":
        return text
    known = ", ".join(SOLVERS)
    try:
        made = eval(text, {"__builtins__": {}}, SOLVERS)
        made = made() if isinstance(made, type) else made
    except Exception as error:
        said = f"{type(error).__name__}: {error}".removesuffix(".")
        raise UsageError(f"--solver {text!r}: {said}. Solvers are {known}: Jacobi(), JacobiGS(block=32), ..") from None
    many = made.values() if isinstance(made, dict) else [made]
    if not all(isinstance(s, Solver) for s in many):
        raise UsageError(f"--solver {text!r} is no solver; they are {known}: Jacobi(), JacobiGS(block=32), ..")
    return made


def compiled_of(subject: Subject, options: argparse.Namespace) -> Any:
    """The compiled program after its first call and one more, which runs what was chosen."""
    fast = fxsolve.compile(
        subject.program, solver=solver_of(options.solver), exactness=options.exactness, fallback=not options.no_fallback
    )
    for _ in range(2):
        subject.run(fast, subject.fresh())
    return fast
