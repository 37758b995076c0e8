"""The first call of a kind: it is recorded, compiled, timed against the original, and answered with the original's result.

`FirstCall.run` reads as the table of contents.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from fxsolve.arguments import copied_from, generator_states, same_states, set_generator_states, tensors_of, trial_inputs
from fxsolve.capture import no_garbage_collection, record
from fxsolve.choice import TURNS, in_order, quick_enough, race
from fxsolve.clock import Clock
from fxsolve.codegen import Executable
from fxsolve.drift import PAYS, Drift
from fxsolve.entry import Entry
from fxsolve.errors import FxsolveError, ScheduleError, users_level
from fxsolve.guards import Guards
from fxsolve.memory import held_by
from fxsolve.passes.chain import chain
from fxsolve.passes.growth import Padded
from fxsolve.pipeline import clean_tape, find_loops, lower_to_program
from fxsolve.plainly import plainly
from fxsolve.plan_file import Choice, program_key
from fxsolve.refused import side_effects, untrainable
from fxsolve.runners import plan_key, scheduled, set_slack
from fxsolve.signature import signature
from fxsolve.solution import NotSolved, Solution
from fxsolve.tape import Mark
from fxsolve.training import gradients
from fxsolve.verify import same_generators, same_gradients, same_results

if TYPE_CHECKING:
    from fxsolve.compiler import Compiler

KEPT = "original, as kept"
WEIGHED = 0.1  # seconds: what takes longer is not run once more, to see how much memory it holds
Prepare = Callable[[], Callable[[], None]]
LEAF_SPEC = pytree.tree_structure(torch.empty(0))


class FirstCall:
    """One call of a kind that is not known yet: it makes the entry of its signature."""

    def __init__(self, compiler: Compiler, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any], start: float) -> None:
        self.compiler, self.fn, self.options = compiler, compiler.fn, compiler.options
        self.key, self.args, self.kwargs, self.start = key, args, kwargs, start
        self.flat = pytree.tree_leaves((args, kwargs))
        self.timings: dict[str, float] = {}

    def run(self) -> Any:
        """The original's result."""
        compiler, clock = self.compiler, Clock(self.timings)
        guards = Guards.collect(self.fn, self.args, self.kwargs)
        iterators = guards.iterators
        before = generator_states(self.flat)
        self.recording = recording = record(self.fn, self.args, self.kwargs, guards.tensors())
        clock("record", recording)
        changed = guards.changes()
        if changed:
            guards = Guards.collect(self.fn, self.args, self.kwargs).without(changed)
        guards = guards.with_contents(recording.read_out).with_places(recording.parts)
        self.entry = entry = compiler.last = Entry(guards, None, "")
        effects = side_effects(changed, iterators)
        if changed and effects is not None and recording.refusal is None and self.key not in compiler.unsettled:
            compiler.unsettled.add(self.key)
            entry.choice = f"the original ran: {effects}; the next call tells whether that was once only"
            return self.finished()
        refusal = recording.refusal or effects
        trains = any(t.requires_grad for t in tensors_of(recording.result))
        if trains and refusal is None:
            refusal = untrainable(recording)
        compiler.newcomers.compiled(self.key)
        if refusal is not None:
            compiler.entries[self.key] = entry
            return self.keep_original(refusal)
        after = generator_states(self.flat)
        if same_states(before, after):  # it draws nothing: what other threads draw is theirs
            before, after = [], []
        self.generators = before
        try:
            with no_garbage_collection(), plainly():
                tape = clean_tape(recording.tape, clock)
                grown, loops = find_loops(tape, self.options.exactness == "bitwise", clock)
                program = lower_to_program(grown.tape if isinstance(grown, Padded) else tape, loops, clock)
                program = program if trains else chain(program)
                clock("chain", program)
                executable = scheduled(program, self.options, compiler.plans, isinstance(grown, Padded), trains)
            entry.timings = self.timings
            if not executable.runners:
                return self.original("the original runs: it has no sequential part that repeats", grown)
            kept = self.kept(executable)
            if kept is not None and kept.seconds is not None:
                self.timings[KEPT] = kept.seconds
            if kept is not None and kept.original is not None:
                return self.original(kept.original, grown)
            if (odd := self.says_otherwise()) is not None:
                return self.keep_original(odd)
            leaves = trial_inputs(executable, recording, self.flat)
            set_generator_states(before)
            values = self.first_values(executable, leaves)
            clock("decide", executable)
            same_generators(after)
            executable.settle_outputs(values, leaves, tensors_of(recording.result))
            # walks in order that nobody asked for are compared in `choose`
            if self.options.verify != "never" and (self.options.solvers or not in_order(executable)):
                self.compare(executable, values)
                if trains:
                    same_gradients(program, values, leaves, tensors_of(recording.result))
            if isinstance(grown, Padded):
                set_slack(grown, tape, executable, leaves)
            entry.spec = None if recording.spec == LEAF_SPEC else recording.spec
            entry.statics = recording.statics
            self.choose(executable, values, leaves)
            clock("time", entry.choice)
            if kept is None or any(r.known is None for r in executable.runners.values()):
                self.keep(executable)
            return self.finished() if entry.executable is not None else self.original(entry.choice, grown)
        except Exception as error:  # whatever goes wrong here, the user's call has its result
            if isinstance(error, ScheduleError) or (isinstance(error, FxsolveError) and not self.options.fallback):
                raise
            known = isinstance(error, (NotSolved, FxsolveError))
            reason = str(error) if known else f"internal error, please report it: {type(error).__name__}: {error}"
            entry.executable = None
            return self.keep_original(reason)
        finally:
            for executable in (entry.executable, entry.rejected):
                if executable is not None:
                    executable.forget_arguments()
            compiler.entries[self.key] = entry  # now that it is whole: another thread may come with the same kind of call
            set_generator_states(after)

    # -- what it ends with ------------------------------------------------------------------------

    def finished(self) -> Any:
        entry = self.entry
        runners = entry.executable.runners.values() if entry.executable is not None and entry.compiled else ()
        blocks = tuple(r.solution for r in runners if r.solution is not None)
        why = None if entry.compiled else entry.choice
        self.compiler.solution = Solution(blocks, time.perf_counter() - self.start, why, first=True)
        return self.recording.result

    def original(self, choice: str, grown: Padded | str | None) -> Any:
        """The original is the choice; `grown`: why a sequence that is lengthened could not be padded, which is told."""
        if isinstance(grown, str):
            return self.keep_original(grown)
        self.entry.choice = choice
        return self.finished()

    def keep_original(self, reason: str) -> Any:
        self.entry.choice = f"the original runs: {reason}"
        self.entry.refusal = reason
        self.compiler.warn(reason)
        return self.finished()

    # -- what it decides --------------------------------------------------------------------------

    def first_values(self, executable: Executable, leaves: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The compiled program's results; where a known plan does not solve a block any more, after trials of its own."""
        runners = executable.runners.values()
        try:
            return executable.values(leaves)
        except NotSolved:
            if all(runner.known is None for runner in runners):
                raise
        for runner in runners:
            runner.known = runner.plan = None
        set_generator_states(self.generators)
        return executable.values(leaves)

    def compare(self, executable: Executable, values: Sequence[torch.Tensor], bits: bool = False) -> None:
        """Raises VerificationError unless the compiled program's values are the recorded run's."""
        theirs, leaves = tensors_of(self.recording.result), executable.inputs(self.flat)
        same_results(executable, values, theirs, leaves, self.options.exactness, bits)

    def says_otherwise(self) -> str | None:
        """Which number or text of the result a second run of the original on the same inputs gives otherwise, if it holds any:
        what comes from a clock, say, would be this call's in all later ones.
        """
        if all(s is None or isinstance(s, (bool, type, Mark)) for s in self.recording.statics):
            return None
        with self.undone():
            args, kwargs = copied_from(self.args, self.kwargs, self.recording)
            set_generator_states(self.generators)
            again = pytree.tree_leaves(self.fn(*args, **kwargs))
        for once, twice in zip_longest(self.recording.statics, again):
            if once is not Mark.TENSOR and repr(once) != repr(twice):
                return (
                    f"the result holds {once!r}, and {twice!r} when it is computed again: a replay would give the first one "
                    "each time; return what was computed from the arguments, and take times outside"
                )
        return None

    def choose(self, executable: Executable, values: Sequence[torch.Tensor], leaves: list[torch.Tensor]) -> None:
        """Keeps the compiled program if it is forced or quicker than the original on these inputs."""
        entry, runners = self.entry, executable.runners.values()
        reused = all(r.known is not None for r in runners)
        for runner in runners:
            if runner.plan is not None:
                self.compiler.plans.setdefault(plan_key(runner.block), runner.plan)
        entry.executable, entry.choice = executable, "compiled"
        if self.options.solvers:
            return
        if in_order(executable):
            entry.walks = not executable.trains and self.walk_promises(executable, values, leaves)
            if not entry.walks:
                entry.give_up(executable)
                return
        # a GPU's calls return before they are done; with verify="always" the original runs in each call; and the backward of
        # a call is not seen
        followed = self.options.verify != "always" and not executable.on_gpu and not executable.trains
        if not executable.trains and (quick := quick_enough(executable)) is not None:
            entry.timings |= {"original, at the least": quick[0]}
            self.weigh(executable, leaves, quick)
            entry.drift = Drift(*quick) if followed else None
        elif reused and KEPT in entry.timings:
            entry.drift = Drift(entry.timings[KEPT], compiled=0.0) if followed else None
        elif reused and followed:  # nobody knows what the original takes at this size: later calls tell
            entry.drift = Drift.unknown()
        else:
            theirs, ours = self.race(executable, leaves)
            entry.timings |= {"original": theirs, "compiled": ours}
            self.weigh(executable, leaves, (theirs, ours))
            leads = ours <= PAYS * theirs
            entry.drift = Drift(theirs, ours, leads) if followed and (leads or ours < theirs) else None
            if not leads:
                entry.choice = f"the original runs: it takes {theirs:.4f} s, the compiled program {ours:.4f} s"
                if entry.drift is None:
                    entry.executable, entry.rejected = None, executable

    def walk_promises(self, executable: Executable, values: Sequence[torch.Tensor], leaves: list[torch.Tensor]) -> bool:
        """Whether generated code for the same calls in the same order looks quicker than the original, and gives its bits."""
        self.entry.walks = True  # for the race
        try:
            self.compare(executable, values, bits=True)
        except FxsolveError:
            return False
        theirs, ours = self.race(executable, leaves, turns=1)
        return ours <= PAYS * theirs

    def race(self, executable: Executable, leaves: list[torch.Tensor], turns: int = TURNS) -> tuple[float, float]:
        """Seconds of the original and of a later call on this call's inputs, gradients included."""
        with self.undone():
            theirs, ours = race(*self.runs(executable, leaves), turns=turns)
        return theirs, ours

    def weigh(self, executable: Executable, leaves: list[torch.Tensor], seconds: Sequence[float]) -> None:
        """How much memory each of the two holds at a time, if a run takes no longer than WEIGHED seconds."""
        if executable.on_gpu:  # CUDA graphs hold what is not seen
            return
        with self.undone():
            for name, prepare, taken in zip(("original", "compiled"), self.runs(executable, leaves), seconds, strict=True):
                if taken <= WEIGHED:
                    self.entry.memory[name] = held_by(prepare())

    def runs(self, executable: Executable, leaves: list[torch.Tensor]) -> tuple[Prepare, Prepare]:
        """For the original and for a later call: what makes a run on this call's inputs, as they were."""
        compiler, entry = self.compiler, self.entry

        def prepared(run: Callable[..., Any]) -> Prepare:
            def prepare() -> Callable[[], None]:
                args, kwargs = copied_from(self.args, self.kwargs, self.recording)
                set_generator_states(self.generators)
                return lambda: ran(run(args, kwargs))

            return prepare

        def ran(result: Any) -> None:
            if executable.trains:
                gradients(tensors_of(result), leaves)

        def compiled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            start = time.perf_counter()
            compiler.entries.get(signature(args, kwargs))
            if not executable.on_gpu:
                entry.guards.check()
            return compiler.compiled_call(entry, executable, args, kwargs, start)

        return prepared(lambda args, kwargs: self.fn(*args, **kwargs)), prepared(compiled)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Whatever runs inside, what the program writes to its own tensors is as it was afterwards."""
        written = [self.recording.tape.leaves[number] for number in self.recording.before]
        held = [leaf.tensor for leaf in written if leaf.position < 0]
        contents = [tensor.clone() for tensor in held]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, content in zip(held, contents, strict=True):
                    tensor.copy_(content)

    # -- the file of plans ------------------------------------------------------------------------

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

    def keep(self, executable: Executable) -> None:
        """Writes the choice into the file of plans."""
        plans, entry = self.options.plans, self.entry
        if plans is None or executable.trains or self.options.solvers:
            return
        decided = {name: runner.plan for name, runner in executable.runners.items() if runner.plan is not None}
        original = None if entry.compiled else entry.choice
        try:
            key = program_key(executable.program, self.options.exactness)
            plans.keep(key, Choice(decided, original, entry.timings.get("original")))
        except (OSError, FxsolveError) as error:
            warnings.warn(f"the choice is not kept for other processes: {error}", stacklevel=users_level())
