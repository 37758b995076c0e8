"""What is known of calls with one signature, and how a callable is to be compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxsolve.codegen import Executable
from fxsolve.drift import Drift
from fxsolve.guards import Guards
from fxsolve.plan_file import PlanFile
from fxsolve.shell import MOST, Calls, Patience
from fxsolve.solvers import Solver
from fxsolve.tape import Mark

REST = 256  # calls of the original until what was not solved any more has another chance: trials take as long as some 20


@dataclass(frozen=True)
class Options:
    solvers: Mapping[str, Solver]
    exactness: str
    verify: str
    fallback: bool
    plans: PlanFile | None = None


class Changed(Exception):
    """What is known for a signature holds no more: what changed, in a sentence."""


@dataclass
class Entry:
    """What is known for one signature: an executable, or why the original runs."""

    guards: Guards
    executable: Executable | None
    choice: str
    spec: Any = None
    statics: tuple[Any, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)  # the most bytes that a run of each holds at a time
    refusal: str | None = None  # why it was not compiled
    failures: int = 0
    resting: Executable | None = None  # was not solved in parallel any more: it decides anew after so many calls
    rest: int = REST
    rejected: Executable | None = None  # compiled, but the original is kept: for explain
    drift: Drift | None = None  # where later calls may decide otherwise
    patience: Patience = field(default_factory=Patience)  # where they do not
    came_again: bool = False
    walks: bool = False  # the compiled program runs in order, and is quicker all the same

    @property
    def compiled(self) -> bool:
        """Whether the compiled program takes the calls, but for those that say whether it should."""
        return self.executable is not None and (self.drift is None or self.drift.compiled_leads)

    def told(self) -> str:
        """The choice, or what later calls made of it."""
        if self.executable is None or self.drift is None:
            return self.choice
        return "compiled" if self.drift.compiled_leads else self.drift.why

    def check_guards(self) -> None:
        """Raises Changed if what Python read while it was recorded is not what it was."""
        sentence = self.guards.check()
        if sentence is not None:
            raise Changed(sentence)

    def put_to_rest(self, executable: Executable, choice: str) -> Calls:
        """From now on the original runs, for so many calls, each time twice as many: by then steps may forget again."""
        self.executable, self.rejected, self.resting, self.choice = None, executable, executable, choice
        calls, self.rest = Calls(self.rest), min(2 * self.rest, MOST)
        return calls

    def wake(self) -> Executable | None:
        """What rested, if anything did: it decides anew, and, where calls are followed, is held against the original."""
        executable, self.resting = self.resting, None
        if executable is not None:
            self.executable, self.rejected, self.choice, self.failures = executable, None, "compiled", 0
            for runner in executable.runners.values():
                runner.start_over()
            self.drift = Drift.unknown() if self.drift is not None else None
        return executable

    def give_up(self, executable: Executable) -> None:
        """From now on the original runs: no block has another schedule than eager's own."""
        self.executable, self.rejected = None, executable
        self.choice = f"the original runs, in order: {reasons(executable)}"

    def rebuilt(self, results: list[torch.Tensor]) -> Any:
        """The result as the original returns it."""
        if self.spec is None:
            return results[0]
        tensors = iter(results)
        leaves = [next(tensors) if s is Mark.TENSOR else s for s in self.statics]
        return pytree.tree_unflatten(leaves, self.spec)


def reasons(executable: Executable) -> str:
    """Why its blocks are solved as they are."""
    return "; ".join(dict.fromkeys(r.plan.reason for r in executable.runners.values() if r.plan is not None))
