"""Builds the picture of one program: the calls outside, one cluster for each equation block, the edges between.

What is in which cluster is said here; what is joined into one node in fold.py, what a node says in labels.py.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import graphviz
from torch import fx

from fxsolve import ir, prims
from fxsolve.passes.chain import is_heavy
from fxsolve.passes.graphs import depending_on, needed_for
from fxsolve.plan import Runner
from fxsolve.visualize.canvas import Canvas, End
from fxsolve.visualize.fold import RULES, Group, Item, fold
from fxsolve.visualize.labels import (
    caption,
    function_at,
    group_lines,
    group_tip,
    last_parts,
    layer_lines,
    op_label,
    op_name,
    short,
    tooltip,
    typed,
)
from fxsolve.visualize.roles import ORDER, draws, layer_role, outer_role, roles_of, slot_buffers

ALL, PAGE = 40, 20  # a program of more calls than the first number is drawn with as many nodes as the second one says,
LEAST = 3  # each place having its share, but so many at least
EQUATION = 8  # the nodes of an equation where several are drawn one by one
LEAVES, ROWS = 10, 6  # parameters, and stacked inputs of a step, that are drawn one by one
NAMES = 20  # leaves that a tooltip names

Ends = dict[fx.Node, Any]  # the end of each node; of a call with several results, a list of ends


class Drawing:
    """Draws a program; with `unfold`, so many equations of each block one after another.

    runners: how each block is solved, where that is known. changed: calls that are framed, as what a pass made.
    """

    def __init__(
        self, program: ir.Program, runners: Mapping[str, Runner], unfold: int = 0, changed: Container[fx.Node] = frozenset()
    ) -> None:
        self.program, self.runners, self.unfold, self.changed = program, runners, unfold, changed
        self.canvas = Canvas()
        self.outside = self.canvas.digraph
        self.total = sum(1 for _ in ir.calls(program.graph)) + sum(map(size, program.blocks.values()))
        self.draw_program()
        self.digraph = self.canvas.finished()

    # -- the program ------------------------------------------------------------------------------

    def draw_program(self) -> None:
        graph, weak = self.program.graph, self.canvas.weak
        ends = self.leaves()
        given = [n for n, leaf in zip(ir.placeholders(graph), self.program.leaves, strict=True) if leaf.kind == "argument"]
        active = depending_on(graph, [*given, *(n for n in graph.nodes if draws(n, self.program))])
        weak |= {name for n, end in ends.items() if n not in active for name in end}
        waiting: list[fx.Node] = []  # calls since the last block: a block is never inside a folded run
        for node in graph.nodes:
            if node.op == "call_function":
                waiting.append(node)
            elif node.op in ("call_module", "output"):
                self.calls(self.outside, waiting, {n: outer_role(n) for n in waiting}, ends, "n")
                weak |= {name for n in waiting if n not in active for name in names_in(ends[n])}
                weak -= {name for n in waiting if n in active for name in names_in(ends[n])}  # a folded node may hold both
                waiting = []
            if node.op == "call_module":
                ends[node] = self.block(str(node.target), [[ends[n] for n in group] for group in node.args])
                weak |= set() if node in active else set(names_in(ends[node]))
        self.results([ends[n] for n in ir.results(graph)])

    def leaves(self) -> Ends:
        """The nodes of what comes in; where many parameters or constants do, one node for all of a kind."""
        ends: Ends = {}
        kinds: dict[str, list[tuple[fx.Node, Any]]] = {}
        for node, leaf in zip(ir.placeholders(self.program.graph), self.program.leaves, strict=True):
            ends[node] = ()
            if node.users:
                kinds.setdefault(leaf.kind, []).append((node, leaf))
        for kind, found in kinds.items():
            if len(found) <= LEAVES or kind == "argument":
                for node, leaf in found:
                    label = [last_parts(leaf.name), typed(node)]
                    ends[node] = self.canvas.node(self.outside, "leaf", label, f"{kind} {leaf.name}")
                continue
            names = [leaf.name for _, leaf in found]
            tip = "\n".join(names[:NAMES]) + (f"\nand {len(names) - NAMES} more" if len(names) > NAMES else "")
            numbers = sum(leaf.tensor.numel() for _, leaf in found)
            end = self.canvas.node(self.outside, "leaf", [f"{len(found)} {kind}s", f"{short(numbers)} numbers"], tip)
            ends |= dict.fromkeys((node for node, _ in found), end)
            self.canvas.folded[kind] = f"all {len(found)} {kind}s are one node"
        return ends

    def results(self, ends: Sequence[End]) -> None:
        """One node for each result and each mutated leaf, one for all values that are guarded."""
        program = self.program
        names = [f"result {i}" if len(program.outputs) > 1 else "result" for i in range(len(program.outputs))]
        names += [f"{program.leaves[i].name}, written in place" for i in program.mutated]
        for name, end in zip(names, ends, strict=False):
            self.canvas.edge(end, self.canvas.node(self.outside, "result", [name]))
        guarded = ends[len(names) :]
        if guarded:
            check = self.canvas.node(self.outside, "result", [f"{len(guarded)} checks of values that Python branched on"])
            for end in guarded:
                self.canvas.edge(end, check)

    # -- blocks -----------------------------------------------------------------------------------

    def block(self, name: str, groups: list[list[End]]) -> list[End]:
        """One block's cluster; returns the ends of what the block returns."""
        runner, block = self.runners.get(name), self.program.blocks[name]
        assert not isinstance(block, ir.FixedPoint)  # a runner lowers a loop to one; programs hold loops
        shown = min(self.unfold, block.length)
        drawn = "runs of like layers drawn as one" if isinstance(block, ir.Chain) else "one step drawn"
        lines = caption(block, runner, f"{shown} drawn one by one" if shown else drawn)
        cluster, head = self.canvas.block(name, lines, tooltip(block.source))
        if isinstance(block, ir.Chain):
            ends = self.chain(cluster, block, runner, groups[2], shown)
        elif shown:
            ends = self.equations(cluster, head, block, groups, shown)
        else:
            carried, ends = self.step(cluster, block, groups, "t", f"{name}-")
            for state, end, start in zip(carried, ends, groups[0], strict=False):
                self.canvas.edge((head,), state, "order")
                self.canvas.edge(start, state)
                self.canvas.edge(end, state, "carried back")
        self.outside.subgraph(cluster)
        return ends

    def equations(
        self, cluster: graphviz.Digraph, head: str, block: ir.Recurrence, groups: list[list[End]], shown: int
    ) -> list[End]:
        """The first steps of a loop, one below the other, and what stands for the rest."""
        states, stacked, consts = groups
        outs: list[End] = [() for _ in range(block.outputs)]
        last: End = (head,)
        if shown > 1 and any(consts):
            self.canvas.folded["invariant"] = "what is the same in all steps is drawn into the first one only"
        for number in range(shown):
            t = block.length - number if block.reverse else number + 1
            place = f"{block.name}-t{t}-"
            inner = self.canvas.equation(f"{block.name}-t{t}", f"t = {t}", f"equation {t} of {block.length}")
            read = consts if number == 0 else [() for _ in consts]
            carried, after = self.step(inner, block, [states, stacked, read], str(t), place)
            cluster.subgraph(inner)
            for end, state in zip(states, carried, strict=True):
                self.canvas.edge(end, state, "carried" if number else "")
            count = self.canvas.names[place]
            if count:
                below = count if number else 1  # all of an equation, so that none stands beside the one before
                self.canvas.edge(last, tuple(f"{place}{n + 1}" for n in range(below)), "order")
                last = (f"{place}{count}",)
            states, ys = after[: block.carries], after[block.carries :]
            outs = [(*out, *y) for out, y in zip(outs, ys, strict=True)]
        if shown < block.length:
            rest = self.canvas.ellipsis(cluster, block.name, f"{block.length - shown} more equations like these")
            self.canvas.edge(last, rest, "order")
            for end in states:
                self.canvas.edge(end, rest, "carried")
            for end in stacked:
                self.canvas.edge(end, rest)
            states, outs = [rest for _ in states], [(*out, *rest) for out in outs]
        return [*states, *outs]

    def step(
        self, cluster: graphviz.Digraph, block: ir.Recurrence, groups: list[list[End]], t: str, place: str
    ) -> tuple[list[End], list[End]]:
        """One step's nodes: (the ends of its states before it, those of what it returns)."""
        step, slots = block.step, slot_buffers(block)
        roles = roles_of(step, self.runners.get(block.name))
        ends: Ends = dict.fromkeys(ir.placeholders(step, ir.INDEX), ())
        ends |= zip(ir.placeholders(step, ir.CONST), groups[2], strict=True)
        carried: list[End] = []
        for number, node in enumerate(ir.placeholders(step, ir.CARRY)):
            slot = number in slots
            label = [f"buffer {node.name}: slot {t} is written" if slot else f"state {node.name}", typed(node)]
            ends[node] = self.canvas.node(cluster, "state", label, place=place, shape="cylinder" if slot else "")
            carried.append(ends[node])
        self.rows(cluster, ir.placeholders(step, ir.STACKED), groups[1], t, ends, place)
        ordered = sorted(ir.calls(step), key=lambda n: ORDER.get(roles[n], 1))
        self.calls(cluster, ordered, roles, ends, place, t)
        return carried, [ends[n] for n in ir.results(step)]

    def rows(
        self, cluster: graphviz.Digraph, nodes: Sequence[fx.Node], stacked: Sequence[End], t: str, ends: Ends, place: str
    ) -> None:
        """The nodes of a step's rows of stacked inputs; one for all where there are many."""
        if len(nodes) > ROWS:
            label = [f"row {t} of {nodes[0].name} to {nodes[-1].name}", f"{len(nodes)} inputs"]
            ends |= dict.fromkeys(nodes, self.canvas.node(cluster, "leaf", label, "\n".join(map(typed, nodes)), place))
            self.canvas.folded["rows"] = "the rows of many stacked inputs are one node"
        for node, end in zip(nodes, stacked, strict=True):
            if len(nodes) <= ROWS:
                ends[node] = self.canvas.node(cluster, "leaf", [f"row {t} of {node.name}", typed(node)], place=place)
            self.canvas.edge(end, ends[node])

    def chain(
        self, cluster: graphviz.Digraph, block: ir.Chain, runner: Runner | None, consts: list[End], shown: int
    ) -> list[End]:
        """A chain's layers, like ones as one node; or the first ones call by call, and what stands for the rest."""
        graph, role, name = block.layers, layer_role(runner), block.name
        states, wanted = ir.placeholders(graph, ir.CARRY), ir.results(graph)
        ends: Ends = dict(zip(ir.placeholders(graph, ir.CONST), consts, strict=True))
        insides = [needed_for([n]) for n in wanted]
        layers = [[n for n in graph.nodes if n in inside and n.op == "call_function"] for inside in insides]
        reads = [dict.fromkeys(m for n in layer for m in n.all_input_nodes if m.op == "placeholder") for layer in layers]
        for number in range(shown):
            source = wanted[number].meta.get("source") or ""
            inner = self.canvas.equation(f"{name}-s{number}", f"s{number}", tooltip(source))
            self.calls(inner, layers[number], dict.fromkeys(layers[number], role), ends, f"{name}-s{number}-")
            ends[states[number]] = ends[wanted[number]]
            cluster.subgraph(inner)
        if shown and shown < block.length:
            rest = self.canvas.ellipsis(cluster, name, f"s{shown} to s{block.length - 1}: {block.length - shown} more layers")
            for node in dict.fromkeys(n for layer in reads[shown:] for n in layer):
                self.canvas.edge(ends.get(node, ()), rest)
            ends |= dict.fromkeys(states[shown:], rest)
        items = [self.layer(number, role, wanted[number], layer) for number, layer in enumerate(layers)]
        for group in self.fold([] if shown else items):
            numbers = [item.key for item in group.items]
            skips = any(states[m] in reads[n] for n in numbers for m in numbers if m < n - 1)
            changed = any(item.changed for item in group.items)
            end = self.canvas.node(cluster, role, layer_lines(group, skips), group_tip(group), f"{name}-", changed=changed)
            ends |= dict.fromkeys((states[n] for n in numbers), end)
            for node in dict.fromkeys(m for n in numbers for m in reads[n]):
                self.canvas.edge(ends[node], end)
        return [ends[n] for n in states]

    # -- calls ------------------------------------------------------------------------------------

    def calls(
        self,
        graph: graphviz.Digraph,
        nodes: Sequence[fx.Node],
        roles: Mapping[fx.Node, str],
        ends: Ends,
        place: str,
        t: str = "t",
    ) -> None:
        """The calls of one place, folded; taking a part of a call's results is no node of its own."""
        items = [self.item(n, roles[n]) for n in nodes if not ir.is_getitem(n)]
        for group in self.fold(items, EQUATION if self.unfold > 1 and graph is not self.outside else 0):
            first = group.items[0]
            single = len(group.items) == 1
            label = [op_label(first.key, t), first.type] if single else group_lines(group)
            tip = tooltip(first.source) if single else group_tip(group)
            shape = "cylinder" if first.key.target is prims.write else ""
            changed = any(item.changed for item in group.items)
            end = self.canvas.node(graph, group.role, label, tip, place, shape, changed)
            ends |= {item.key: end for item in group.items}
        for node in nodes:
            if ir.is_getitem(node):
                whole, part = node.args
                end = ends[whole]  # type: ignore[index]
                ends[node] = end[int(str(part))] if isinstance(end, list) else end
        for item in items:
            for node in item.key.all_input_nodes:
                self.canvas.edge(ends[node], ends[item.key])

    def fold(self, items: Sequence[Item], limit: int = 0) -> list[Group]:
        """The items of a place in `limit` groups; without a limit in as many as the place's share of the page allows."""
        if not limit:
            limit = max(LEAST, round(PAGE * len(items) / self.total)) if self.total > ALL else len(items)
        groups = fold(items, limit)
        self.canvas.folded |= {group.rule: RULES[group.rule] for group in groups if group.rule}
        return groups

    def item(self, node: fx.Node, role: str) -> Item:
        source = node.meta.get("source") or ""
        return Item(node, role, source, function_at(source), source, (op_name(node),), typed(node), node in self.changed)

    def layer(self, number: int, role: str, state: fx.Node, calls: Iterable[fx.Node]) -> Item:
        """A layer of a chain: like others that end at the same line with the same type."""
        source, kind = state.meta.get("source") or "", typed(state)
        ops = [op_name(n) for n in sorted(calls, key=lambda n: not is_heavy(n)) if not ir.is_getitem(n)]
        changed = any(n in self.changed for n in calls)
        return Item(number, role, (source, kind), function_at(source), source, tuple(ops), kind, changed)


def size(block: ir.EquationBlock) -> int:
    """The calls of a step, or the layers of a chain: what there is to draw of a block."""
    return block.length if isinstance(block, ir.Chain) else sum(1 for _ in ir.calls(block.step))  # type: ignore[union-attr]


def names_in(end: Any) -> list[str]:
    """The dot nodes of an end, or of a list of ends."""
    return [name for part in end for name in names_in(part)] if isinstance(end, list) else list(end)
