"""When a drawn call runs: the colours and shapes of a picture, and what its legend says of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxsolve import prims
from fxsolve.ir import CARRY, Chain, EquationBlock, Program, placeholders, results
from fxsolve.passes.clean import is_random_target
from fxsolve.passes.graphs import depending_on, needed_for
from fxsolve.plan import Runner
from fxsolve.solvers import GaussSeidel


@dataclass(frozen=True)
class Role:
    """How a node looks, and what the legend says."""

    fill: str
    meaning: str
    shape: str = "box"


ROLES = {  # the keys are classes of the SVG's nodes
    "leaf": Role("#e9edf0", "comes in: arguments, parameters, constants", "note"),
    "once": Role("#ffffff", "once, outside the blocks: what is the same in all their steps is hoisted to here"),
    "noise": Role("#fff0b8", "random draws of all steps, hoisted before the block"),
    "early": Role("#ffdcc7", "for all steps at once, before the sweeps"),
    "state": Role("#bfdcff", "state: what a step hands on, or a buffer of which it writes its slot (cylinder)", "ellipse"),
    "swept": Role("#cdeed6", "in every sweep"),
    "late": Role("#e5d5f5", "for all steps at once, after the sweeps"),
    "in-order": Role("#dfe3e6", "step after step, in order"),
    "result": Role("#e9edf0", "results", "note"),
}
ORDER = {"early": 0, "late": 2}  # the parts of a step; what is between is 1


def roles_of(step: fx.Graph, runner: Runner | None) -> dict[fx.Node, str]:
    """When each call of a block's step runs under the block's plan; a block without a plan runs in order."""
    plan = None if runner is None else runner.plan
    nodes = [n for n in step.nodes if n.op == "call_function"]
    if plan is None or plan.in_order or plan.kind == "Repeat":
        return {n: "state" if n.target is prims.write else "in-order" for n in nodes}
    if plan.kind == "FixedPoint":
        return {n: "state" if n.target is prims.write else "swept" for n in nodes}
    carries = placeholders(step, CARRY)
    stateful = depending_on(step, carries)
    core = needed_for(results(step)[: len(carries)], lambda n: n in stateful)
    walked = "in-order" if isinstance(plan.solver, GaussSeidel) else "swept"
    return {n: walked if n in core else "late" if n in stateful else "early" for n in nodes}


def outer_role(call: fx.Node) -> str:
    """When a call outside of the blocks runs."""
    return "noise" if call.target in (prims.draw, prims.draws) else "once"


def draws(node: fx.Node, program: Program) -> bool:
    """Whether a node draws random numbers, or calls a block whose steps do."""
    if node.op == "call_module":
        return any(draws(n, program) for n in program.blocks[str(node.target)].body.nodes)  # type: ignore[union-attr]
    return node.op == "call_function" and is_random_target(node.target)


def layer_role(runner: Runner | None) -> str:
    """When the layers of a chain run."""
    return "in-order" if runner is None or runner.plan is None or runner.plan.in_order else "swept"


def slot_buffers(block: EquationBlock) -> set[int]:
    """The carries of a loop of which each step writes a slot."""
    if isinstance(block, Chain):
        return set()
    after = results(block.step)[: len(placeholders(block.step, CARRY))]  # type: ignore[union-attr]
    return {number for number, node in enumerate(after) if node.target is prims.write}
