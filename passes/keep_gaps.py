"""Keep gaps: what eager computes in place, in a part of a tensor, stands there with gaps for the next call as well.

    g = gates[:, :8]; g.add_(x).sigmoid_()   -->   s = sigmoid(laid_out(add(g, x), strides of g))

An elementwise kernel takes whole vectors along rows without gaps and the rest one by one, and rounds both differently:
the layout decides on the last bit of a sigmoid. For graphs that must give eager's bits; all others take dense values.
"""

from __future__ import annotations

import torch
from torch import fx

from fxsolve import prims
from fxsolve.ir import TensorType, calls
from fxsolve.passes.layouts import dense

NAME = "keep gaps"


def keep_gaps(graph: fx.Graph) -> fx.Graph:
    """A copy of the graph whose elementwise results have the strides that their types say."""
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    for node in list(calls(new)):
        kind = node.meta.get("type")
        elementwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        done = all(user.target is prims.laid_out for user in node.users)
        if isinstance(kind, TensorType) and elementwise and not dense(kind) and not done:
            with new.inserting_after(node):
                kept = new.call_function(prims.laid_out, (node, kind.stride))
            kept.meta.update(node.meta)
            node.replace_all_uses_with(kept, lambda user: user is not kept)  # noqa: B023
    return new
