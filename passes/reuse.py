"""Reuse memory: a call writes over an operand that nothing else needs.

    b = sigmoid(a); c = b * x   -->   b = a.sigmoid_(); c = b.mul_(x)      where a and b are new tensors with one reader each

What is allocated anew leaves the caches, and large tensors are mapped anew. Placeholders and what is returned are never
written, and a call keeps the strides that it had.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxsolve.ir import TensorType, is_getitem

aten = torch.ops.aten
NAME = "reuse"

IN_PLACE: dict[Any, Any] = {  # a method of tensors, or a function
    aten.sigmoid.default: "sigmoid_",
    aten.tanh.default: "tanh_",
    aten.relu.default: "relu_",
    aten.elu.default: aten.elu_.default,
    aten.exp.default: "exp_",
    aten.neg.default: "neg_",
    aten.abs.default: "abs_",
    aten.mul.Tensor: "mul_",
    aten.add.Tensor: "add_",
    aten.sub.Tensor: "sub_",
    aten.addcmul.default: "addcmul_",
}
COMMUTATIVE = frozenset({aten.mul.Tensor, aten.add.Tensor})
PRODUCTS = (aten.addmm.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default)
NEW = frozenset({*IN_PLACE, *PRODUCTS, aten.cat.default, aten.constant_pad_nd.default})
NEW_FIRST = frozenset({aten.native_batch_norm.default})  # of several results the first one


def reuse(graph: fx.Graph) -> fx.Graph:
    """A copy of the graph whose elementwise calls write over an operand where they can."""
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    dense: set[fx.Node] = set()  # values with memory of their own
    for node in list(new.nodes):
        if node.op != "call_function" or node.kwargs:
            continue
        if node.target in NEW or (is_getitem(node) and node.args[1] == 0 and node.args[0].target in NEW_FIRST):  # type: ignore[union-attr]
            dense.add(node)
        args = written_over(node, dense)
        if args is not None:
            with new.inserting_before(node):
                twin = IN_PLACE[node.target]
                call = new.call_method(twin, args) if isinstance(twin, str) else new.call_function(twin, args)
            call.meta.update(node.meta)
            node.replace_all_uses_with(call)
            new.erase_node(node)
            if args[0] in dense:
                dense.add(call)
    return new


def written_over(node: fx.Node, dense: set[fx.Node]) -> tuple[Any, ...] | None:
    """The call's arguments, first the one to write over; None if it needs memory of its own."""
    if node.target not in IN_PLACE:
        return None
    orders = [node.args, node.args[::-1]] if node.target in COMMUTATIVE else [node.args]
    for args in orders:
        first = args[0]
        if not isinstance(first, fx.Node) or len(first.users) != 1 or first in args[1:] or not same_type(first, node):
            continue
        if first in dense or (len(args) == 1 and is_part(first, dense)):
            return args
    return None


def is_part(node: fx.Node, dense: set[fx.Node]) -> bool:
    """Whether a value is one of the parts that a product is split into, each read once: they share no memory.

    What is computed from a part elementwise gets memory of its own all the same: it would keep the whole product alive.
    """
    whole = node.args[0] if is_getitem(node) else None
    if not isinstance(whole, fx.Node) or whole.target is not aten.unsafe_split.Tensor:
        return False
    places = [u.args[1] for u in whole.users if is_getitem(u)]
    product = whole.args[0]
    return product in dense and len(product.users) == 1 and len(set(places)) == len(whole.users)  # type: ignore[union-attr]


def same_type(a: fx.Node, b: fx.Node) -> bool:
    kinds = a.meta.get("type"), b.meta.get("type")
    if not all(isinstance(k, TensorType) for k in kinds):
        return False
    return kinds[0] == kinds[1]
