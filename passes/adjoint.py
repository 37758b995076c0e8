"""Adjoint: the backward system of a Recurrence, itself a Recurrence, linear and in reverse.

    s_t, y_t = h(s_{t-1}, x_t, c)        -->        l_{t-1} = J_t^T l_t + K_t^T g_t,     t = T .. 1

with `l_t` the cotangent of s_t, `g_t` that of y_t, J_t and K_t the derivatives of s_t and y_t by s_{t-1}. The step is the
vector-Jacobian product that autograd takes of h, as ATen calls, the forward calls that it needs among them: what does not
hang on the cotangents is computed for all T at once when the block is solved (split_step). Gradients of x and c follow from
all l_t at once (fxsolve.training). Song et al. 2021, section 4.1, sweep this system a fixed number of times.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxsolve.capture import Recorder
from fxsolve.ir import CARRY, CONST, INDEX, STACKED, Program, Recurrence, TensorType, calls, placeholders, results
from fxsolve.passes.build import build
from fxsolve.passes.clean import clean
from fxsolve.passes.functionalize import functionalize
from fxsolve.passes.graphs import copy_nodes
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.layouts import fresh
from fxsolve.tape import Output

aten = torch.ops.aten
NAME = "adjoint"


class NotDifferentiable(Exception):
    """Why a block has no adjoint."""


@dataclass(frozen=True)
class Adjoint:
    """The backward program: (l_T.., states before each step.., stacked inputs.., g.., invariants..) -> (l_0.., l_{t-1}..).

    All stacks are in reverse order. It calls one block. `moving`: the carries that have cotangents; `ended`: those of them
    whose state before a step has no gradient; `asked`: the outputs that have cotangents.
    """

    program: Program
    moving: tuple[int, ...]
    ended: tuple[int, ...]
    asked: tuple[int, ...]


def adjoint(block: Recurrence) -> Adjoint:
    """The adjoint of a block, for iterations in reverse order. Raises NotDifferentiable."""
    if any(node.users for node in placeholders(block.step, INDEX)):
        raise NotDifferentiable("its steps address tensors by numbers that differ from step to step")
    carries = placeholders(block.step, CARRY)
    given = [n.meta["type"] for prefix in (CARRY, STACKED, CONST) for n in placeholders(block.step, prefix)]
    returned = results(block.step)
    moving = tuple(k for k, node in enumerate(carries) if is_real(node.meta["type"]))
    asked = tuple(k for k, node in enumerate(returned[block.carries :]) if is_real(node.meta["type"]))
    if not moving or any(node.meta["type"].dtype.is_complex for node in [*carries, *returned]):
        raise NotDifferentiable("it carries no real state" if not moving else "it computes with complex numbers")
    lams = [carries[k].meta["type"] for k in moving]
    gs = [returned[block.carries + k].meta["type"] for k in asked]
    count, indices = block.carries + block.stacked, [0] * len(block.table)
    run = fx.GraphModule({}, block.step).forward
    ended: set[int] = set()

    def backward(*flat: torch.Tensor) -> Sequence[torch.Tensor]:
        cotangents, inputs = flat[: len(lams) + len(gs)], list(flat[len(lams) + len(gs) :])
        for k in moving:
            inputs[k] = inputs[k].detach().requires_grad_()
        with torch.enable_grad():
            made = run(*inputs[:count], *indices, *inputs[count:])
        out = [made[k] for k in moving] + [made[block.carries + k] for k in asked]
        pairs = [(o, c) for o, c in zip(out, cotangents, strict=True) if o.requires_grad]
        wanted = [inputs[k] for k in moving]
        found: Sequence[torch.Tensor | None] = [None] * len(moving)
        if pairs:
            found = torch.autograd.grad([o for o, _ in pairs], wanted, [c for _, c in pairs], allow_unused=True)
        ended.update(k for k, g in zip(moving, found, strict=True) if g is None)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]

    examples = [kind.empty().zero_() for kind in [*lams, *gs, *given]]
    before = [f"{STACKED}{i}" for i in range(count)]
    outer = [f"{STACKED}{count + i}" for i in range(len(gs))]
    names = [*(f"{CARRY}{i}" for i in range(len(lams))), *outer, *before, *(f"{CONST}{i}" for i in range(block.consts))]
    order = sorted(names, key=lambda name: (f"{CARRY}{STACKED}{CONST}".index(name[0]), int(name[1:])))
    graph = recorded(backward, dict(zip(names, examples, strict=True)), order)
    as_products(graph)
    stacked = count + len(gs)
    reverse = Recurrence(
        f"{block.name}_adjoint", block.length, graph, len(lams), stacked, block.consts, len(lams), (), block.source
    )
    return Adjoint(hoist_invariants(calling(reverse)), moving, tuple(sorted(ended)), asked)


def calling(block: Recurrence) -> Program:
    """A program that calls one block on its own arguments, and returns what the block returns."""
    graph, groups, types = fx.Graph(), [], []
    for prefix in (CARRY, STACKED, CONST):
        group = []
        for node in placeholders(block.step, prefix):
            kind: TensorType = node.meta["type"]
            kind = fresh((block.length, *kind.shape), kind) if prefix == STACKED else kind
            group.append(graph.create_node("placeholder", node.name, name=node.name))
            group[-1].meta.update(type=kind, source="")
        groups.append(tuple(group))
    call = graph.create_node("call_module", block.name, tuple(groups), name=block.name)
    for number, node in enumerate(results(block.step)):
        kind = node.meta["type"]
        types.append(kind if number < block.carries else fresh((block.length, *kind.shape), kind))
    call.meta.update(type=tuple(types), source=block.source)
    items = [graph.call_function(operator.getitem, (call, k)) for k in range(len(types))]
    for item, kind in zip(items, types, strict=True):
        item.meta.update(type=kind, source=block.source)
    graph.output(tuple(items))
    return Program(graph, {block.name: block}, (), (), (), ())


def is_real(kind: TensorType) -> bool:
    return kind.dtype.is_floating_point


def recorded(fn: Callable[..., Sequence[torch.Tensor]], examples: Mapping[str, torch.Tensor], order: Sequence[str]) -> fx.Graph:
    """A function of tensors as a step: placeholders named, and in the given order; it returns its results twice."""
    recorder = Recorder(list(enumerate(examples.values())), {})
    with recorder:
        made = fn(*examples.values())
    tape = recorder.tape
    if recorder.refusal is None:
        tape.outputs = [Output(recorder.value(x)) for x in made]
    if recorder.refusal is not None:
        raise NotDifferentiable(recorder.refusal)
    program = build(clean(functionalize(tape)), [])
    names = list(examples)
    leaves = dict(zip(placeholders(program.graph), program.leaves, strict=True))
    if any(leaf.position < 0 for leaf in leaves.values()):
        raise NotDifferentiable("its backward holds a tensor of its own")
    inputs = {names[leaf.position]: node for node, leaf in leaves.items()}
    graph, env = fx.Graph(), {}
    for name in order:
        new = graph.create_node("placeholder", name, name=name)
        new.meta.update(type=TensorType.of(examples[name]), source="")
        if name in inputs:
            env[inputs[name]] = new
    copy_nodes(graph, calls(program.graph), env)
    state = tuple(env[n] for n in results(program.graph))
    graph.output((*state, *state))
    return graph


def as_products(graph: fx.Graph) -> None:
    """Derivatives as factors that do not hang on the cotangent: they are computed for all steps at once.

    tanh_backward(g, y)    -->   g (1 - y y)
    sigmoid_backward(g, y) -->   g (y (1 - y))
    """
    for node in calls(graph):
        if node.target not in (aten.tanh_backward.default, aten.sigmoid_backward.default):
            continue
        g, y = node.args

        def call(target: Any, *args: Any) -> fx.Node:
            with graph.inserting_before(node):  # noqa: B023
                made = graph.call_function(target, args)
            made.meta.update(node.meta)  # noqa: B023
            return made

        if node.target is aten.tanh_backward.default:
            slope = call(aten.rsub.Scalar, call(aten.mul.Tensor, y, y), 1)
        else:
            slope = call(aten.mul.Tensor, y, call(aten.rsub.Scalar, y, 1))
        node.replace_all_uses_with(call(aten.mul.Tensor, g, slope))
        graph.erase_node(node)
