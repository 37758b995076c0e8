"""Train the DenseNet for 32x32 images on scikit-learn's digits and write its weights, from seed 0.

    python -m examples.densenet.train [--epochs N] [--device cuda]

The weights that come with the example are those of `--epochs 3`: some minutes on two cores.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from examples.densenet.data import digits
from examples.densenet.model import cifar
from examples.densenet.weights import save

BATCH = 50


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Part of the images whose digit is recognised."""
    model.eval()
    scores = torch.cat([model(part) for part in images.split(99)])
    model.train()
    return (scores.argmax(1) == labels).float().mean().item()


def train(epochs: int, device: str) -> None:
    torch.manual_seed(0)
    (images, labels), held_out = digits()
    images, labels, held_out = images.to(device), labels.to(device), [part.to(device) for part in held_out]
    model = cifar().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(images)).to(device).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        right = 100 * accuracy(model, *held_out)
        print(f"epoch {epoch}: loss {total * BATCH / len(images):.3f}, {right:.1f} % right held out, {seconds:.0f} s")
        print(f"written: {save(model)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    train(options.epochs, options.device)


if __name__ == "__main__":
    main()
