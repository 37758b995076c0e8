"""Train a PixelCNN++ and write its weights, from seed 0.

    python -m examples.pixelcnnpp.train digits|patches [--steps N] [--rate R] [--resume] [--device cuda]

Every 100 steps it prints the bits per dimension on images that it does not train on, and writes the weights. On a GPU it
takes minutes, on two cores about an hour.
The weights that come with the example are those of `digits --steps 2600`, then `digits --resume` with `--steps 2000`,
`--steps 4500` and `--steps 6000 --rate 5e-4`; of `patches --steps 2400`, then `patches --resume` with `--steps 2400` and
`--steps 5000 --rate 5e-4`.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from examples.pixelcnnpp.data import digit_images, held_out_patches, patches
from examples.pixelcnnpp.model import PixelCNNpp
from examples.pixelcnnpp.weights import KINDS, save, trained, untrained

BATCH = 16
WARM_UP = 50  # steps


@torch.no_grad()
def bits_per_dimension(model: PixelCNNpp, images: Tensor) -> float:
    """Mean negative log probability of 8-bit images, in bits for each pixel and channel."""
    model.eval()
    nats = torch.cat([-model.log_prob(part) for part in images.split(32)]).mean().item()
    model.train()
    return nats / math.log(2) / images[0].numel()


def rate(step: int, steps: int) -> float:
    """Part of the highest learning rate: warmed up, then down a half cosine to 1 %."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.01 + 0.495 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))


def train(kind: str, steps: int, peak: float, resume: bool, device: str) -> None:
    torch.manual_seed(int(resume))
    torch.set_flush_denormal(True)  # gradients of mixtures far from a pixel: a quarter of the time on a CPU
    model = (trained(kind).train() if resume else untrained(kind)).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.Adam(model.parameters(), lr=peak, betas=(0.95, 0.9995))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    seen, held_out = digit_images() if kind == "digits" else (None, held_out_patches())
    held_out = held_out.to(device)
    per_dimension = BATCH * held_out[0].numel() * math.log(2)
    recent, start = 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        batch = patches(BATCH) if seen is None else seen[torch.randint(len(seen), (BATCH,))]
        loss = -model.log_prob(batch.to(device)).sum() / per_dimension
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        recent += loss.item()
        if step % 100 == 0 or step == steps:
            bits = bits_per_dimension(average.module, held_out)
            seconds = time.perf_counter() - start
            mean = recent / (step % 100 or 100)
            print(f"step {step}, {seconds:.0f} s: {mean:.3f} bits per dimension in training, {bits:.3f} held out", flush=True)
            recent = 0.0
            path = save(average.module, kind)
    print(f"written: {path}, {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate")
    parser.add_argument("--resume", action="store_true", help="go on from the saved weights, with a new schedule")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    train(options.kind, options.steps, options.rate, options.resume, options.device)


if __name__ == "__main__":
    main()
