"""Batched siblings of `prims.read` and `prims.write`: one region of each element's memory.

`base` has the shape (count, *S); `layout` are the strides of one element of shape S in the single step, on which the
region (size, stride, offset) is defined. An offset for each element may be given as an int64 tensor (count,).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def span(size: Sequence[int], stride: Sequence[int]) -> int:
    """From the first to the last address of a region, both included."""
    return 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else 0


def read_each(
    base: torch.Tensor, layout: Sequence[int], size: Sequence[int], stride: Sequence[int], offset: int | torch.Tensor
) -> torch.Tensor:
    """`read(base[n], size, stride, offset[n])` for each n: (count, *size)."""
    count, step = base.shape[0], span(base.shape[1:], layout)
    if base.stride() != (step, *layout):
        base = _copied(base, base.shape, layout)
    if not isinstance(offset, torch.Tensor):
        return base.as_strided((count, *size), (step, *stride), base.storage_offset() + offset)
    room = step - span(size, stride) + 1
    windows = base.as_strided((count, room, *size), (step, 1, *stride), base.storage_offset())
    return windows[torch.arange(count, device=base.device), offset]


def write_each(
    base: torch.Tensor,
    value: torch.Tensor,
    shape: Sequence[int],
    layout: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    offset: int | torch.Tensor,
) -> torch.Tensor:
    """`write(base[n], value[n], size, stride, offset[n])` for each n, of the given shape (count, *S)."""
    out, step = _copied(base, shape, layout), span(shape[1:], layout)
    if not isinstance(offset, torch.Tensor):
        out.as_strided((shape[0], *size), (step, *stride), offset).copy_(value)
        return out
    region = torch.arange(span(size, stride), device=base.device).as_strided(size, stride).reshape(1, -1)
    values = value.to(base.dtype).expand(shape[0], *size).reshape(shape[0], -1)
    out.as_strided((shape[0], step), (step, 1)).scatter_(1, offset.reshape(-1, 1) + region, values)
    return out


def _copied(base: torch.Tensor, shape: Sequence[int], layout: Sequence[int]) -> torch.Tensor:
    stride = (span(shape[1:], layout), *layout)
    return torch.empty_strided(shape, stride, dtype=base.dtype, device=base.device).copy_(base)
