"""Comparisons on bit patterns: NaN equals itself, 0.0 and -0.0 differ."""

from __future__ import annotations

import torch

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(value: torch.Tensor) -> torch.Tensor:
    """The value as integers of the same size (complex numbers as pairs)."""
    if value.is_complex():
        value = torch.view_as_real(value)
    return value.view(INTEGERS[value.element_size()]) if value.is_floating_point() else value


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def differing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Where two tensors of one shape and dtype differ in bits."""
    return bits(a) != bits(b)
