"""The pipeline of one callable: a cache of compiled programs, and how the first call of each kind fills it.

`Compiler.first_call` reads as the table of contents.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxsolve.arguments import copied, copied_from, generator_states, same_states, set_generator_states, tensors_of, trial_inputs
from fxsolve.capture import Recording, no_garbage_collection, record, recording
from fxsolve.chain import ChainRunner
from fxsolve.choice import TURNS, in_order, quick_enough, race
from fxsolve.clock import Clock
from fxsolve.codegen import Executable
from fxsolve.drift import PAYS, Drift
from fxsolve.errors import CaptureError, FallbackWarning, FxsolveError, ScheduleError
from fxsolve.explain import explain
from fxsolve.fixed_point_gradient import FixedPointGradient
from fxsolve.guards import Guards
from fxsolve.ir import Chain, FixedPoint, Program, Recurrence, to_text
from fxsolve.newcomers import Newcomers, why_they_wait
from fxsolve.passes.adjoint import NotDifferentiable
from fxsolve.passes.chain import chain
from fxsolve.passes.growth import NotPadded, Padded
from fxsolve.passes.growth_margin import margin
from fxsolve.passes.slots import fixed_point
from fxsolve.pipeline import clean_tape, find_loops, lower_to_program
from fxsolve.plainly import plainly
from fxsolve.plan import Plan, Runner
from fxsolve.plan_file import Choice, PlanFile, program_key
from fxsolve.progress import progress
from fxsolve.refused import side_effects, untrainable
from fxsolve.schedule import GIVE_UP_AFTER, BlockRunner
from fxsolve.shell import KINDS, Calls, Patience, Straight, kind_of
from fxsolve.signature import signature
from fxsolve.solution import NotSolved, Solution
from fxsolve.solvers import Solver
from fxsolve.tape import Leaf, Mark, Tape
from fxsolve.training import BlockGradient, coarsest, compare_gradients, gradients
from fxsolve.verify import same_generators, same_results


@dataclass(frozen=True)
class Options:
    solvers: Mapping[str, Solver]
    exactness: str
    verify: str
    fallback: bool
    plans: PlanFile | None = None


class Changed(Exception):
    """What is known for a signature holds no more: what changed, in a sentence."""


class Unsolved(NotSolved):
    """A later call that the compiled program does not answer."""


@dataclass
class Entry:
    """What is known for one signature: an executable, or why the original runs."""

    guards: Guards
    executable: Executable | None
    choice: str
    spec: Any = None
    statics: tuple[Any, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    refusal: str | None = None  # why it was not compiled
    failures: int = 0
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


@dataclass(frozen=True)
class FirstCall:
    """What trials repeat: the arguments, the random generators' states before the call, and what was recorded."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    generators: list[tuple[torch.Generator, torch.Tensor]]
    recording: Recording


