"""Train a MADE on scikit-learn's digits: real scans that need no download."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from examples.bar import bar
from examples.made.model import MADE

OUT = Path(__file__).parent / "out"
NOISE = 0.1  # pixels lie in [-1, 1]; this much noise keeps smooth images from having an unbounded density


def digits(side: int) -> tuple[Tensor, Tensor]:
    """Grey values 0..255 of the digits at side x side pixels, flattened: those for training, those held out."""
    images = torch.tensor(load_digits().images, dtype=torch.float32) / 16
    if side != images.shape[-1]:
        images = F.interpolate(images[:, None], (side, side), mode="bilinear")[:, 0]
    order = np.random.default_rng(0).permutation(len(images))
    images = (images[order] * 255).round().flatten(1)
    return images[:1600], images[1600:]


def dequantised(grey: Tensor) -> Tensor:
    """Grey values as real numbers in [-1, 1], uniform within their step, plus the noise that bounds the density."""
    return (grey + torch.rand_like(grey)) / 128 - 1 + NOISE * torch.randn_like(grey)


@torch.no_grad()
def nats(model: MADE, grey: Tensor) -> float:
    """Mean negative log density of images in nats."""
    return -model.log_prob(dequantised(grey)).mean().item()


@torch.enable_grad()
def train(model: MADE, side: int, seconds: float) -> list[float]:
    """Train until the held-out nats level off, or for so many seconds; returns them, one for each epoch.

    The learning rate is halved after 8 epochs without a better value; after the fourth time that is levelled off.
    The weights of the best epoch are kept.
    """
    seen, held_out = digits(side)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    history: list[float] = []
    best, best_epoch, halvings = copy.deepcopy(model.state_dict()), 0, 0
    start = time.perf_counter()
    with bar("training MADE", seconds) as move:
        while time.perf_counter() - start < seconds and halvings < 4:
            for batch in torch.randperm(len(seen)).split(100):
                loss = -model.log_prob(dequantised(seen[batch])).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
                optimizer.step()
            history.append(nats(model, held_out))
            if history[-1] <= min(history):
                best, best_epoch = copy.deepcopy(model.state_dict()), len(history)
            elif len(history) - best_epoch >= 8:
                halvings, best_epoch = halvings + 1, len(history)
                optimizer.param_groups[0]["lr"] /= 2
            move(time.perf_counter() - start, f"training MADE, {history[-1]:.0f} nats")
    model.load_state_dict(best)
    return history


def trained(small: bool = False, folder: Path = OUT) -> tuple[MADE, int]:
    """A trained MADE and the side of its images; the weights are kept in `folder` and used again."""
    side, hidden, seconds = (8, (64, 64), 3.0) if small else (28, (512, 512), 150.0)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = MADE(side * side, hidden).to(torch.get_default_device())
    path = folder / f"made{side}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True, map_location=torch.get_default_device()))
        print(f"MADE: weights of {path}")
    else:
        start = time.perf_counter()
        history = train(model, side, seconds)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
        print(f"MADE: trained {len(history)} epochs in {time.perf_counter() - start:.0f} s")
    seen, held_out = digits(side)
    print(f"MADE: {nats(model, seen):.1f} nats in training, {nats(model, held_out):.1f} held out")
    torch.random.set_rng_state(state)
    return model.eval(), side
