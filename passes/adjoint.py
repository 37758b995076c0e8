"""Adjoint: the backward system of a Recurrence, itself a Recurrence, linear and in reverse.

    s_t, y_t = h(s_{t-1}, x_t, c)        -->        l_{t-1} = J_t^T l_t + K_t^T g_t,     t = T .. 1

with `l_t` the cotangent of s_t, `g_t` that of y_t, J_t and K_t the derivatives of s_t and y_t by s_{t-1}. The step is the
vector-Jacobian product that autograd takes of h, as ATen calls, the forward calls that it needs among them: what does not
hang on the cotangents is computed for all T at once when the block is solved (split_step). Gradients of x and c follow from
all l_t at once (pull_back). Song et al. 2021, section 4.1, sweep this system a fixed number of times.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from fxsolve.capture import Recorder
from fxsolve.ir import CARRY, CONST, INDEX, STACKED, Program, Recurrence, TensorType, calls, placeholders, results
from fxsolve.passes.build import build
from fxsolve.passes.clean import clean
from fxsolve.passes.functionalize import functionalize
from fxsolve.passes.graphs import copy_nodes
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.layouts import fresh, without_gaps
from fxsolve.tape import Output

aten = torch.ops.aten
NAME = "adjoint"


class NotDifferentiable(Exception):
    """Why a block has no adjoint."""


@dataclass(frozen=True)
class Adjoint:
    """The backward program: (l_T.., states before each step.., stacked inputs.., g.., invariants..) -> (l_0.., dx.., l_t..).

    It calls one block, whose steps run in reverse. `moving`: the carries that have cotangents; `ended`: those of them
    whose state before a step has no gradient; `asked`: the outputs that have cotangents; `reached`: the stacked inputs that
    have gradients, dx.
    """

    program: Program
    moving: tuple[int, ...]
    ended: tuple[int, ...]
    asked: tuple[int, ...]
    reached: tuple[int, ...]


def adjoint(block: Recurrence) -> Adjoint:
    """The adjoint of a block. Raises NotDifferentiable."""
    if any(node.users for node in placeholders(block.step, INDEX)):
        raise NotDifferentiable("its steps address tensors by numbers that differ from step to step")
    block = replace(block, step=without_gaps(block.step))
    carries = placeholders(block.step, CARRY)
    given = [n.meta["type"] for prefix in (CARRY, STACKED, CONST) for n in placeholders(block.step, prefix)]
    returned = results(block.step)
    moving = tuple(k for k, node in enumerate(carries) if is_real(node.meta["type"]))
    asked = tuple(k for k, node in enumerate(returned[block.carries :]) if is_real(node.meta["type"]))
    if not moving or any(node.meta["type"].dtype.is_complex for node in [*carries, *returned]):
        raise NotDifferentiable("it carries no real state" if not moving else "it computes with complex numbers")
    lams = [carries[k].meta["type"] for k in moving]
    gs = [returned[block.carries + k].meta["type"] for k in asked]
    run = fx.GraphModule({}, block.step).forward
    varying = [i for i in range(block.stacked) if is_real(given[block.carries + i])]
    ended: set[int] = set()
    reached: set[int] = set()

    def backward(*flat: torch.Tensor) -> Sequence[torch.Tensor]:
        cotangents, inputs = flat[: len(lams) + len(gs)], flat[len(lams) + len(gs) :]
        wanted = [*moving, *(block.carries + i for i in varying)]
        found = vector_jacobian(run, block, [*moving, *(block.carries + k for k in asked)], cotangents, inputs, wanted)
        state, dx = found[: len(moving)], found[len(moving) :]
        ended.update(k for k, g in zip(moving, state, strict=True) if g is None)
        reached.update(i for i, g in zip(varying, dx, strict=True) if g is not None)
        state = [torch.zeros_like(inputs[k]) if g is None else g for k, g in zip(moving, state, strict=True)]
        return [*state, *(g for g in dx if g is not None)]

    examples = [kind.empty().zero_() for kind in [*lams, *gs, *given]]
    count = block.carries + block.stacked
    before = [f"{STACKED}{i}" for i in range(count)]
    outer = [f"{STACKED}{count + i}" for i in range(len(gs))]
    names = [*(f"{CARRY}{i}" for i in range(len(lams))), *outer, *before, *(f"{CONST}{i}" for i in range(block.consts))]
    order = sorted(names, key=lambda name: (f"{CARRY}{STACKED}{CONST}".index(name[0]), int(name[1:])))
    graph = recorded(backward, dict(zip(names, examples, strict=True)), order, len(lams))
    as_products(graph)
    sizes = (len(lams), count + len(gs), block.consts, len(reached) + len(lams))
    reverse = Recurrence(f"{block.name}_adjoint", block.length, graph, *sizes, (), block.source, True)
    return Adjoint(hoist_invariants(calling(reverse)), moving, tuple(sorted(ended)), asked, tuple(sorted(reached)))


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


def vector_jacobian(
    run: Callable[..., Sequence[torch.Tensor]],
    block: Recurrence,
    results: Sequence[int],
    cotangents: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    wanted: Sequence[int],
) -> list[torch.Tensor | None]:
    """What autograd gives for the wanted ones of a step's inputs (s.., x.., c..), from cotangents of some of its results."""
    inputs = [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(inputs)]
    count = block.carries + block.stacked
    with torch.enable_grad():
        made = run(*inputs[:count], *(0 for _ in block.table), *inputs[count:])
    pairs = [(made[k], c) for k, c in zip(results, cotangents, strict=True) if made[k].requires_grad]
    if not pairs:
        return [None for _ in wanted]
    outputs, given = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, [inputs[i] for i in wanted], given, allow_unused=True))


def is_real(kind: TensorType) -> bool:
    return kind.dtype.is_floating_point


def recorded(
    fn: Callable[..., Sequence[torch.Tensor]], examples: Mapping[str, torch.Tensor], order: Sequence[str], carries: int = 0
) -> fx.Graph:
    """A function of named tensors as a graph, whose placeholders come in the given order; it also returns the first few."""
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
    graph.output((*(env[n] for n in results(program.graph)), *placeholders(graph)[:carries]))
    return graph


# f'(x) g of an elementwise f: linear in their first argument, g
SLOPES = (
    aten.tanh_backward.default, aten.sigmoid_backward.default, aten.softplus_backward.default, aten.elu_backward.default,
    aten.threshold_backward.default, aten.leaky_relu_backward.default, aten.hardtanh_backward.default,
    aten.gelu_backward.default, aten.silu_backward.default, aten.hardswish_backward.default, aten.mish_backward.default,
    aten.log_sigmoid_backward.default, aten.softshrink_backward.default, aten.hardsigmoid_backward.default,
)  # fmt: skip


def as_products(graph: fx.Graph) -> None:
    """Derivatives as factors that do not hang on the cotangent: they are computed for all steps at once.

    softplus_backward(g, x, ..)    -->   g * softplus_backward(1, x, ..)
    """
    for node in calls(graph):
        if node.target not in SLOPES:
            continue
        g, x = node.all_input_nodes[0], node.args[1]
        if not isinstance(x, fx.Node) or node.args[0] is not g or x.meta["type"] != node.meta["type"]:
            continue
        with graph.inserting_before(node):
            ones = graph.call_function(aten.ones_like.default, (x,))
            slope = graph.call_function(node.target, (ones, *node.args[1:]), node.kwargs)
            product = graph.call_function(aten.mul.Tensor, (g, slope))
        for made in (ones, slope, product):
            made.meta.update(node.meta)
        node.replace_all_uses_with(product)
        graph.erase_node(node)
