"""The few functions that fxsolve's graphs call beside ATen: strided reads and functional writes, random draws, guards.

A *region* of a dense tensor is given by (size, stride, offset) in elements, offset counted from the tensor's first
element; it is what `x[:, i]`, `x[:, :, i, j]` and the like address. All four functions are pure but for `draw`, which
advances a generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def read(base: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> torch.Tensor:
    """The region of `base` as a view: `base[region]`."""
    return base.as_strided(size, stride, base.storage_offset() + offset)


def write(base: torch.Tensor, value: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> torch.Tensor:
    """A copy of `base` in which the region holds `value`: `base[region] = value`, functionally."""
    out = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device=base.device).copy_(base)
    out.as_strided(size, stride, offset).copy_(value)
    return out


def draw(
    kind: str,
    shape: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    parameters: tuple[float, ...] = (),
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """One random draw `kind_` (uniform, normal, exponential, random, ..) into a fresh tensor, as eager would draw it.

    The draw is made in its own shape and strides, so it takes from the generator what eager's own call takes.
    The kind `randperm` draws a permutation of `range(shape[0])`.
    """
    if kind == "randperm":
        return torch.randperm(shape[0], dtype=dtype, device=device, generator=generator)
    fresh = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    return getattr(fresh, kind + "_")(*parameters, generator=generator)


def guard(value: torch.Tensor, expected: bool | int) -> torch.Tensor:
    """Whether a value that Python branched on while recording is still what it was: a 0-d boolean tensor."""
    return value == expected


def take(x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """`x[rows]` along the first dimension, in any order."""
    return x.index_select(0, torch.tensor(rows, device=x.device))


def constants(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Python numbers, one a step, as a stacked input of scalars."""
    return torch.tensor(values, dtype=dtype, device=device)
