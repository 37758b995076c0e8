"""What a picture is drawn on: nodes, clusters and edges in graphviz' language, and the legend of what occurs."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable

import graphviz

from fxsolve.visualize.roles import ROLES

FONT, INK, PALE, BLOCK, EQUATION = "Helvetica", "#5b6670", "#c3cad0", "#f6f8fa", "#ffffff"
CARRIED, CHANGED = "#1f6fd6", "#d6336c"
BUNDLE = 2  # edges from weights into one block that are drawn one by one

End = tuple[str, ...]  # the dot nodes that make a value; several where equations are drawn one by one, none for a number

EDGES = {  # by kind
    "": {"class": "edge"},
    "weak": {"class": "edge weak", "color": PALE},
    "carried": {"class": "edge carried", "color": CARRIED, "tooltip": "carried to the next step"},
    "carried back": {
        "class": "edge carried",
        "color": CARRIED,
        "style": "dashed",
        "constraint": "false",
        "tooltip": "carried to the next step",
    },
    "order": {"style": "invis"},  # only keeps what it joins one below the other
}


class Canvas:
    """A dot graph in the making. A node's name is its place, as `block0-` or `block0-t1-`, and its number there."""

    def __init__(self) -> None:
        self.used: set[str] = set()  # roles that occur
        self.folded: dict[str, str] = {}  # what was folded, for the legend: rule --> what it did
        self.weak: set[str] = set()  # nodes made of weights and constants alone: their edges are pale
        self.edges: Counter[tuple[str, str, str]] = Counter()  # (tail, head, kind): values
        self.names: Counter[str] = Counter()
        self.changes = False
        self.digraph = graphviz.Digraph("program")
        self.digraph.attr(rankdir="TB", nodesep="0.18", ranksep="0.28", compound="true", bgcolor="white")
        self.digraph.attr("graph", fontname=FONT, fontsize="11")
        self.digraph.attr("node", fontname=FONT, fontsize="10", style="filled", margin="0.09,0.05", height="0.3", width="0.3")
        self.digraph.attr("edge", fontname=FONT, fontsize="9", arrowsize="0.6", color=INK)

    def node(
        self,
        graph: graphviz.Digraph,
        role: str,
        lines: Iterable[str],
        tip: str = "",
        place: str = "n",
        shape: str = "",
        changed: bool = False,
    ) -> End:
        """Draws a node and returns its end."""
        self.used.add(role)
        self.changes |= changed
        self.names[place] += 1
        name = f"{place}{self.names[place]}"
        look = {"shape": shape or ROLES[role].shape, "fillcolor": ROLES[role].fill, "color": INK, "class": f"node {role}"}
        if changed:
            look |= {"color": CHANGED, "penwidth": "2.5", "class": f"node {role} changed"}
        label = graphviz.escape("\n".join(line for line in lines if line))
        graph.node(name, label, tooltip=graphviz.escape(tip or ROLES[role].meaning), id=name, **look)
        return (name,)

    def block(self, name: str, caption: Iterable[str], tip: str) -> tuple[graphviz.Digraph, str]:
        """A block's frame, and the node in it that says what it is (a node, so that edges go round it)."""
        cluster = frame(name, "", tip, "block", BLOCK)
        label = graphviz.escape("\n".join(caption) + "\n").replace("\n", "\\l")
        look = {"shape": "plaintext", "fillcolor": BLOCK, "fontsize": "11", "class": "caption"}
        cluster.node(f"head_{name}", label, tooltip=graphviz.escape(tip), **look)
        return cluster, f"head_{name}"

    def equation(self, name: str, label: str, tip: str) -> graphviz.Digraph:
        """The frame of one of several equations."""
        return frame(name, label, tip, "equation", EQUATION)

    def ellipsis(self, cluster: graphviz.Digraph, block: str, what: str) -> End:
        """What stands for a block's equations that are not drawn."""
        name = f"{block}-rest"
        cluster.node(name, f"⋮\n{what}", shape="plaintext", fillcolor=BLOCK, id=name, **{"class": "ellipsis"})
        return (name,)

    def edge(self, tails: End, heads: End, kind: str = "") -> None:
        """Edges from what makes a value to what reads it; none inside a node."""
        for tail in tails:
            for head in heads:
                if tail != head or kind:
                    self.edges[tail, head, kind] += 1

    def finished(self) -> graphviz.Digraph:
        """The graph with its edges and its legend."""
        bundled, weak = self.bundles(), EDGES["weak"]
        for tail, block in sorted(bundled):
            self.digraph.edge(tail, f"head_{block}", lhead=f"cluster_{block}", tooltip="read in several places", **weak)
        for (tail, head, kind), values in self.edges.items():
            if kind:
                self.digraph.edge(tail, head, **EDGES[kind])
            elif (tail, place(head)) not in bundled:
                tip = f"read {values} times" if values > 1 else "read once"
                self.digraph.edge(tail, head, tooltip=tip, **EDGES["weak" if tail in self.weak else ""])
        self.digraph.attr(label=self.legend(), labelloc="b")
        return self.digraph

    def bundles(self) -> set[tuple[str, str]]:
        """(weak node, block) where so many edges go into the block that one to its frame says more."""
        inside = [(tail, place(head)) for tail, head, kind in self.edges if tail in self.weak and "-" in head and not kind]
        return {pair for pair, edges in Counter(inside).items() if edges > BUNDLE}

    def legend(self) -> str:
        """What the colours that occur mean and what was folded, as an HTML-like label."""
        rows = [
            (f'BGCOLOR="{role.fill}" BORDER="1" COLOR="{INK}" WIDTH="26"', "", role.meaning)
            for name, role in ROLES.items()
            if name in self.used and name not in ("leaf", "result")
        ]
        kinds = {kind for _, _, kind in self.edges}
        if kinds & {"carried", "carried back"}:
            arrow = "- - &gt;" if "carried back" in kinds else "---&gt;"
            rows.append(("", f'<FONT COLOR="{CARRIED}">{arrow}</FONT>', "carried from each step to the next"))
        if any(tail in self.weak for tail, _, _ in self.edges):
            rows.append(("", f'<FONT COLOR="{PALE}">---&gt;</FONT>', "weights and constants, and what is made of them alone"))
        if self.changes:
            rows.append((f'BORDER="2" COLOR="{CHANGED}" WIDTH="26"', "", "made by this pass, or moved"))
        rows += [("", "folded", what) for what in self.folded.values()]
        table = "".join(f'<TR><TD {a}>{key}</TD><TD ALIGN="LEFT">{html.escape(said)}</TD></TR>' for a, key, said in rows)
        return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="3">{table}</TABLE>>' if rows else ""


def frame(name: str, label: str, tip: str, kind: str, fill: str) -> graphviz.Digraph:
    cluster = graphviz.Digraph(f"cluster_{name}")
    look = {"style": "rounded,filled", "fillcolor": fill, "color": INK, "margin": "12", "class": kind, "id": name}
    cluster.attr(label=label, tooltip=graphviz.escape(tip), **look)
    return cluster


def place(name: str) -> str:
    """The block that a node is in."""
    return name.partition("-")[0]
