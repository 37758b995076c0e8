"""Numbers that differ from step to step.

    h * 0.9 ** t   -->   mul(h, x_t)          a number where the op takes a tensor: a stacked scalar
    h > 0.1 * t    -->   gt.Tensor(h, x_t)    a float that an overload takes as a tensor: a stacked scalar
    x[:, t]        -->   select(x, 1, i_t)    an int: an index constant, a column of the block's table

Any other float that varies keeps its loop from being rolled. A stacked scalar has the dtype in which the op computes with
a Python number exactly as with the scalar.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from fxsolve.ir import TensorType
from fxsolve.tape import Mark, Symbol

aten = torch.ops.aten
Number = int | float

# Overloads that take the same number as a tensor, and compute the same bits.
TENSOR_TWINS: dict[Any, Any] = {
    aten.gt.Scalar: aten.gt.Tensor,
    aten.ge.Scalar: aten.ge.Tensor,
    aten.lt.Scalar: aten.lt.Tensor,
    aten.le.Scalar: aten.le.Tensor,
    aten.eq.Scalar: aten.eq.Tensor,
    aten.ne.Scalar: aten.ne.Tensor,
    aten.masked_fill.Scalar: aten.masked_fill.Tensor,
}
FILLS = (aten.scalar_tensor.default, aten.full.default)  # the number is what the result holds


def vary(numbers: Sequence[Number]) -> bool:
    """Whether some of the numbers differ; 0.0 and -0.0 do, a NaN does not differ from itself."""
    if type(numbers[0]) is int:
        return numbers.count(numbers[0]) < len(numbers)
    return len(set(map(repr, numbers))) > 1


def is_scalar(symbol: Symbol, k: int) -> bool:
    """Whether number k of a call becomes a stacked scalar where it varies."""
    if symbol.target is aten.scalar_tensor.default:
        return True
    is_float, takes_tensor = number_holes(symbol)[k]
    twin = symbol.target in TENSOR_TWINS or symbol.target is aten.full.default
    return takes_tensor or is_float and twin


def fits(symbol: Symbol, k: int) -> bool:
    """Whether number k of a call may vary."""
    return not number_holes(symbol)[k][0] or is_scalar(symbol, k)


@cache
def number_holes(symbol: Symbol) -> tuple[tuple[bool, bool], ...]:
    """For each number of a call: whether it is a float, and whether it stands where the op takes a tensor."""
    schema = getattr(symbol.target, "_schema", None)
    declared = {a.name: str(a.type) == "Tensor" for a in schema.arguments} if schema is not None else {}
    tensors = list(declared.values())
    templates = [(t, tensors[i] if i < len(tensors) else False) for i, t in enumerate(symbol.args)]
    templates += [(t, declared.get(name, False)) for name, t in symbol.kwargs]
    return tuple([(mark is Mark.FLOAT, tensor) for t, tensor in templates for mark in marks(t)])


def marks(template: Any) -> list[Mark]:
    """The numbers of an argument template."""
    if template is Mark.INT or template is Mark.FLOAT:
        return [template]
    return [mark for t in template for mark in marks(t)] if type(template) is tuple else []


def scalar_dtype(symbol: Symbol, k: int, inputs: Sequence[TensorType], output: TensorType) -> torch.dtype:
    """The dtype of the stacked scalar that stands for number k of a call."""
    if symbol.target in FILLS or symbol.target is aten.masked_fill.Scalar:
        return output.dtype
    is_float, _ = number_holes(symbol)[k]
    wide = [kind for kind in inputs if kind.shape]
    if not is_float:
        return torch.int64 if wide else output.dtype
    if any(kind.dtype in (torch.float32, torch.float64) for kind in wide):
        return output.dtype if output.dtype.is_floating_point else torch.float64
    if any(kind.dtype.is_floating_point or kind.dtype.is_complex for kind in wide):
        return torch.float64  # ops on short floats take the number itself; it yields to a tensor with dimensions
    return output.dtype if output.dtype.is_floating_point else torch.get_default_dtype()
