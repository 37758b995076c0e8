"""Images that need no download: scikit-learn's digits at 28x28, and 32x32 patches of the two photographs that it ships."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from examples.made.train import digits

HELD_OUT = 128  # columns at the right of each photograph


def digit_images() -> tuple[Tensor, Tensor]:
    """(n, 1, 28, 28) grey values in [-1, 1]: those for training, those held out."""
    seen, held_out = digits(28)
    return as_input(seen.view(-1, 1, 28, 28)), as_input(held_out.view(-1, 1, 28, 28))


@cache
def photographs() -> list[Tensor]:
    """The photographs, (3, rows, columns)."""
    return [as_input(torch.tensor(image).permute(2, 0, 1)) for image in load_sample_images().images]


def patches(n: int) -> Tensor:
    """n patches (3, 32, 32) of the photographs without their right edge, at random places, mirrored or not."""
    images = photographs()
    found = []
    for choice in torch.rand(n, 4).tolist():
        image = images[int(choice[0] * len(images))]
        row = int(choice[1] * (image.shape[1] - 31))
        column = int(choice[2] * (image.shape[2] - HELD_OUT - 31))
        patch = image[:, row : row + 32, column : column + 32]
        found.append(patch.flip(2) if choice[3] < 0.5 else patch)
    return torch.stack(found)


def held_out_patches() -> Tensor:
    """The patches of the right edge, next to one another."""
    edge = torch.stack([image[:, :, -HELD_OUT:] for image in photographs()])
    tiles = edge.unfold(2, 32, 32).unfold(3, 32, 32)
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32)


def as_input(grey: Tensor) -> Tensor:
    """Grey values 0..255 as the numbers in [-1, 1] that the network takes."""
    return grey.float() / 127.5 - 1
