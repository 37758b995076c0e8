"""Running what the passes make: a tape row by row, a program with its blocks as loops; and comparing with eager.

Every stage is run on the inputs that were recorded and on other values of the same kind: what was frozen while recording
shows on the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxsolve import prims
from fxsolve.bits import bits
from fxsolve.capture import Recording, record
from fxsolve.guards import Guards
from fxsolve.ir import Program, Recurrence, TensorType
from fxsolve.passes.build import build
from fxsolve.passes.clean import clean
from fxsolve.passes.functionalize import functionalize
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.hoist_noise import hoist_noise
from fxsolve.passes.layouts import memory_order
from fxsolve.passes.roll import Loop, roll
from fxsolve.passes.settle import settle
from fxsolve.passes.slots import outputs_from_buffers
from fxsolve.tape import Tape, fill

Function = Callable[..., Any]


def recording_of(fn: Function, *args: Any, **kwargs: Any) -> Recording:
    """The recording of a call on copies of the arguments; gradients are off."""
    args, kwargs = pytree.tree_map_only(Tensor, copy_of, (args, kwargs))
    with torch.no_grad():
        return record(fn, args, kwargs, Guards.collect(fn, args, kwargs).tensors())


def tape_of(fn: Function, *args: Any, **kwargs: Any) -> Tape:
    recording = recording_of(fn, *args, **kwargs)
    assert recording.refusal is None, recording.refusal
    return recording.tape


def cleaned(fn: Function, *args: Any) -> Tape:
    return clean(functionalize(tape_of(fn, *args)))


def loops_of(fn: Function, *args: Any) -> list[Loop]:
    return roll(cleaned(fn, *args))


def program_of(fn: Function, *args: Any) -> Program:
    tape = cleaned(fn, *args)
    return build(tape, roll(tape))


# -- running ----------------------------------------------------------------------------------------


def leaf_values(leaves: Sequence[Any], flat: Sequence[Any]) -> list[Tensor]:
    """The tensors that leaves stand for in a call with other arguments; what the program holds is copied."""
    return [copy_of(leaf.tensor) if leaf.position < 0 else flat[leaf.position] for leaf in leaves]


def run_tape(tape: Tape, leaves: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(results, all leaves afterwards) of a recorded or functional tape; in-place rows mutate."""
    value: dict[int, Any] = {leaf.value: tensor for leaf, tensor in zip(tape.leaves, leaves, strict=True)}
    for row in range(len(tape)):
        symbol = tape.symbols.items[tape.symbol[row]]
        tensors, numbers = iter([value[v] for v in tape.inputs[row]]), iter(tape.numbers[row])
        args = [fill(a, tensors, numbers) for a in symbol.args]
        kwargs = {k: fill(a, tensors, numbers) for k, a in symbol.kwargs}
        out = symbol.target(*args, **kwargs)
        for i, kind in enumerate(symbol.outputs):
            one = out[i] if symbol.listed else out
            value[tape.first[row] + i] = one
            if kind >= 0:
                expected = tape.types.items[kind]
                assert (tuple(one.shape), one.dtype) == (expected.shape, expected.dtype), symbol.name
                drawn = torch.Tag.nondeterministic_seeded in getattr(symbol.target, "tags", ())  # its type says how to draw
                assert drawn or strides(one) == strides(expected.empty()), (symbol.name, one.stride(), expected)
    ends = dict(tape.mutations)
    after = [value[ends[i]] if i in ends else leaf for i, leaf in enumerate(leaves)]
    for number, expected in tape.guards:
        assert bool(value[number]) is expected
    return [value[o.value] for o in tape.outputs], after


def strides(tensor: Tensor) -> list[int]:
    """The strides that mean something."""
    return [s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1] if tensor.numel() else []


class Checked(fx.Interpreter):
    """Runs a graph and compares every value with its node's type: gaps between rows apart, strides count too."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        kind = n.meta.get("type")
        pairs = zip(kind, value, strict=True) if isinstance(kind, tuple) else [(kind, value)]
        for expected, found in pairs:
            if isinstance(expected, TensorType) and n.op != "output":
                assert (tuple(found.shape), found.dtype) == (expected.shape, expected.dtype), (n, expected, found.shape)
                if found.numel():
                    assert memory_order(TensorType.of(found)) == memory_order(expected), (n, expected, found.stride())
        if n.target in (prims.read, prims.write):
            base = self.env[n.args[0]]
            assert strides(base) == strides(n.args[0].meta["type"].empty()), f"{n} addresses a base of other strides"
        return value


class InOrder(torch.nn.Module):
    """A block run step by step."""

    def __init__(self, block: Recurrence) -> None:
        super().__init__()
        self.block = block
        self.step = fx.GraphModule({}, block.step)

    def forward(self, initial: Any, stacked: Any, consts: Any) -> tuple[Tensor, ...]:
        block, carry, rows = self.block, list(initial), []
        assert (len(initial), len(stacked), len(consts)) == (block.carries, block.stacked, block.consts)
        assert all(len(x) == block.length for x in [*stacked, *block.table])
        for t in reversed(range(block.length)) if block.reverse else range(block.length):
            step = Checked(self.step).run if t in (0, block.length - 1) else self.step
            out = step(*carry, *[x[t] for x in stacked], *[c[t] for c in block.table], *consts)
            carry = out[: block.carries]
            rows.append(out[block.carries :])
        rows = rows[::-1] if block.reverse else rows
        return (*carry, *[torch.stack(column) for column in zip(*rows, strict=True)])


def run_program(program: Program, leaves: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(results, all leaves afterwards) of a program."""
    check_types(program)
    blocks = {name: InOrder(block) for name, block in program.blocks.items() if isinstance(block, Recurrence)}
    values = Checked(fx.GraphModule(blocks, program.graph)).run(*leaves)
    count = len(program.outputs)
    ends = dict(zip(program.mutated, values[count:], strict=False))
    for value, expected in zip(values[count + len(program.mutated) :], program.guards, strict=True):
        assert bool(value) is expected
    return list(values[:count]), [ends.get(i, leaf) for i, leaf in enumerate(leaves)]


