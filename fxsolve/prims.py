"""The few functions that fxsolve's graphs call beside ATen: strided reads and functional writes, random draws, guards.

A *region* of a dense tensor is given by (size, stride, offset) in elements, offset counted from the tensor's first
element; it is what `x[:, i]`, `x[:, :, i, j]` and the like address. All functions are pure but for `draw` and
`draws`, which advance a generator, and for `extended`, which fills what nothing else reads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


def read(base: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> torch.Tensor:
    """The region of `base` as a view: `base[region]`."""
    return base.as_strided(size, stride, base.storage_offset() + offset)


def write(base: torch.Tensor, value: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> torch.Tensor:
    """A copy of `base` in which the region holds `value`: `base[region] = value`, functionally."""
    out = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device=base.device).copy_(base)
    out.as_strided(size, stride, offset).copy_(value)
    return out


def laid_out(value: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """A copy of `value` with the given strides, which may leave gaps between its elements."""
    return torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device).copy_(value)


def room(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Memory for a tensor that grows: to be filled by `extended`."""
    return like.new_empty(shape)


def extended(room: torch.Tensor, start: int, parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Writes the parts into `room` from `start` along a dimension; the view of all that is there up to their end.

    What comes before the dimension is of size one, so the view is laid out as the concatenation would be.
    """
    for part in parts:
        room.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    shape = (*room.shape[:dim], start, *room.shape[dim + 1 :])
    return room.view(-1).narrow(0, 0, math.prod(shape)).view(shape)


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


def write_slots(
    base: torch.Tensor, values: torch.Tensor, size: Sequence[int], stride: Sequence[int], offsets: Sequence[int]
) -> torch.Tensor:
    """A copy of `base` in which region t (at `offsets[t]`) holds `values[t]`; the regions are disjoint."""
    out = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device=base.device).copy_(base)
    SlotView.of(size, stride, offsets, base.device).scatter_(out, values)
    return out


@dataclass(frozen=True)
class SlotView:
    """All slots of a dense buffer as one tensor (T, *size): a strided view where the offsets are evenly spaced."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    index: torch.Tensor | None  # flat positions (T, *size), where no strided view exists

    @staticmethod
    def of(size: Sequence[int], stride: Sequence[int], offsets: Sequence[int], device: torch.device) -> SlotView:
        shape = (len(offsets), *size)
        step = offsets[1] - offsets[0] if len(offsets) > 1 else 1
        if step > 0 and list(offsets) == list(range(offsets[0], offsets[0] + step * len(offsets), step)):
            return SlotView(shape, (step, *stride), offsets[0], None)
        index = torch.tensor(offsets, device=device).reshape(-1, *(1 for _ in size))
        for dim, (n, s) in enumerate(zip(size, stride, strict=True)):
            index = index + (torch.arange(n, device=device) * s).reshape(-1, *(1 for _ in range(len(size) - dim - 1)))
        return SlotView(shape, tuple(stride), 0, index)

    def gather(self, buffer: torch.Tensor) -> torch.Tensor:
        """(T, *size); a view of the buffer where that is possible."""
        if self.index is None:
            return buffer.as_strided(self.shape, self.stride, buffer.storage_offset() + self.start)
        return flat(buffer)[self.index]

    def scatter_(self, buffer: torch.Tensor, values: torch.Tensor, low: int = 0) -> None:
        """Writes `values` (T - low, *size) into the slots from `low` on."""
        if self.index is None:
            self.gather(buffer)[low:].copy_(values)
        else:
            flat(buffer)[self.index[low:]] = values.to(buffer.dtype)


def flat(buffer: torch.Tensor) -> torch.Tensor:
    """A dense tensor's elements in memory order, as a view."""
    return buffer.as_strided((buffer.numel(),), (1,), buffer.storage_offset())


def draws(count: int, specs: Sequence[tuple[Any, ...]]) -> tuple[torch.Tensor, ...]:
    """`count` iterations of the draws `specs` (arguments of `draw`) in eager's order, each stacked to (count, *shape)."""
    if len(specs) == 1:
        kind, shape, stride, dtype, device, *rest = specs[0]
        whole = (count, *shape)
        if tuple(stride) == contiguous(shape) and one_stream(kind, whole, dtype, torch.device(device).type):
            return (draw(kind, whole, contiguous(whole), dtype, device, *rest),)
    rows = [[draw(*spec) for spec in specs] for _ in range(count)]
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor of that shape."""
    return tuple(math.prod(max(n, 1) for n in shape[dim + 1 :]) for dim in range(len(shape)))


@functools.lru_cache(maxsize=256)
def one_stream(kind: str, whole: tuple[int, ...], dtype: torch.dtype, device: str) -> bool:
    """Whether one draw of all rows takes the same numbers from a generator as a draw for each row.

    Uniform numbers on a CPU come one by one from the stream, whatever the shape: tried once for each shape, on
    generators of its own.
    """
    if kind != "uniform" or device != "cpu":
        return False
    first, second = (torch.Generator("cpu").manual_seed(0) for _ in range(2))
    rows = torch.stack([torch.empty(whole[1:], dtype=dtype, device=device).uniform_(generator=first) for _ in range(whole[0])])
    together = torch.empty(whole, dtype=dtype, device=device).uniform_(generator=second)
    return torch.equal(rows, together) and torch.equal(first.get_state(), second.get_state())