class Compiler:
    """The cache of compiled programs of one callable, and the pipeline that fills it."""

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
        if self.straight:
            straight = self.straight.get(kind_of(args, kwargs))
            if straight is not None and straight.calls.left > 0:
                straight.calls.left -= 1
                self.last, self.passed = straight.entry, straight
                return self.fn(*args, **kwargs)
        start = time.perf_counter()
        if recording():
            return self.fn(*args, **kwargs)  # inside another compiled callable's first call: part of that program
        try:
            key = signature(args, kwargs)
        except CaptureError as error:
            self.warn(str(error))
            return self.not_compiled(str(error), Patience().more(), args, kwargs)
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
            return self.not_compiled(self.newcomers.reason, Calls(0), args, kwargs)
        if not COMPILES.acquire(blocking=False):
            return self.not_compiled("another first call was under way on another thread", Calls(0), args, kwargs)
        try:
            with progress("first call of this kind: recording, compiling, choosing"):
                return self.first_call(key, args, kwargs, start)
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
        executable = entry.executable
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
            self.give_up(entry, executable)
        if verify:
            after = generator_states(flat)
            set_generator_states(states)
            eager = self.fn(*copied((args, kwargs))[0], **kwargs)
            same_results(executable, values, tensors_of(eager), self.options.exactness)
            set_generator_states(after)
        results = executable.finish(values, leaves)
        blocks = tuple(r.solution for r in executable.runners.values() if r.solution is not None)
        seconds = time.perf_counter() - start
        self.solution = Solution(blocks, seconds)
        if entry.drift is not None:
            with self.lock:
                entry.drift.ran(True, seconds)
        if entry.spec is None:
            return results[0]
        return rebuilt(results, entry)

    def instead(self, entry: Entry, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any], start: float) -> Any:
        """Runs the original for this call; after a few such calls in a row, for good, unless a block makes a new plan."""
        entry.failures += 1
        result = self.fn(*args, **kwargs)
        if entry.executable is not None and any(r.plan is None for r in entry.executable.runners.values()):
            entry.failures = 0
        if entry.failures >= GIVE_UP_AFTER:
            entry.rejected, entry.executable = entry.executable, None
            entry.choice = f"the original runs: {entry.failures} calls in a row were not solved in parallel: {reason}"
            if self.options.fallback:
                self.warn(reason)
        self.solution = Solution((), time.perf_counter() - start, reason)
        return result

    # -- the first call: the pipeline -------------------------------------------------------------

    def first_call(self, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any], start: float) -> Any:
        timings: dict[str, float] = {}
        clock = Clock(timings)
        flat = pytree.tree_leaves((args, kwargs))
        guards = Guards.collect(self.fn, args, kwargs)
        before = generator_states(flat)
        recording = record(self.fn, args, kwargs, guards.tensors())
        clock("record", recording)
        changed = guards.changes()
        if changed:
            guards = Guards.collect(self.fn, args, kwargs).without(changed)
        guards = guards.with_contents(recording.read_out).with_places(recording.parts)
        effects = side_effects(changed, self.fn)
        if changed and effects is not None and recording.refusal is None and key not in self.unsettled:
            self.unsettled.add(key)
            self.last = Entry(guards, None, f"the original ran: {effects}; the next call tells whether that was once only")
            return self.finished(recording.result, self.last, start)
        refusal = recording.refusal or effects
        trains = any(t.requires_grad for t in tensors_of(recording.result))
        if trains and refusal is None:
            refusal = untrainable(recording)
        entry = self.last = Entry(guards, None, "")
        self.newcomers.compiled(key)
        if refusal is not None:
            self.entries[key] = entry
            return self.keep_original(entry, refusal, recording.result, start)
        after = generator_states(flat)
        if same_states(before, after):  # it draws nothing: what other threads draw is theirs
            before, after = [], []
        try:
            with no_garbage_collection(), plainly():
                tape = clean_tape(recording.tape, clock)
                grown, loops = find_loops(tape, self.options.exactness == "bitwise", clock)
                program = lower_to_program(grown.tape if isinstance(grown, Padded) else tape, loops, clock)
                program = program if trains else chain(program)
                clock("chain", program)
                executable = self.scheduled(program, isinstance(grown, Padded), trains)
            entry.timings = timings
            if not executable.runners:
                if isinstance(grown, str):
                    return self.keep_original(entry, grown, recording.result, start)
                entry.choice = "the original runs: it has no sequential part that repeats"
                return self.finished(recording.result, entry, start)
            kept = self.kept(executable)
            if kept is not None and kept.seconds is not None:
                timings[KEPT] = kept.seconds
            if kept is not None and kept.original is not None:
                if isinstance(grown, str):
                    return self.keep_original(entry, grown, recording.result, start)
                entry.choice = kept.original
                return self.finished(recording.result, entry, start)
            leaves = trial_inputs(executable, recording, flat)
            set_generator_states(before)
            values = self.first_values(executable, leaves, before)
            clock("decide", executable)
            same_generators(after)
            executable.settle_outputs(values, leaves, tensors_of(recording.result))
            if self.options.verify != "never" and not in_order(executable):
                same_results(executable, values, tensors_of(recording.result), self.options.exactness)
                if trains:
                    compare_gradients(values, leaves, tensors_of(recording.result), coarsest(program))
            if isinstance(grown, Padded):
                self.set_slack(grown, tape, executable, leaves)
            entry.spec = None if recording.spec == LEAF_SPEC else recording.spec
            entry.statics = recording.statics
            self.choose(entry, executable, values, leaves, FirstCall(args, kwargs, before, recording))
            clock("time", entry.choice)
            if kept is None or any(r.known is None for r in executable.runners.values()):
                self.keep(entry, executable)
            if entry.executable is None and isinstance(grown, str):
                return self.keep_original(entry, grown, recording.result, start)
        except Exception as error:  # whatever goes wrong here, the user's call has its result
            if isinstance(error, ScheduleError) or (isinstance(error, FxsolveError) and not self.options.fallback):
                raise
            known = isinstance(error, (NotSolved, FxsolveError))
            reason = str(error) if known else f"internal error, please report it: {type(error).__name__}: {error}"
            entry.executable = None
            return self.keep_original(entry, reason, recording.result, start)
        finally:
            self.entries[key] = entry  # now that it is whole: another thread may come with the same kind of call
            set_generator_states(after)
        return self.finished(recording.result, entry, start)

    def finished(self, result: Any, entry: Entry, start: float) -> Any:
        runners = entry.executable.runners.values() if entry.executable is not None and entry.compiled else ()
        blocks = tuple(r.solution for r in runners if r.solution is not None)
        why = None if entry.compiled else entry.choice
        self.solution = Solution(blocks, time.perf_counter() - start, why, first=True)
        return result

    def set_slack(self, grown: Padded, tape: Tape, executable: Executable, leaves: Sequence[torch.Tensor]) -> None:
        """Measures how far the longer calls are from eager's; raises NotSolved where that is no rounding."""
        (runner,) = executable.runners.values()
        assert isinstance(runner, BlockRunner) and runner.fixed is not None and runner.final is not None
        try:
            with plainly():
                runner.slack = runner.fixed.slack = margin(tape, grown, leaves, runner.final)
        except NotPadded as why:
            raise NotSolved(f"a tensor is lengthened by cat at {grown.source}, and {why}") from None

    def scheduled(self, program: Program, padded: bool, trains: bool) -> Executable:
        """An executable whose blocks decide on their solver when they first run."""
        runners: dict[str, Runner] = {}
        unknown = set(self.options.solvers) - {"*"} - set(program.blocks)
        if unknown:
            raise ScheduleError(f"solver names unknown blocks {sorted(unknown)}; there are {sorted(program.blocks)}")
        own = frozenset(leaf.tensor.untyped_storage().data_ptr() for leaf in program.leaves if leaf.position < 0)
        for name, block in program.blocks.items():
            forced = self.options.solvers.get(name, self.options.solvers.get("*"))
            if isinstance(block, Chain):
                runners[name] = ChainRunner(block, forced, self.options.exactness)
                runners[name].own = own
                continue
            assert isinstance(block, Recurrence)  # the scheduler finds out which of them are fixed points
            gradient = self.gradient_of(block, forced) if trains else None
            block = block if gradient is None else gradient.forward
            known = self.plans.get(plan_key(block))
            if known is not None and not known.in_order:
                known = replace(known, reason=f"{known.reason} (as found before for another size)")
            else:
                known = None
            runner = runners[name] = BlockRunner(block, forced, self.options.exactness, known, padded)
            runner.gradient, runner.own = gradient, own
        return Executable(program, runners, trains)

    def gradient_of(self, block: Recurrence, forced: Solver | None) -> BlockGradient | FixedPointGradient:
        try:
            if isinstance(fixed_point(block), FixedPoint):
                return FixedPointGradient(block)
            return BlockGradient(block, BlockRunner, forced, self.options.exactness)
        except NotDifferentiable as why:
            raise CaptureError(f"gradients are asked for, and the loop at {block.source} has no adjoint: {why}") from None

    def choose(
        self, entry: Entry, executable: Executable, values: Sequence[torch.Tensor], leaves: list[torch.Tensor], call: FirstCall
    ) -> None:
        """Keeps the compiled program if it is forced or quicker than the original on these inputs."""
        runners = executable.runners.values()
        reused = all(r.known is not None for r in runners)
        for runner in runners:
            if runner.plan is not None:
                self.plans.setdefault(plan_key(runner.block), runner.plan)
        entry.executable, entry.choice = executable, "compiled"
        if self.options.solvers:
            return
        if in_order(executable):
            entry.walks = not executable.trains and self.walk_promises(entry, executable, values, leaves, call)
            if not entry.walks:
                self.give_up(entry, executable)
                return
        # a GPU's calls return before they are done; with verify="always" the original runs in each call; and the backward of
        # a call is not seen
        followed = self.options.verify != "always" and not executable.on_gpu and not executable.trains
        if not executable.trains and (quick := quick_enough(executable)) is not None:
            entry.timings |= {"original, at the least": quick[0]}
            entry.drift = Drift(*quick) if followed else None
        elif reused and KEPT in entry.timings:
            entry.drift = Drift(entry.timings[KEPT], compiled=0.0) if followed else None
        elif reused and followed:  # nobody knows what the original takes at this size: later calls tell
            entry.drift = Drift.unknown()
        else:
            theirs, ours = self.race(entry, executable, leaves, call)
            entry.timings |= {"original": theirs, "compiled": ours}
            leads = ours <= PAYS * theirs
            entry.drift = Drift(theirs, ours, leads) if followed and (leads or ours < theirs) else None
            if not leads:
                entry.choice = f"the original runs: it takes {theirs:.4f} s, the compiled program {ours:.4f} s"
                if entry.drift is None:
                    entry.executable, entry.rejected = None, executable

    def walk_promises(
        self, entry: Entry, executable: Executable, values: Sequence[torch.Tensor], leaves: list[torch.Tensor], call: FirstCall
    ) -> bool:
        """Whether generated code for the same calls in the same order looks quicker than the original, and gives its bits."""
        entry.walks = True  # for the race
        try:
            same_results(executable, values, tensors_of(call.recording.result), "bitwise")
        except FxsolveError:
            return False
        theirs, ours = self.race(entry, executable, leaves, call, turns=1)
        return ours <= PAYS * theirs

    def race(
        self, entry: Entry, executable: Executable, leaves: list[torch.Tensor], call: FirstCall, turns: int = TURNS
    ) -> tuple[float, float]:
        """Seconds of the original and of a later call on this call's inputs, gradients included; leaves all as it was."""

        def prepared(run: Callable[..., Any]) -> Callable[[], Callable[[], None]]:
            def prepare() -> Callable[[], None]:
                args, kwargs = copied_from(call.args, call.kwargs, call.recording)
                set_generator_states(call.generators)
                return lambda: ran(run(args, kwargs))

            return prepare

        def ran(result: Any) -> None:
            if executable.trains:
                gradients(tensors_of(result), leaves)

        def compiled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            start = time.perf_counter()
            self.entries.get(signature(args, kwargs))
            if not executable.on_gpu:
                entry.guards.check()
            return self.compiled_call(entry, executable, args, kwargs, start)

        held = [leaf.tensor for leaf in written_leaves(call.recording) if leaf.position < 0]
        contents = [tensor.clone() for tensor in held]
        try:
            theirs, ours = race(prepared(lambda args, kwargs: self.fn(*args, **kwargs)), prepared(compiled), turns=turns)
        finally:
            with torch.no_grad():
                for tensor, content in zip(held, contents, strict=True):
                    tensor.copy_(content)
        return theirs, ours

    def first_values(
        self, executable: Executable, leaves: Sequence[torch.Tensor], before: Sequence[tuple[torch.Generator, torch.Tensor]]
    ) -> Sequence[torch.Tensor]:
        """The compiled program's results; where a known plan does not solve a block any more, after trials of its own."""
        runners = executable.runners.values()
        try:
            return executable.values(leaves)
        except NotSolved:
            if all(runner.known is None for runner in runners):
                raise
        for runner in runners:
            runner.known = runner.plan = None
        set_generator_states(before)
        return executable.values(leaves)

    def kept(self, executable: Executable) -> Choice | None:
        """What the file of plans says of this program; its plans are then the runners'."""
        plans = self.options.plans
        if plans is None or executable.trains or self.options.solvers:
            return None
        choice = plans.choices.get(program_key(executable.program, self.options.exactness))
        for name, runner in executable.runners.items():
            if choice is not None and name in choice.plans:
                plan = choice.plans[name]
                runner.known = replace(plan, reason=f"{plan.reason} (as kept in {plans.path.name})")
        if choice is not None and choice.original is not None:
            choice = replace(choice, original=f"{choice.original} (as kept in {plans.path.name})")
        return choice

    def keep(self, entry: Entry, executable: Executable) -> None:
        """Writes the choice into the file of plans."""
        plans = self.options.plans
        if plans is None or executable.trains or self.options.solvers:
            return
        decided = {name: runner.plan for name, runner in executable.runners.items() if runner.plan is not None}
        original = None if entry.compiled else entry.choice
        try:
            key = program_key(executable.program, self.options.exactness)
            plans.keep(key, Choice(decided, original, entry.timings.get("original")))
        except (OSError, FxsolveError) as error:
            warnings.warn(f"the choice is not kept for other processes: {error}", stacklevel=6)

    def give_up(self, entry: Entry, executable: Executable) -> None:
        """From now on: no block has another schedule than eager's own."""
        reasons = "; ".join(dict.fromkeys(r.plan.reason for r in executable.runners.values() if r.plan is not None))
        entry.executable, entry.rejected = None, executable
        entry.choice = f"the original runs, in order: {reasons}"

    # -- what can go wrong ------------------------------------------------------------------------

    def keep_original(self, entry: Entry, reason: str, result: Any, start: float) -> Any:
        entry.choice = f"the original runs: {reason}"
        entry.refusal = reason
        self.warn(reason)
        return self.finished(result, entry, start)

    def not_compiled(self, reason: str, calls: Calls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The original's result for a call of which nothing is known, and after it for so many calls of its kind."""
        entry = Entry(Guards((), {}), None, f"the original runs: {reason}")
        return self.run_original(Straight(entry, calls, reason), args, kwargs)

    def warn(self, reason: str) -> None:
        if not self.options.fallback:
            raise CaptureError(reason)
        if reason not in self.warned:
            self.warned.add(reason)
            warnings.warn(f"fxsolve runs the original: {reason}", FallbackWarning, stacklevel=6)

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
        return explain(executable, self.last.told(), self.last.timings, devices)


def written_leaves(recording: Recording) -> list[Leaf]:
    """The arguments and tensors of the function that the recorded run wrote to."""
    return [recording.tape.leaves[number] for number in recording.before]


COMPILES = threading.RLock()  # a first call changes what is torch's own: one at a time
KEPT = "original, as kept"
LEAF_SPEC = pytree.tree_structure(torch.empty(0))


def plan_key(block: Recurrence | Chain) -> Hashable:
    """Blocks with the same key get the same plan: one step, at lengths of the same order."""
    return structure(block), block.length.bit_length() // 2


def structure(block: Recurrence | Chain) -> str:
    """What two sizes of one program have in common: the equations without shapes and tables."""
    lines = []
    for line in to_text(block.body).splitlines():
        left, _, right = line.partition(" = ")
        lines.append(left.split(":")[0] + right.split("(")[0])
    return "\n".join(lines)


def rebuilt(results: list[torch.Tensor], entry: Entry) -> Any:
    tensors = iter(results)
    leaves = [next(tensors) if s is Mark.TENSOR else s for s in entry.statics]
    return pytree.tree_unflatten(leaves, entry.spec)
