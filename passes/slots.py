"""Slot buffers: a carried buffer of which step t writes only slot t.

    carry b; b' = write(b, v_t, slot t); b never read        -->   stacked output v;  b_T = write_slots(b_0, v)
    carry b; b' = write(b, v_t, slot t); v_t = head(net(b))  -->   FixedPoint: net in one pass, head for all slots at once

The first is an output that user code collects in a preallocated tensor. The second is an autoregressive loop; whether it
may be solved as a fixed point is for the causality proof to say (fxsolve.passes.causality).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fxsolve import prims
from fxsolve.ir import (
    CARRY,
    CONST,
    INDEX,
    STACKED,
    FixedPoint,
    Program,
    Recurrence,
    Slots,
    TensorType,
    contiguous_stride,
    placeholders,
    results,
)
from fxsolve.passes.graphs import copy_nodes, depending_on, needed_for, placeholder_like

aten = torch.ops.aten
NAME = "slots"
# the same memory, whole
VIEWS = (aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default) + (
    aten.permute.default, aten.transpose.int, aten.t.default, aten.alias.default,
)  # fmt: skip


def slot_write(block: Recurrence, carry: int) -> tuple[fx.Node, Slots] | None:
    """The write that makes the new content of a carried buffer, if it writes disjoint slots of that buffer."""
    chain = slot_writes(block, carry)
    return chain[0] if len(chain) == 1 else None


def slot_writes(block: Recurrence, carry: int) -> list[tuple[fx.Node, Slots]]:
    """The writes, one after the other, that make the new content of a carried buffer, if no two of their slots meet."""
    before = placeholders(block.step, CARRY)[carry]
    after: Any = original(results(block.step)[carry])
    chain: list[tuple[fx.Node, Slots]] = []
    while after.op == "call_function" and after.target is prims.write:
        _, _, size, stride, offset = after.args
        if isinstance(offset, fx.Node):
            offsets = block.table[placeholders(block.step, INDEX).index(offset)]
        else:
            offsets = (offset,) * block.length
        chain.append((after, Slots(tuple(size), tuple(stride), tuple(offsets))))
        after = original(after.args[0])
    if after is not before or not disjoint([slots for _, slots in chain], before.meta["type"]):
        return []
    return chain[::-1]


def original(node: Any) -> Any:
    """What a node is a copy of: `b = b.clone(); b[slot] = v`, as autograd asks of a buffer that was read, is `b[slot] = v`.

    Views that move nothing may lie between: seen with the same shape and strides, it is the same.
    """
    kind, found = node.meta["type"], node
    while node.op == "call_function" and (node.target in VIEWS or is_copy(node)):
        node = node.args[0]
        found = node if node.meta["type"] == kind else found
    return found


def is_copy(node: fx.Node) -> bool:
    """Whether a node copies its operand, strides and all."""
    return node.target is aten.clone.default and node.meta["type"] == node.all_input_nodes[0].meta["type"]


def disjoint(parts: Sequence[Slots], kind: TensorType) -> bool:
    """Whether no element belongs to two slots."""
    written = np.zeros(kind.numel, dtype=np.int64)
    for slots in parts:
        reach = sum(s * (n - 1) for s, n in zip(slots.stride, slots.shape, strict=True))
        if max(slots.offsets) + reach >= kind.numel:
            return False
        strides = [s * written.itemsize for s in slots.stride]
        for offset in slots.offsets:
            np.lib.stride_tricks.as_strided(written[offset:], slots.shape, strides)[...] += 1
    return bool((written <= 1).all())


def outputs_from_buffers(program: Program) -> Program:
    """Turns carried buffers that are only written into stacked outputs of their block."""
    blocks = dict(program.blocks)
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    items: dict[tuple[fx.Node, int], fx.Node] = {}
    for node in program.graph.nodes:
        block = blocks.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(block, Recurrence):
            blocks[block.name] = rewrite_call(graph, node, block, env, items)
        elif node.op == "call_function" and node.target is operator.getitem and (node.args[0], node.args[1]) in items:
            env[node] = items[(node.args[0], node.args[1])]  # type: ignore[index]
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
    return Program(graph, blocks, program.leaves, program.outputs, program.mutated, program.guards)


def write_only(block: Recurrence, carry: int) -> list[tuple[fx.Node, Slots]]:
    """The writes of a carried buffer that nothing in the step reads, nor returns before the last of them."""
    chain = slot_writes(block, carry)
    last = placeholders(block.step, CARRY)[carry]
    for write, _ in chain:
        if set(last.users) != {write}:
            return []
        last = write
    others = [n for i, n in enumerate(results(block.step)) if i != carry]
    return chain if last not in others and len(last.users) == 1 else []


def rewrite_call(
    graph: fx.Graph, node: fx.Node, block: Recurrence, env: dict[fx.Node, fx.Node], items: dict[tuple[fx.Node, int], fx.Node]
) -> Recurrence:
    """One block's call: the carries in `gone` leave it and come back as slots written after it."""
    gone = {k: found for k in range(block.carries) if (found := write_only(block, k))}
    kept = [k for k in range(block.carries) if k not in gone]
    step = fx.Graph()
    inner: dict[fx.Node, fx.Node] = {}
    carries = placeholders(block.step, CARRY)
    for i, k in enumerate(kept):
        inner[carries[k]] = placeholder_like(step, carries[k], f"{CARRY}{i}")
    dropped = {write for chain in gone.values() for write, _ in chain} | {carries[k] for k in gone}
    indices = placeholders(block.step, INDEX)
    used = [i for i, n in enumerate(indices) if any(user not in dropped for user in n.users)]
    for old in placeholders(block.step, STACKED):
        inner[old] = placeholder_like(step, old, old.name)
    for number, i in enumerate(used):
        inner[indices[i]] = placeholder_like(step, indices[i], f"{INDEX}{number}")
    dropped |= set(indices)
    rest = [n for n in block.step.nodes if n not in inner and n not in dropped and n.op != "output"]
    copy_nodes(step, rest, inner)
    returned = results(block.step)
    written: list[Any] = [write.args[1] for chain in gone.values() for write, _ in chain]
    outputs: list[fx.Node] = list(dict.fromkeys([*returned[block.carries :], *written]))
    step.output(tuple(inner[n] for n in [*(returned[k] for k in kept), *outputs]))
    table = tuple(block.table[i] for i in used)
    new = Recurrence(
        block.name, block.length, step, len(kept), block.stacked, block.consts, len(outputs), table, block.source
    )
    initial, stacked, consts = [[env[n] for n in group] for group in node.args]  # type: ignore[union-attr]
    call = graph.create_node(
        "call_module", block.name, (tuple(initial[k] for k in kept), tuple(stacked), tuple(consts)), name=block.name
    )
    types = [carries[k].meta["type"] for k in kept]
    types += [stack_type(n.meta["type"], block.length) for n in outputs]
    call.meta.update(type=tuple(types), source=node.meta["source"])
    env[node] = call

    def item(position: int) -> fx.Node:
        got = graph.call_function(operator.getitem, (call, position))
        got.meta.update(type=types[position], source=node.meta["source"])
        return got

    for i, k in enumerate(kept):
        items[(node, k)] = item(i)
    stacks = {value: item(len(kept) + i) for i, value in enumerate(outputs)}
    for i, value in enumerate(returned[block.carries :]):
        items[(node, block.carries + i)] = stacks[value]
    for k, chain in gone.items():
        whole = initial[k]
        for write, slots in chain:
            stack = stacks[write.args[1]]  # type: ignore[index]
            whole = graph.call_function(prims.write_slots, (whole, stack, slots.shape, slots.stride, slots.offsets))
            whole.meta.update(type=carries[k].meta["type"], source=node.meta["source"])
        items[(node, k)] = whole
    return new