def check_types(program: Program) -> None:
    """Every node says its type, and every block gets what its step's placeholders ask for."""
    for node in program.graph.nodes:
        assert node.op == "output" or "type" in node.meta and "source" in node.meta, node
        if node.op == "call_module":
            block = program.blocks[node.target]
            given = [n.meta["type"] for group in node.args for n in group]
            wanted = [n.meta["type"] for n in block.step.nodes if n.op == "placeholder" and not n.name.startswith("i")]
            stacked = range(block.carries, block.carries + block.stacked)
            for i, (have, want) in enumerate(zip(given, wanted, strict=True)):
                shape = (block.length, *want.shape) if i in stacked else want.shape
                assert (have.shape, have.dtype) == (shape, want.dtype), (node, i, str(have), str(want))


# -- comparing --------------------------------------------------------------------------------------


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor], what: str) -> None:
    assert len(ours) == len(theirs)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{what}: {number} is {a.shape} {a.dtype}, not {b.shape} {b.dtype}"
        assert torch.equal(bits(a.contiguous()), bits(b.contiguous())), f"{what}: {number} differs\n{a}\n{b}"


def copy_of(tensor: Tensor) -> Tensor:
    """A copy with the same strides, gaps included."""
    with torch.no_grad():
        whole = tensor.new_empty(0).set_(tensor.untyped_storage()).clone()  # type: ignore[call-overload]
        copy = whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return copy.requires_grad_(tensor.requires_grad)


def other_values(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Another tensor of the same type: elements in another order."""
    copy = copy_of(tensor)
    with torch.no_grad():
        shuffled = tensor.reshape(-1)[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape)
        copy.copy_(shuffled)
    return copy


def eager(fn: Function, args: Sequence[Any], seed: int = 5) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """(results, arguments afterwards, generator afterwards) of a call."""
    args = pytree.tree_map_only(Tensor, copy_of, list(args))
    torch.manual_seed(seed)
    with torch.no_grad():
        result = fn(*args)
    flat = [a for a in pytree.tree_leaves(args) if isinstance(a, Tensor)]
    return [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)], flat, torch.get_rng_state()


def agrees(fn: Function, *args: Any, values: bool = True) -> Program:
    """Records `fn(*args)`, and compares every stage of the pipeline with eager, bit for bit; returns the last stage.

    `values`: also on the same arguments with their elements shuffled. What `fn` holds must not be mutated.
    """
    torch.manual_seed(5)
    recording = recording_of(fn, *args)
    assert recording.refusal is None, recording.refusal
    results, _, _ = eager(fn, args)
    same([t for t in pytree.tree_leaves(recording.result) if isinstance(t, Tensor)], results, "the recorded run")
    functional = functionalize(recording.tape)
    tape = clean(functional)
    assert clean(tape).text() == tape.text(), "clean is not idempotent"
    program = build(tape, roll(tape))
    hoisted = hoist_invariants(program)
    settled = settle(hoisted)
    without_buffers = outputs_from_buffers(settled)
    last = hoist_noise(without_buffers)
    stages: list[tuple[str, Callable[[Sequence[Tensor]], Any], Sequence[Any]]] = [
        ("recorded tape", lambda leaves: run_tape(recording.tape, leaves), recording.tape.leaves),
        ("functional tape", lambda leaves: run_tape(functional, leaves), functional.leaves),
        ("clean tape", lambda leaves: run_tape(tape, leaves), tape.leaves),
        ("program", lambda leaves: run_program(program, leaves), program.leaves),
        ("hoisted invariants", lambda leaves: run_program(hoisted, leaves), hoisted.leaves),
        ("settled", lambda leaves: run_program(settled, leaves), settled.leaves),
        ("slots", lambda leaves: run_program(without_buffers, leaves), without_buffers.leaves),
        ("hoisted noise", lambda leaves: run_program(last, leaves), last.leaves),
    ]
    generator = torch.Generator().manual_seed(1)
    inputs = [list(args)]
    if values:
        inputs.append(pytree.tree_map_only(Tensor, lambda t: other_values(t, generator), list(args)))
    for given in inputs:
        results, after, state = eager(fn, given)
        for name, run, leaves in stages:
            flat = pytree.tree_leaves((pytree.tree_map_only(Tensor, copy_of, tuple(given)), {}))
            tensors = leaf_values(leaves, flat)
            before = [copy_of(t) for t in tensors]
            torch.manual_seed(5)
            with torch.no_grad():
                found, ends = run(tensors)
            same(found, results, f"{name}: result")
            assert torch.equal(torch.get_rng_state(), state), f"{name}: the generator ends elsewhere"
            for leaf, end in zip(leaves, ends, strict=True):
                if leaf.position >= 0:
                    number = sum(isinstance(x, Tensor) for x in flat[: leaf.position])
                    same([end], [after[number]], f"{name}: {leaf.name} afterwards")
            if name != "recorded tape":
                same(tensors, before, f"{name}: inputs must stay as they are")
    return last
