"""Batching rules for gathers, scatters and regions, and for calls whose Python ints differ from element to element."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxsolve import prims
from fxsolve.errors import FxsolveError
from fxsolve.ir import TensorType, contiguous_stride
from fxsolve.passes.batcher import Batcher
from fxsolve.passes.batching import (
    FIXED,
    FOLD,
    LEAD,
    Call,
    Index,
    Value,
    aten,
    index_rule,
    rule,
)
from fxsolve.passes.batching_dims import along
from fxsolve.passes.batching_pointwise import pointwise
from fxsolve.passes.batching_regions import read_each, span, write_each


@rule(aten.embedding.default)
def embedding(b: Batcher, call: Call) -> Any:
    weight, indices = call["weight"], call["indices"]
    if weight.fixed:
        return b.value(b.emit_as(call), call.type, indices.form)
    return b.apply(aten.index.Tensor, call.type, weight, [indices])


@rule(aten.index_select.default)
def index_select(b: Batcher, call: Call) -> Any:
    x, index = call["self"], call["index"]
    if index.fixed:
        return along(b, call)
    if index.rank != 1 or x.rank == 0:
        return None
    return b.apply(aten.index.Tensor, call.type, x, [*[None] * (call["dim"] % x.rank), index])


@rule(aten.index.Tensor)
def index(b: Batcher, call: Call) -> Any:
    """`x[n][i[n], :, j[n]]`: a batched x is indexed by `arange(count)` too, unless the indices are the same for all.

    The indexed dimensions are replaced where they are if they are neighbours, else they come first (NumPy's rule).
    """
    x, indices = call["self"], list(call["indices"])
    given = [i for i in indices if i is not None]
    if any(i.dtype in (torch.bool, torch.uint8) for i in given):
        return None
    where = [k for k, i in enumerate(indices) if i is not None]
    neighbours = where == list(range(where[0], where[-1] + 1))
    first, rank = (where[0] if neighbours else 0), max(i.rank for i in given)
    if all(i.fixed for i in given):
        node = b.emit(aten.index.Tensor, b.lead(x), [None, *(i and i.node for i in indices)])
        return b.value(node if neighbours else _moved(b, node, rank, 1, 0), call.type, LEAD)
    aligned = [i and b.aligned(i, rank) for i in indices]
    if x.fixed:
        node = b.emit(aten.index.Tensor, x.node, aligned)
        return b.value(_moved(b, node, first, 1, 0), call.type, LEAD)
    node = b.emit(aten.index.Tensor, b.lead(x), [_lead_index(b, rank), *aligned])
    return b.value(_moved(b, node, 1, rank, first + 1), call.type, LEAD)


def _lead_index(b: Batcher, rank: int) -> fx.Node:
    """0, 1, .., count - 1 along the lead of a (count, *S) index with S of the given rank."""
    return b.emit(aten.reshape.default, b.emit(aten.arange.default, b.count, device=b.device), [b.count, *(1,) * rank])


def _moved(b: Batcher, node: fx.Node, source: int, length: int, target: int) -> fx.Node:
    """`length` dimensions from `source` on, moved to `target`."""
    dims = list(range(len(node.meta["type"].shape)))
    block, rest = dims[source : source + length], dims[:source] + dims[source + length :]
    order = rest[:target] + block + rest[target:]
    return node if order == dims else b.emit(aten.permute.default, node, order)


@rule(aten.index_put.default)
def index_put(b: Batcher, call: Call) -> Any:
    """`x[n][i[n]] = v[n]` for indices of leading dimensions (or of dimensions that are no neighbours)."""
    x, indices, value = call["self"], list(call["indices"]), call["values"]
    given = [i for i in indices if i is not None]
    where = [k for k, i in enumerate(indices) if i is not None]
    first_rows = where[0] == 0 or where != list(range(where[0], where[-1] + 1))
    if any(i.dtype in (torch.bool, torch.uint8) for i in given) or not first_rows:
        return None
    rank = max(i.rank for i in given)
    new = [_lead_index(b, rank), *(i and b.aligned(i, rank) for i in indices)]
    values = b.aligned(value, rank + x.rank - len(given))
    return b.value(b.emit_as(call, self=b.lead(x), indices=new, values=values), call.type, LEAD)


@rule(
    aten.gather.default,
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter.reduce,
    aten.scatter.value_reduce,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
    aten.select_scatter.default,
    aten.slice_scatter.default,
    aten._softmax_backward_data.default,
    aten._log_softmax_backward_data.default,
    aten.glu_backward.default,
)
def along_together(b: Batcher, call: Call) -> Any:
    """Several tensors along one dimension: all folded where that keeps rows together, else all behind the lead."""
    tensors = call.values
    rank = len(call.type.shape)
    if rank == 0 or any(v.rank == 0 for name, v in tensors.items() if name != "src"):
        return None
    dim = call["dim"] % rank
    rows = {v.shape[:1] for v in tensors.values()}
    form = FOLD if dim > 0 and len(rows) == 1 and all(v.form is FOLD for v in tensors.values()) else LEAD
    placed = {name: b.to(form, v) for name, v in tensors.items()}
    return b.value(b.emit_as(call, **placed, dim=dim + (form is LEAD)), call.type, form)


@rule(aten.index_add.default, aten.index_copy.default, aten.index_fill.int_Scalar)
def along_index(b: Batcher, call: Call) -> Any:
    """Writes along a dimension at indices that are the same for all n."""
    x = call["self"]
    if not call["index"].fixed or x.rank == 0:
        return None
    placed = {name: b.lead(v) for name, v in call.values.items() if name != "index"}
    return b.value(b.emit_as(call, **placed, dim=call["dim"] % x.rank + 1), call.type, LEAD)


@rule(aten.select_backward.default, aten.slice_backward.default)
def view_backward(b: Batcher, call: Call) -> Any:
    """A gradient put back into zeros of the view's input."""
    sizes = list(call["input_sizes"])
    changed = {"grad_output": b.lead(call["grad_output"]), "input_sizes": [b.count, *sizes]}
    return b.value(b.emit_as(call, **changed, dim=call["dim"] % len(sizes) + 1), call.type, LEAD)


@rule(aten.as_strided.default, aten.as_strided_copy.default, aten.as_strided_scatter.default)
def as_strided(b: Batcher, call: Call) -> Any:
    raise FxsolveError(
        f"{call.target} addresses storage, which a batch has not: write it as a read or write of a region"
    )


@rule(aten.take.default)
def take(b: Batcher, call: Call) -> Any:
    """`x.flatten()[i[n]]` for an x that is the same for all n."""
    return b.value(b.emit_as(call), call.type, call["index"].form) if call["self"].fixed else None


@rule(aten.masked_fill.Tensor)
@index_rule(aten.masked_fill.Scalar)
def masked_fill(b: Batcher, call: Call) -> Any:
    """A fill value for each n is no 0-d tensor any more: `where(mask, value, x)`."""
    value = call["value"]
    if isinstance(value, Value) and value.fixed:
        return pointwise(b, call)
    return b.apply(aten.where.self, call.type, call["mask"], value, call["self"])


CONSTANTS: dict[Any, int | None] = {
    aten.zeros_like.default: 0,
    aten.empty_like.default: 0,
    aten.new_zeros.default: 0,
    aten.new_empty.default: 0,
    aten.new_empty_strided.default: 0,
    aten.ones_like.default: 1,
    aten.new_ones.default: 1,
    aten.full_like.default: None,
    aten.new_full.default: None,
    aten.fill.Scalar: None,
}


@rule(*CONSTANTS)
def constant(b: Batcher, call: Call) -> Value:
    """What depends on the type of a batched tensor alone is the same for every n."""
    type: TensorType = call.type
    value = CONSTANTS[call.target]
    if value is None:
        value = call.args.get("fill_value", call.args.get("value"))
    shape, options = list(type.shape), {"dtype": type.dtype, "device": type.device}
    if type.stride == contiguous_stride(type.shape):
        return b.value(b.emit(aten.full.default, shape, value, **options), type, FIXED)
    empty = b.emit(aten.empty_strided.default, shape, list(type.stride), **options)
    return b.value(b.emit(aten.fill.Scalar, empty, value), type, FIXED)


@index_rule(
    aten.full.default, aten.full_like.default, aten.new_full.default, aten.fill.Scalar, aten.scalar_tensor.default
)
def filled(b: Batcher, call: Call) -> Any:
    """A tensor filled with a different int for each n."""
    type: TensorType = call.type
    name = next(name for name, a in call.args.items() if isinstance(a, Index))
    if name not in ("fill_value", "value", "s"):
        return None
    node = call[name].node
    if type.dtype is not torch.int64:
        node = b.emit(aten._to_copy.default, node, dtype=type.dtype)
    if type.shape:
        node = b.emit(aten.reshape.default, node, [b.count, *(1,) * len(type.shape)])
        node = b.emit(aten.expand.default, node, list(b.shape_in(LEAD, type.shape)))
    return b.value(node, type, LEAD)


@rule(aten._thnn_fused_gru_cell.default, aten._thnn_fused_lstm_cell.default)
def fused_cell(b: Batcher, call: Call) -> Any:
    """The fused cells work row by row on their gates and state."""
    if any(v.fixed != name.endswith("_bias") for name, v in call.values.items()):
        return None
    return b.values(b.emit_as(call, **{n: b.fold(v) for n, v in call.values.items() if not v.fixed}), call.type, FOLD)


@rule(prims.read)
def read(b: Batcher, call: Call) -> Value:
    base = call["base"]
    node = b.emit(read_each, b.lead(base), base.type.stride, call["size"], call["stride"], call["offset"])
    return b.value(node, call.type, LEAD)


@index_rule(prims.read)
def read_at(b: Batcher, call: Call) -> Value:
    """Regions at an offset for each n; of a fixed base, rows of the view of all its windows."""
    base, size, stride = call["base"], list(call["size"]), list(call["stride"])
    offset: Index = call["offset"]
    if not base.fixed:
        return b.value(b.emit(read_each, b.lead(base), base.type.stride, size, stride, offset.node), call.type, LEAD)
    room = span(base.shape, base.type.stride) - span(size, stride) + 1
    windows = b.emit(prims.read, base.node, [room, *size], [1, *stride], 0)
    return b.value(b.emit(aten.index.Tensor, windows, [offset.node]), call.type, LEAD)


@rule(prims.write)
@index_rule(prims.write)
def write(b: Batcher, call: Call) -> Value:
    base, value, offset = call["base"], call["value"], call["offset"]
    shape = list(b.shape_in(LEAD, base.shape))
    placed = b.aligned(value, len(call["size"]))
    at = offset.node if isinstance(offset, Index) else offset
    source = base.node if base.fixed else b.lead(base)
    node = b.emit(write_each, source, placed, shape, base.type.stride, call["size"], call["stride"], at)
    return b.value(node, call.type, LEAD)


def _position(b: Batcher, index: Index, size: int) -> Value:
    """The index counted from the front, as a 0-d tensor of the single step."""
    node = b.emit(aten.remainder.Scalar, index.node, size)
    return Value(node, TensorType((), (), torch.int64, b.device), LEAD)


def _positions(b: Batcher, start: Index, size: int, length: int, step: int) -> Value:
    """`start, start + step, ..` as an index vector of the single step."""
    type = TensorType((length,), (1,), torch.int64, b.device)
    steps = Value(b.emit(aten.arange.start_step, 0, length * step, step, device=b.device), type, FIXED)
    return b.apply(aten.add.Tensor, type, _position(b, start, size), steps)


@index_rule(aten.select.int)
def select_at(b: Batcher, call: Call) -> Any:
    x = call["self"]
    dim = call["dim"] % x.rank
    return b.apply(aten.index.Tensor, call.type, x, [*[None] * dim, _position(b, call["index"], x.shape[dim])])


@index_rule(aten.slice.Tensor)
def slice_at(b: Batcher, call: Call) -> Any:
    x, start, step = call["self"], call["start"], call["step"]
    dim = call["dim"] % x.rank
    length = call.type.shape[dim]
    if not isinstance(start, Index) or isinstance(step, Index):
        return None
    positions = _positions(b, start, x.shape[dim], length, step)
    return b.apply(aten.index.Tensor, call.type, x, [*[None] * dim, positions])


@index_rule(aten.select_scatter.default)
def select_scatter_at(b: Batcher, call: Call) -> Any:
    x, src = call["self"], call["src"]
    dim = call["dim"] % x.rank
    return _scatter_at(b, call, dim, _position(b, call["index"], x.shape[dim]), src)


@index_rule(aten.slice_scatter.default)
def slice_scatter_at(b: Batcher, call: Call) -> Any:
    x, src, start = call["self"], call["src"], call["start"]
    dim = call["dim"] % x.rank
    if not isinstance(start, Index) or isinstance(call["step"], Index):
        return None
    return _scatter_at(b, call, dim, _positions(b, start, x.shape[dim], src.shape[dim], call["step"]), src)


def _scatter_at(b: Batcher, call: Call, dim: int, positions: Value, src: Value) -> Any:
    """Writes `src` into the call's first tensor at positions along `dim`: a scatter whose index is the same across."""
    shape = list(call.type.shape)
    shape[dim] = positions.type.numel
    type = TensorType(tuple(shape), contiguous_stride(tuple(shape)), torch.int64, b.device)
    column = [1] * len(shape)
    column[dim] = positions.type.numel
    across = b.emit(aten.reshape.default, positions.node, [b.count, *column])
    index = Value(b.emit(aten.expand.default, across, [b.count, *shape]), type, LEAD)
    wide = TensorType(tuple(shape), contiguous_stride(tuple(shape)), src.dtype, b.device)
    if src.fixed:
        src = Value(b.lead(src), src.type, LEAD)
    return b.apply(aten.scatter.src, call.type, call["self"], dim, index, b.reshape(src, wide))
