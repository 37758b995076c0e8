"""Two walks of the same blocks from different states: how far apart they are, and what becomes of the distance.

Distances are in rounding units (passes/units.py), as (blocks, components of the whole state). A recurrence is certified
where the walks of its blocks come together: DESIGN.md section 5, ARCHITECTURE.md "Exactness".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

TOLERANCE = 8.0  # units; RNN noise is about one
GOOD = 1.0  # units; about what one step's own rounding leaves
CONTRACTION = 0.5
KICK = 200.0  # units; what a block starts beside itself to see what becomes of it
TELLING = 32.0  # units; a smaller disturbance says nothing about what a block forgets
REACH = 100.0  # times a small disturbance may grow inside a block before it dies out
LOOKS = 8  # steps of a block at which a distance is taken

Tensors = Sequence[torch.Tensor]


class Gap:
    """The distance between two walks as they go on: in which blocks it ever grew by more than REACH, from any earlier step."""

    def __init__(self, start: torch.Tensor) -> None:
        self.gaps = [start]

    def look(self, a: Tensors, b: Tensors, scales: Tensors) -> torch.Tensor:
        """Takes the distance of two states: for each block the largest component's, in its scale."""
        parts = [(x - y).abs_().reshape(s.shape).div_(s).amax(1) for x, y, s in zip(a, b, scales, strict=True)]
        self.gaps.append(parts[0] if len(parts) == 1 else torch.stack(parts).amax(0))
        return self.gaps[-1]

    def grew(self) -> bool:
        return grew(torch.stack(self.gaps).nan_to_num_(nan=math.inf, posinf=math.inf))


def grew(gaps: torch.Tensor) -> bool:
    """Whether a distance, (looks, blocks), ever grew by more than REACH, from any earlier look."""
    least = gaps[:-1].cummin(0).values.clamp_(min=1.0)  # below a unit there is only noise
    return bool((gaps[1:] > REACH * least).any())


def forgetting(disturbed: torch.Tensor, survived: torch.Tensor, least: torch.Tensor) -> torch.Tensor | None:
    """What is left of a disturbance, of which each block got `least` or more: the ratio of each block's worst component.

    A component that was hardly moved says nothing about itself. Where that happens by chance, here and there, the
    others speak; where it happens to a quarter of a block or of a component's blocks, nothing was measured (None).
    """
    if len(disturbed) and float(disturbed.min()) < TELLING:
        weak = disturbed < TELLING
        if weak.sum(0).max() > len(weak) / 4 or weak.sum(1).max() > weak.shape[1] / 4:
            return None
    return survived.amax(1) / least


def weakest(disturbed: torch.Tensor) -> torch.Tensor:
    """For each block the smallest disturbance that says anything."""
    return torch.where(disturbed >= TELLING, disturbed, math.inf).amin(1)


def most(disturbed: torch.Tensor) -> torch.Tensor:
    """For each block the disturbance that three quarters of its components got, for moves of very different sizes."""
    return disturbed.kthvalue(1 + (disturbed.shape[1] - 1) // 4, dim=1).values


def in_units(a: Tensors, b: Tensors, units: Tensors, blocks: int) -> torch.Tensor:
    """|a - b| in units; infinite where a value is not finite, and huge where something differs and the unit is zero."""
    parts = []
    for x, y, unit in zip(a, b, units, strict=True):
        ratio = (x - y).abs_().div_(unit.clamp(min=torch.finfo(unit.dtype).tiny)).nan_to_num_(nan=math.inf, posinf=math.inf)
        parts.append(ratio.reshape(blocks, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def yardsticks(units: Tensors, blocks: int) -> list[torch.Tensor]:
    """For each carry (blocks, components): its units, and a hundredth of their mean where that is more."""
    rows = [u.reshape(blocks, -1) for u in units]
    least = [u.sum(1, keepdim=True).mul_(0.01 / u.shape[1]) for u in rows]
    return [torch.maximum(u, v).clamp_(min=torch.finfo(u.dtype).tiny) for u, v in zip(rows, least, strict=True)]


def signs(like: torch.Tensor) -> torch.Tensor:
    """Plus and minus ones, in a fixed irregular pattern."""
    place = torch.arange(like.numel(), device=like.device)
    return (1.0 - 2.0 * ((place * 40503) >> 7 & 1)).to(like.dtype).view(like.shape)
