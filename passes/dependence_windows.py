"""Dependence rules of convolutions, pooling and interpolation; see `dependence.py`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxsolve.passes.dependence import (
    Call,
    Dependence,
    compress,
    index_of,
    largest_index,
    maximum,
    rule,
    shape_of,
    signed,
    thin,
)
from fxsolve.passes.dependence_products import contract

# ---------------------------------------------------------------- convolutions


@rule("convolution", "_convolution")
def convolution(call: Call, x: Any, weight: Any, bias: Any, *geometry: Any) -> Any:
    """out[n, o, p] = max over taps k, channels c with w[o, c, k] != 0 of x[n, c, p * stride + k * dilation - pad]."""
    stride, padding, dilation, transposed, _, groups = geometry[:6]
    zeros, index = call.masked(weight), compress(index_of(x), (0,))
    nonzero = torch.ones((), dtype=torch.bool).expand(shape_of(weight)) if zeros is None else ~zeros
    if zeros is None and groups == 1:  # all outputs are alike
        nonzero = nonzero.narrow(1 if transposed else 0, 0, 1)
    taps, outputs = _alike_outputs(_taps(nonzero, groups, transposed))

    reached = _channels(index[:1] if index.stride(0) == 0 else index, taps)
    window = _Window(nonzero.shape[2:], *(_each(v, index.dim() - 2) for v in (stride, padding, dilation)))
    merged = window.scattered(reached, call.shape[2:]) if transposed else window.gathered(reached, call.shape[2:])
    merged = (merged if taps.shape[1] == 1 else merged[:, outputs]).expand(call.shape)

    parts = [merged, torch.tensor(largest_index(weight))]
    if isinstance(bias, Dependence):
        parts.append(bias.index.reshape(-1, *[1] * (index.dim() - 2)))
    return Dependence(maximum(call.shape, *parts), signed=zeros is not None or signed(x, weight, bias))


def _alike_outputs(taps: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct outputs of (taps, O, C), and which of them each output is: dense weights have but one."""
    rows, outputs = torch.unique(taps.transpose(0, 1).flatten(1), dim=0, return_inverse=True)
    return rows.unflatten(1, (taps.shape[0], -1)).transpose(0, 1), outputs


