"""Small tools that several passes share: copying parts of fx graphs, and what depends on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from fxsolve.ir import results


def copy_nodes(graph: fx.Graph, nodes: Iterable[fx.Node], env: dict[fx.Node, fx.Node]) -> None:
    """Copies nodes in order into `graph`; `env` maps old nodes to new ones and grows."""
    for node in nodes:
        env[node] = graph.node_copy(node, lambda n: env[n])


def placeholder_like(graph: fx.Graph, node: fx.Node, name: str) -> fx.Node:
    """A placeholder named `name` with the type of `node`."""
    new = graph.create_node("placeholder", name, name=name)
    new.meta.update(type=node.meta.get("type"), source=node.meta.get("source", ""))
    return new


def depending_on(graph: fx.Graph, start: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on any of `start`, those included."""
    found = set(start)
    for node in graph.nodes:
        if node.op != "output" and any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def needed_for(wanted: Iterable[fx.Node], inside: Callable[[fx.Node], bool] = lambda node: True) -> set[fx.Node]:
    """The nodes that `wanted` depends on, those included, walking only through nodes that are `inside`."""
    found: set[fx.Node] = set()
    pending = [n for n in wanted if inside(n)]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += [n for n in node.all_input_nodes if inside(n)]
    return found


def parted(graph: fx.Graph, moving: Iterable[fx.Node]) -> tuple[fx.Graph, fx.Graph]:
    """(what does not depend on the `moving` placeholders, the rest): the second takes them, then what the first returns."""
    moving = list(moving)
    depends = depending_on(graph, moving)
    still = [n for n in graph.nodes if n not in depends and n.op != "output"]
    handed_on = [n for n in still if any(u in depends or u.op == "output" for u in n.users)]
    first, second = fx.Graph(), fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    copy_nodes(first, still, env)
    first.output(tuple(env[n] for n in handed_on))
    env = {n: placeholder_like(second, n, n.name) for n in moving}
    env |= {n: placeholder_like(second, n, f"u{i}") for i, n in enumerate(handed_on)}
    copy_nodes(second, [n for n in graph.nodes if n in depends and n not in env], env)
    second.output(tuple(env[n] for n in results(graph)))
    return first, second
