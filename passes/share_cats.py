"""Share cats: concatenations of which each continues the one before it share one buffer.

    b = cat([x, f], 1); c = cat([x, f, g], 1)   -->   r = room(); b = extended(r, 0, [x, f]); c = extended(r, n, [g])

So a network that hands all features on to every layer copies each of them once, not once for each layer behind it. Only
where what comes before the dimension is of size one, and all parts are contiguous: then the leading part of the buffer is
laid out as the concatenation itself. A concatenation that is returned keeps memory of its own.
"""

from __future__ import annotations

from torch import fx, ops

from fxsolve import prims
from fxsolve.ir import TensorType, calls, contiguous_stride, results
from fxsolve.passes.chain import axis

aten = ops.aten
NAME = "share_cats"


def share_cats(graph: fx.Graph) -> fx.Graph:
    """A copy of the graph, for code generation: the new calls write into a buffer."""
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    cats = [n for n in calls(new) if fits(n) and n not in results(new)]
    longest: dict[fx.Node, fx.Node] = {}  # concatenation -> the longest one that begins with it
    for node in sorted(cats, key=parts_of_it):
        longest[node] = node
        for other in cats:
            if parts_of_it(other) > parts_of_it(longest[node]) and continues(other, node):
                longest[node] = other
    for root in dict.fromkeys(longest.values()):
        share(new, [n for n in cats if longest[n] is root or n is root])
    return new


def parts_of_it(cat: fx.Node) -> int:
    return len(cat.args[0])  # type: ignore[arg-type]


def fits(node: fx.Node) -> bool:
    """Whether a call is a concatenation whose leading parts are laid out as it is."""
    if node.target is not aten.cat.default:
        return False
    kinds: list[TensorType] = [n.meta["type"] for n in (node, *node.all_input_nodes)]
    lead = kinds[0].shape[: axis(node)]
    return all(k.stride == contiguous_stride(k.shape) and k.dtype == kinds[0].dtype for k in kinds) and set(lead) <= {1}


def continues(longer: fx.Node, shorter: fx.Node) -> bool:
    """Whether the parts of one concatenation begin with those of another, along the same dimension."""
    first = shorter.args[0]
    return axis(longer) == axis(shorter) and longer.args[0][: len(first)] == first  # type: ignore[index, arg-type]


def share(graph: fx.Graph, cats: list[fx.Node]) -> None:
    """Rewrites concatenations, each of which continues the one before it, in the graph's order."""
    lengths = [parts_of_it(n) for n in cats]
    if len(cats) < 2 or lengths != sorted(set(lengths)):
        return
    root, dim = cats[-1], axis(cats[-1])
    with graph.inserting_before(cats[0]):
        like = cats[0].args[0][0]  # type: ignore[index]
        room = graph.call_function(prims.room, (like, root.meta["type"].shape))
    room.meta.update(root.meta)
    done, count = 0, 0
    for node in cats:
        added = list(node.args[0])[count:]  # type: ignore[arg-type]
        with graph.inserting_before(node):
            view = graph.call_function(prims.extended, (room, done, added, dim))
        view.meta.update(node.meta)
        node.replace_all_uses_with(view)
        graph.erase_node(node)
        done, count = node.meta["type"].shape[dim], count + len(added)