def _each(value: Any, count: int) -> tuple[int, ...]:
    return tuple(value) * (count // len(value))


def _taps(nonzero: Tensor, groups: int, transposed: bool) -> Tensor:
    """The weight's pattern as (taps, O, C), with the groups as blocks on the diagonal."""
    pattern = nonzero.flatten(2).permute(2, 1, 0) if transposed else nonzero.flatten(2).permute(2, 0, 1)
    if groups == 1:
        return pattern
    parts = pattern.chunk(groups, 2 if transposed else 1)
    outs, ins = parts[0].shape[1:]
    blocks = torch.zeros(len(pattern), outs * groups, ins * groups, dtype=torch.bool)
    for g, part in enumerate(parts):
        blocks[:, g * outs : (g + 1) * outs, g * ins : (g + 1) * ins] = part
    return blocks


def _channels(index: Tensor, taps: Tensor) -> Tensor:
    """(N, C, *S), (K, O, C) -> (K, N, O, *S): the maximum over the channels that each tap of each output takes."""
    samples, _, *space = index.shape
    rows = index.movedim(1, -1).reshape(1, -1, index.shape[1])
    found = contract(rows, taps.reshape(1, -1, taps.shape[2]))
    return found.reshape(samples, *space, len(taps), -1).movedim((-2, -1), (0, 2))


@dataclass(frozen=True)
class _Window:
    """The geometry of a sliding window."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def taps(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*map(range, self.size)))

    def gathered(self, reached: Tensor, out: Sequence[int]) -> Tensor:
        """Each output takes the maximum over the window's taps; what lies outside the input depends on nothing."""
        pads = [amount for p in reversed(self.padding) for amount in (p, p)]
        padded = functional.pad(reached, pads, value=-1.0)
        picks = [padded[k][(..., *self._region(tap, out))] for k, tap in enumerate(self.taps)]
        return torch.stack(picks).amax(0)

    def scattered(self, reached: Tensor, out: Sequence[int]) -> Tensor:
        """Each input reaches the outputs under the window (transposed convolution)."""
        full = [size + 2 * p for size, p in zip(out, self.padding, strict=True)]
        canvas = torch.full((*reached.shape[1:3], *full), -1.0)
        for k, tap in enumerate(self.taps):
            view = canvas[(..., *self._region(tap, reached.shape[3:]))]
            torch.maximum(view, reached[k], out=view)
        crop = tuple(slice(p, p + size) for p, size in zip(self.padding, out, strict=True))
        return canvas[(..., *crop)]

    def _region(self, tap: Sequence[int], count: Sequence[int]) -> list[slice]:
        starts = [k * d for k, d in zip(tap, self.dilation, strict=True)]
        ends = [a + s * (n - 1) + 1 for a, s, n in zip(starts, self.stride, count, strict=True)]
        return [slice(a, end, s) for a, end, s in zip(starts, ends, self.stride, strict=True)]


# ---------------------------------------------------------------- pooling


def _pooled(call: Call, x: Dependence, function: Any) -> Dependence:
    """`function` of the indices, once for all samples that are alike."""
    alike = x.index.dim() == len(call.shape) and x.index.stride(0) == 0
    return Dependence(function(x.index[:1] if alike else x.index).expand(call.shape), signed=x.signed)


_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_ADAPTIVE = {1: functional.adaptive_max_pool1d, 2: functional.adaptive_max_pool2d, 3: functional.adaptive_max_pool3d}


@rule("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
@rule("max_pool1d_with_indices", "mkldnn_max_pool2d", "mkldnn_max_pool3d")
def max_pool(
    call: Call, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    """The maximum over the window, of values as of indices."""
    pool = _MAX_POOL[_dimensions(call)]
    found = _pooled(call, x, lambda i: pool(i, kernel, stride or None, padding, dilation, ceil_mode))
    return (found, Dependence(found.index)) if isinstance(call.type, tuple) else found


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(
    call: Call, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False, *_: Any, **__: Any
) -> Any:
    pool = _MAX_POOL[_dimensions(call)]
    return _pooled(call, x, lambda i: pool(i, kernel, stride or None, padding, 1, ceil_mode))


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d")
@rule("adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_pool(call: Call, x: Any, size: Any) -> Any:
    found = _pooled(call, x, lambda index: _ADAPTIVE[_dimensions(call)](index, size))
    return (found, Dependence(found.index)) if isinstance(call.type, tuple) else found


def _dimensions(call: Call) -> int:
    """The digit in an op's name: max_pool2d -> 2."""
    return next(int(c) for c in call.node.target._schema.name if c.isdigit())  # type: ignore[union-attr]


# ---------------------------------------------------------------- interpolation


@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def interpolated(call: Call, x: Any, size: Any, *_: Any, **__: Any) -> Any:
    """Enlarging takes from the neighbours of the nearest source element: 2 of them on each side (cubic: 3)."""
    target = list(call.shape[2:])
    if any(out < source for out, source in zip(target, x.index.shape[2:], strict=True)):
        return None
    radius = 3 if "cubic" in call.node.target._schema.name else 2  # type: ignore[union-attr]
    pool = _MAX_POOL[len(target)]

    def enlarge(index: Tensor) -> Tensor:
        return functional.interpolate(_dilated(pool, index, radius), size=target, mode="nearest")

    return _pooled(call, x, enlarge)


def _dilated(pool: Any, index: Tensor, radius: int) -> Tensor:
    """The maximum over all elements within `radius` in each direction."""
    for _ in range(radius):
        index = pool(thin(index).expand(index.shape), 3, 1, 1)
    return index
