"""Split a step: hoist what does not depend on the state, and put off what the state does not depend on.

    s_t, y_t = h(s_{t-1}, x_t)   -->   u_t = pre(x_t);   s_t = core(s_{t-1}, u_t);   y_t = post(s_{t-1}, s_t, u_t)

`pre` is computed for all T at once before the block is solved (input projections become one matrix product), `post` for
all T at once afterwards (readouts), in any schedule. Only `core` is solved for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx

from fxsolve.ir import CARRY, CONST, INDEX, STACKED, Recurrence, calls, is_getitem, placeholders, results
from fxsolve.passes.graphs import copy_nodes, depending_on, needed_for, placeholder_like

NAME = "split step"


@dataclass(frozen=True)
class SplitStep:
    """The three parts of a step.

    pre:  (x.., i.., c..) -> hoisted values `u..`
    core: (s.., u.., i.., c..) -> new carries, then extra values `e..`
    post: (s.., n.., e.., u.., i.., c..) -> values; n are the new carries
    outputs: for each stacked output ("carry" | "extra" | "pre" | "post", number)
    All placeholders named `i` and `c` of the step are kept in each part, in order.
    """

    pre: fx.Graph
    core: fx.Graph
    post: fx.Graph
    hoisted: int
    extras: int
    outputs: tuple[tuple[str, int], ...]


def split_step(block: Recurrence, goes_ahead: Callable[[fx.Node], bool] = lambda call: True) -> SplitStep:
    """The parts of a recurrence's step; a call that does not go ahead is kept with those that need the state."""
    graph = block.step
    carries = placeholders(graph, CARRY)
    returned = results(graph)
    new_carries, outputs = returned[: block.carries], returned[block.carries :]
    stateful = depending_on(graph, [*carries, *(n for n in calls(graph) if not goes_ahead(n))])
    core = needed_for(new_carries, lambda n: n in stateful and n.op == "call_function")
    core |= {n for n in stateful if is_getitem(n) and n.args[0] in core}  # parts of a result stay with it
    late = needed_for(outputs, lambda n: n in stateful and n.op == "call_function") - core
    varying = depending_on(graph, placeholders(graph, STACKED) + placeholders(graph, INDEX))

    def is_hoisted(node: fx.Node) -> bool:
        index = node.op == "placeholder" and node.name.startswith(INDEX)
        const = node.op == "placeholder" and node.name.startswith(CONST)
        return node not in stateful and not index and not const and (node in varying or node.op == "call_function")

    used = [n for m in graph.nodes if m in core or m in late for n in m.all_input_nodes if is_hoisted(n)]
    constants = [n for n in outputs if n.op == "placeholder" and n.name.startswith(CONST)]
    hoisted = list(dict.fromkeys(used + [n for n in returned if is_hoisted(n)] + constants))
    late_inputs = [n for m in graph.nodes if m in late for n in m.all_input_nodes]
    extras = list(dict.fromkeys(n for n in [*late_inputs, *outputs] if n in core and n not in new_carries))
    finals = [n for n in dict.fromkeys(outputs) if n in late or n in carries]
    parts = Parts(graph, carries, new_carries, hoisted, extras)
    places: list[tuple[str, int]] = []
    for node in outputs:
        if node in new_carries:
            places.append(("carry", new_carries.index(node)))
        elif node in extras:
            places.append(("extra", extras.index(node)))
        elif node in finals:
            places.append(("post", finals.index(node)))
        else:
            places.append(("pre", hoisted.index(node)))
    return SplitStep(parts.pre(), parts.core(core), parts.post(late, finals), len(hoisted), len(extras), tuple(places))


@dataclass(frozen=True)
class Parts:
    """Builds the three graphs."""

    step: fx.Graph
    carries: list[fx.Node]
    new_carries: tuple[fx.Node, ...]
    hoisted: list[fx.Node]
    extras: list[fx.Node]

    def start(self, groups: list[tuple[str, list[fx.Node]]]) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        """A graph with the given placeholders, then the step's index constants and invariants."""
        graph, env = fx.Graph(), {}
        for prefix, nodes in groups:
            for i, node in enumerate(nodes):
                new = placeholder_like(graph, node, f"{prefix}{i}")
                env.setdefault(node, new)
        for node in placeholders(self.step, INDEX) + placeholders(self.step, CONST):
            env[node] = placeholder_like(graph, node, node.name)
        return graph, env

    def pre(self) -> fx.Graph:
        graph, env = self.start([(STACKED, placeholders(self.step, STACKED))])
        inside = needed_for(self.hoisted, lambda n: n.op == "call_function")
        copy_nodes(graph, [n for n in self.step.nodes if n in inside], env)
        graph.output(tuple(env[n] for n in self.hoisted))
        return graph

    def core(self, inside: set[fx.Node]) -> fx.Graph:
        graph, env = self.start([(CARRY, self.carries), ("u", self.hoisted)])
        copy_nodes(graph, [n for n in self.step.nodes if n in inside], env)
        graph.output(tuple(env[n] for n in [*self.new_carries, *self.extras]))
        return graph

    def post(self, inside: set[fx.Node], finals: list[fx.Node]) -> fx.Graph:
        groups = [(CARRY, self.carries), ("n", list(self.new_carries)), ("e", self.extras), ("u", self.hoisted)]
        graph, env = self.start(groups)
        copy_nodes(graph, [n for n in self.step.nodes if n in inside], env)
        graph.output(tuple(env[n] for n in finals))
        return graph


def inputs_apart(
    block: Recurrence, goes_ahead: Callable[[fx.Node], bool] = lambda call: True
) -> tuple[fx.Graph, Recurrence]:
    """`pre`, and the rest of the step as a block whose stacked inputs are the values of `pre`."""
    split = split_step(block, goes_ahead)
    graph, env = fx.Graph(), {}
    for node in placeholders(block.step, CARRY):
        env[node.name] = placeholder_like(graph, node, node.name)
    for i, node in enumerate(results(split.pre)):
        env[f"u{i}"] = graph.create_node("placeholder", f"{STACKED}{i}", name=f"{STACKED}{i}")
        env[f"u{i}"].meta.update(type=node.meta["type"], source="")
    for node in placeholders(block.step, INDEX) + placeholders(block.step, CONST):
        env[node.name] = placeholder_like(graph, node, node.name)

    def inlined(part: fx.Graph) -> tuple[fx.Node, ...]:
        inner = {node: env[node.name] for node in placeholders(part)}
        copy_nodes(graph, [n for n in part.nodes if n.op == "call_function"], inner)
        return tuple(inner[n] for n in results(part))

    made = inlined(split.core)
    env |= {f"n{k}": node for k, node in enumerate(made[: block.carries])}
    env |= {f"e{k}": node for k, node in enumerate(made[block.carries :])}
    late = inlined(split.post)
    values = {"carry": made, "extra": made[block.carries :], "post": late}
    outputs = [env[f"u{k}"] if kind == "pre" else values[kind][k] for kind, k in split.outputs]
    graph.output((*made[: block.carries], *outputs))
    return split.pre, replace(block, step=graph, stacked=split.hoisted)