def stack_type(kind: TensorType, count: int) -> TensorType:
    shape = (count, *kind.shape)
    return TensorType(shape, contiguous_stride(shape), kind.dtype, kind.device)


def fixed_point(block: Recurrence) -> FixedPoint | str:
    """The fixed-point form of a recurrence whose whole state is slot buffers; else the reason why it has none."""
    if block.carries == 0:
        return "it carries no state"
    writes = [slot_write(block, k) for k in range(block.carries)]
    for k, found in enumerate(writes):
        if found is None:
            return f"carried state {k} is not a buffer of which each step writes its own slot"
    graph = block.step
    carries = placeholders(graph, CARRY)
    write_nodes = [found[0] for found in writes if found is not None]
    varying = depending_on(graph, placeholders(graph, STACKED) + placeholders(graph, INDEX))
    stateful = depending_on(graph, carries)
    in_network = {n for n in stateful if n not in varying and n.op == "call_function"}
    values = [w.args[1] for w in write_nodes]
    outputs = results(graph)[block.carries :]
    if any(n in write_nodes for n in outputs):
        return "the whole buffer is an output of every step"
    head_nodes = needed_for([*values, *outputs], lambda n: n.op == "call_function" and n not in in_network)  # type: ignore[list-item]
    if head_nodes & set(write_nodes):
        return "a step reads its buffer after it wrote to it"
    readers = [n for m in graph.nodes if m in head_nodes for n in m.all_input_nodes] + [*values, *outputs]
    features = list(dict.fromkeys(n for n in readers if n in in_network or n in carries))
    network, net_env = fx.Graph(), {}
    for i, node in enumerate(carries):
        net_env[node] = placeholder_like(network, node, f"{CARRY}{i}")
    head, head_env = fx.Graph(), {}
    for i, node in enumerate(features):
        head_env[node] = placeholder_like(head, node, f"f{i}")
    for node in placeholders(graph, STACKED) + placeholders(graph, INDEX):
        head_env[node] = placeholder_like(head, node, node.name)
    for node in placeholders(graph, CONST):
        net_env[node] = placeholder_like(network, node, node.name)
        head_env[node] = placeholder_like(head, node, node.name)
    inside = needed_for(features, lambda n: n.op == "call_function")
    copy_nodes(network, [n for n in graph.nodes if n in inside], net_env)
    network.output(tuple(net_env[n] for n in features))
    copy_nodes(head, [n for n in graph.nodes if n in head_nodes], head_env)
    head.output(tuple(head_env[n] for n in [*values, *outputs]))  # type: ignore[index]
    return FixedPoint(
        block.name,
        block.length,
        network,
        head,
        block.carries,
        block.consts,
        len(features),
        block.stacked,
        block.outputs,
        block.table,
        tuple(found[1] for found in writes if found is not None),
        source=block.source,
    )
