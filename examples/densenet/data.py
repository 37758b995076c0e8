"""Images that need no download: scikit-learn's digits at 32x32 with their labels, and its two photographs at 224x224."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn.functional import interpolate

HELD_OUT = 297


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(images (n, 3, 32, 32) around 0, labels (n,)): those for training, those held out."""
    data = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    images = interpolate(small, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(data.target)
    return (images[HELD_OUT:], labels[HELD_OUT:]), (images[:HELD_OUT], labels[:HELD_OUT])


def photographs(count: int = 1) -> Tensor:
    """(count, 3, 224, 224): crops of the two photographs, one after another, each further to the right, around 0."""
    images = [torch.tensor(image).permute(2, 0, 1).float() / 127.5 - 1 for image in load_sample_images().images]
    crops = []
    for number in range(count):
        left = 96 + 40 * (number // 2) % 300
        crops.append(images[number % 2][:, 100:324, left : left + 224])
    return torch.stack(crops)
