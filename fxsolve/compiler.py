"""One callable's cache: which calls the compiled program answers, which the original, and which are first ones."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxsolve.arguments import generator_states, set_generator_states, tensors_of
from fxsolve.capture import recording
from fxsolve.choice import in_order
from fxsolve.codegen import Executable
from fxsolve.entry import Changed, Entry, Options, reasons
from fxsolve.errors import CaptureError, FallbackWarning, VerificationError, users_level
from fxsolve.explain import explain
from fxsolve.first_call import FirstCall
from fxsolve.guards import Guards
from fxsolve.newcomers import Newcomers, why_they_wait
from fxsolve.plan import Plan
from fxsolve.progress import progress
from fxsolve.schedule import GIVE_UP_AFTER
from fxsolve.shell import KINDS, Calls, Patience, Straight, kind_of
from fxsolve.signature import signature
from fxsolve.solution import NotSolved, Solution
from fxsolve.surroundings import why_original
from fxsolve.verify import same_generators, same_results

COMPILES = threading.RLock()  # a first call changes what is torch's own: one at a time


class Unsolved(NotSolved):
    """A later call that the compiled program does not answer."""


class Compiler:
    """The cache of compiled programs of one callable."""

    def __init__(self, fn: Callable[..., Any], options: Options) -> None:
        self.fn, self.options = fn, options
        self.entries: dict[Hashable, Entry] = {}
        self.plans: dict[Hashable, Plan] = {}
        self.warned: set[str] = set()
        self.unsettled: set[Hashable] = set()  # signatures whose first call changed attributes: perhaps it filled a cache
        self.newcomers = Newcomers()
        self.lock = threading.RLock()  # of what several threads would spoil
        self.may_wait = options.fallback and not options.solvers
        self.solved: Solution | None = None
        self.straight: dict[Hashable, Straight[Entry]] = {}  # by kind: the calls that go straight to the original
        self.passed: Straight[Entry] | None = None  # the last call did
        self.last: Entry | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # dynamo reads this function, and goes on with the original
            return self.fn(*args, **kwargs)
        if self.straight:
            straight = self.straight.get(kind_of(args, kwargs))
            if straight is not None and straight.calls.left > 0:
                straight.calls.left -= 1
                self.last, self.passed = straight.entry, straight
                return self.fn(*args, **kwargs)
        start = time.perf_counter()
        if recording():
            return self.fn(*args, **kwargs)  # inside another compiled callable's first call: part of that program
        reason = why_original()
        if reason is not None:
            return self.not_compiled(reason, args, kwargs, start)
        try:
            key = signature(args, kwargs)
        except CaptureError as error:
            self.warn(str(error))
            return self.passed_on(str(error), Patience().more(), args, kwargs)
        entry, changed = self.entries.get(key), None
        if entry is not None:
            try:
                return self.later_call(entry, args, kwargs, start)
            except Changed as change:
                changed = str(change)
                self.entries.pop(key, None)
                self.straight.clear()
        if self.may_wait and self.newcomers.has_to_wait(key):
            self.newcomers.reason = self.newcomers.reason or why_they_wait(self.entries, changed)
            self.warn(self.newcomers.reason)
            return self.passed_on(self.newcomers.reason, Calls(0), args, kwargs)
        if not COMPILES.acquire(blocking=False):
            return self.passed_on("another first call was under way on another thread", Calls(0), args, kwargs)
        try:
            with progress("first call of this kind: recording, compiling, choosing"):
                return FirstCall(self, key, args, kwargs, start).run()
        finally:
            COMPILES.release()

    @property
    def solution(self) -> Solution | None:
        """How the last call was solved. That of a call that went straight to the original is made when it is asked for."""
        if self.passed is not None:
            self.solution = Solution((), self.passed.seconds, self.passed.why)
        return self.solved

    @solution.setter
    def solution(self, solution: Solution) -> None:
        self.solved, self.passed = solution, None

    # -- later calls ------------------------------------------------------------------------------

    def later_call(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any], start: float) -> Any:
        executable = entry.executable or entry.wake()
        overlapped = executable is not None and executable.on_gpu  # it computes while the guards are looked at
        if not overlapped:
            entry.check_guards()
        self.last = entry
        if not entry.came_again:
            entry.came_again = True
            self.newcomers.came_again()
        if executable is None:
            if entry.refusal is not None and not self.options.fallback:
                raise CaptureError(entry.refusal)
            return self.run_original(Straight(entry, entry.patience.more(), entry.choice), args, kwargs)
        drift = entry.drift
        if drift is not None and not drift.compiled_is_next:
            straight = Straight(entry, Calls(0), drift.why)
            result = self.run_original(straight, args, kwargs)
            with self.lock:
                drift.ran(False, straight.seconds)
            if not drift.compiled_leads:
                straight.calls, straight.why = drift.calls, drift.why
            return result
        try:
            with self.lock if overlapped else nullcontext():  # CUDA graphs write over their results
                return self.compiled_call(entry, executable, args, kwargs, start, self.options.verify == "always")
        except Unsolved as why:
            if overlapped:
                entry.check_guards()
            return self.instead(entry, str(why), args, kwargs, start)

    def run_original(self, straight: Straight[Entry], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The original's result; calls like this one go straight to it from now on, as long as there are calls left."""
        if len(self.straight) >= KINDS:
            self.straight.clear()
        self.straight[kind_of(args, kwargs)] = straight
        start = time.perf_counter()
        result = self.fn(*args, **kwargs)
        straight.seconds = time.perf_counter() - start
        self.last, self.passed = straight.entry, straight
        return result

    def compiled_call(
        self,
        entry: Entry,
        executable: Executable,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        start: float,
        verify: bool = False,
    ) -> Any:
        """The compiled program's result. Raises Unsolved, with nothing written and the generators as they were."""
        flat = args if not kwargs and all(isinstance(a, torch.Tensor) for a in args) else pytree.tree_leaves((args, kwargs))
        states = generator_states(flat)
        leaves = executable.inputs(flat)
        try:
            values = executable.values(leaves)
            if executable.on_gpu:
                entry.check_guards()
        except Exception as error:  # not solved, or an error that the original raises in its own words
            set_generator_states(states)
            raise Unsolved(str(error)) from error
        entry.failures = 0
        if not self.options.solvers and not entry.walks and in_order(executable):  # a plan that was made anew
            self.put_to_rest(entry, executable, f"the original runs, in order: {reasons(executable)}", args, kwargs)
        if verify:
            after = generator_states(flat)
            set_generator_states(states)
            eager = self.fn(*args, **kwargs)
            try:
                same_generators(after)
                same_results(executable, values, tensors_of(eager), leaves, self.options.exactness)
            except VerificationError as error:
                return self.refuted(entry, error, eager, start)
        results = executable.finish(values, leaves)
        blocks = tuple(r.solution for r in executable.runners.values() if r.solution is not None)
        seconds = time.perf_counter() - start
        self.solution = Solution(blocks, seconds)
        if entry.drift is not None:
            with self.lock:
                entry.drift.ran(True, seconds)
        return entry.rebuilt(results)

    def instead(self, entry: Entry, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any], start: float) -> Any:
        """Runs the original for this call; after a few such calls in a row, for long, unless a block makes a new plan."""
        entry.failures += 1
        result = self.fn(*args, **kwargs)
        if entry.executable is not None and any(r.plan is None for r in entry.executable.runners.values()):
            entry.failures = 0
        if entry.executable is not None and entry.failures >= GIVE_UP_AFTER:
            choice = f"the original runs: {entry.failures} calls in a row were not solved in parallel: {reason}"
            self.put_to_rest(entry, entry.executable, choice, args, kwargs)
            if self.options.fallback:
                self.warn(reason)
        self.solution = Solution((), time.perf_counter() - start, reason)
        return result

    def put_to_rest(
        self, entry: Entry, executable: Executable, choice: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Calls like this one go straight to the original from now on, until the compiled program decides anew."""
        self.straight[kind_of(args, kwargs)] = Straight(entry, entry.put_to_rest(executable, choice), choice)

    def refuted(self, entry: Entry, error: VerificationError, eager: Any, start: float) -> Any:
        """The original's result, and the original from now on: what was compiled does not compute what it computes."""
        if not self.options.fallback:
            raise error
        entry.rejected, entry.executable, entry.choice = entry.executable, None, f"the original runs: {error}"
        self.solution = Solution((), time.perf_counter() - start, str(error))
        self.warn(str(error))
        return eager

    # -- what can go wrong ------------------------------------------------------------------------

    def not_compiled(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any], start: float) -> Any:
        """The original's result, for this call alone."""
        self.warn(reason)
        result = self.fn(*args, **kwargs)
        self.solution = Solution((), time.perf_counter() - start, reason)
        return result

    def passed_on(self, reason: str, calls: Calls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The original's result for a call of which nothing is known, and after it for so many calls of its kind."""
        entry = Entry(Guards((), {}), None, f"the original runs: {reason}")
        return self.run_original(Straight(entry, calls, reason), args, kwargs)

    def warn(self, reason: str) -> None:
        if not self.options.fallback:
            raise CaptureError(reason)
        if reason not in self.warned:
            self.warned.add(reason)
            warnings.warn(f"fxsolve runs the original: {reason}", FallbackWarning, stacklevel=users_level())

    def prediction(self, devices: int) -> float | None:
        executable = None if self.last is None else self.last.executable or self.last.rejected
        times = [runner.predicted(devices) for runner in executable.runners.values()] if executable is not None else []
        if not times or None in times:
            return None
        solution, outside = self.solution, 0.0
        if solution is not None and solution.blocks and not solution.first:
            outside = solution.seconds - sum(b.seconds for b in solution.blocks)
        return sum(t for t in times if t is not None) + max(0.0, outside)

    def explanation(self, devices: int) -> str:
        if self.last is None:
            return "not called yet: the plan is made at the first call"
        executable = self.last.executable or self.last.rejected
        return explain(executable, self.last.told(), self.last.timings, self.last.memory, devices)

