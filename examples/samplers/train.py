"""Train the networks on real data that needs no download; the weights are kept in `out/` and used again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from examples.bar import bar
from examples.made.train import NOISE
from examples.pixelcnnpp.data import photographs
from examples.rnn.text import Text
from examples.samplers.models import PermutedMADE, PixelCNN, Transformer, WaveNet

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True)
class Task:
    """A network and its loss on one random batch."""

    network: nn.Module
    loss: Callable[[], Tensor]


def transformer(small: bool) -> Task:
    """The next character of Python's language reference."""
    text = Text()
    network = Transformer(len(text.alphabet), 64, 32, 2) if small else Transformer(len(text.alphabet))

    def loss() -> Tensor:
        read, target = text.batch(16, network.length, fill_in=False)
        return F.cross_entropy(network(read).flatten(0, 1), target.flatten())

    return Task(network, loss)


def wavenet(small: bool) -> Task:
    """The brightness of a photograph's pixels, row after row, there and back."""
    network = WaveNet(100, 16, 5) if small else WaveNet()
    image = photographs()[0].mean(0)
    image[1::2] = image[1::2].flip(1)
    signal = image.flatten()

    def loss() -> Tensor:
        starts = torch.randint(len(signal) - network.length, (16, 1))
        x = signal[starts + torch.arange(network.length)][:, None]
        x = x + 0.01 * torch.randn_like(x)
        mean, log_std = network(x).chunk(2, 1)
        return (0.5 * ((x - mean) / log_std.exp()) ** 2 + log_std).mean()

    return Task(network, loss)


def digits16() -> tuple[Tensor, Tensor]:
    """(n, 1, 16, 16) in [0, 1] and the digits that they show."""
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, (16, 16), mode="bilinear")
    return images, torch.tensor(data.target)


def pixelcnn(small: bool) -> Task:
    """Digits with eight grey levels, given which digit."""
    images, labels = digits16()
    network = PixelCNN(8 if small else 16)
    if small:
        images = images[:, :, ::2, ::2]
    levels = (images * (network.levels - 1)).round()

    def loss() -> Tensor:
        chosen = torch.randint(len(images), (64,))
        return F.cross_entropy(network(levels[chosen] / (network.levels - 1), labels[chosen]), levels[chosen, 0].long())

    return Task(network, loss)


def permuted_made(small: bool) -> Task:
    """Digits, their pixels in a random order."""
    images, _ = digits16()
    if small:
        images = images[:, :, ::2, ::2]
    pixels = 2 * images.flatten(1) - 1
    network = PermutedMADE(pixels.shape[1], (64, 64) if small else (512, 512))

    def loss() -> Tensor:
        x = pixels[torch.randint(len(pixels), (100,))]
        return -network.log_prob(x + NOISE * torch.randn_like(x)).mean()

    return Task(network, loss)


TASKS = {"transformer": transformer, "WaveNet": wavenet, "PixelCNN": pixelcnn, "permuted MADE": permuted_made}
SECONDS = {"transformer": 240.0, "WaveNet": 120.0, "PixelCNN": 60.0, "permuted MADE": 40.0}


@torch.enable_grad()
def train(task: Task, seconds: float) -> float:
    """Train for so many seconds; returns the mean loss of the last tenth of them."""
    optimizer = torch.optim.AdamW(task.network.parameters(), lr=2e-3, weight_decay=0.01)
    start, last = time.perf_counter(), []
    with bar(f"training {type(task.network).__name__}", 1.0) as move:
        while (part := (time.perf_counter() - start) / seconds) < 1:
            move(part)
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - part)
            loss = task.loss()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(task.network.parameters(), 1.0)
            optimizer.step()
            if part > 0.9:
                last.append(loss.item())
    return sum(last) / max(len(last), 1)


def trained(name: str, small: bool = False, folder: Path = OUT) -> nn.Module:
    """The network of one of TASKS, for sampling."""
    torch.manual_seed(0)
    task = TASKS[name](small)
    path = folder / f"{name.replace(' ', '-')}{'-small' if small else ''}.pt"
    if path.exists():
        task.network.load_state_dict(torch.load(path, weights_only=True))
    else:
        loss = train(task, 2.0 if small else SECONDS[name])
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(task.network.state_dict(), path)
        print(f"{name}: loss {loss:.3f}")
    return task.network.to(torch.get_default_device()).eval()
