"""Random networks with skip connections, written in the ways in which people write them."""

from __future__ import annotations

import random

import torch
from torch import Tensor, cat, nn


class Dense(nn.Module):
    """x = cat([x, f(x)]), the concatenation carried along or built from a list for each layer."""

    def __init__(self, pick: random.Random) -> None:
        super().__init__()
        width = pick.choice((3, 5))
        self.listed = pick.random() < 0.5
        sizes = [width]
        layers = []
        for _ in range(pick.randint(4, 9)):
            new = pick.randint(1, 4)
            layers.append(nn.Sequential(nn.Linear(sum(sizes), 6), pick.choice((nn.ReLU(), nn.Tanh())), nn.Linear(6, new)))
            sizes.append(new)
        self.layers, self.last, self.width = nn.ModuleList(layers), nn.Linear(sum(sizes), 4), width

    def forward(self, x: Tensor) -> Tensor:
        if self.listed:
            features = [x]
            for layer in self.layers:
                features.append(layer(cat(features, 1)))
            return self.last(cat(features, 1))
        for layer in self.layers:
            x = cat([x, layer(x)], 1)
        return self.last(x)


class Residual(nn.Module):
    """x = x + f(x), in place or not, before or after a norm, with a ReLU on the sum or without."""

    def __init__(self, pick: random.Random) -> None:
        super().__init__()
        self.width = pick.choice((4, 8))
        self.in_place, self.relu, self.norm = (pick.random() < 0.5 for _ in range(3))
        count = pick.randint(4, 8)
        sizes = random.Random(count).sample(range(5, 16), count)  # equal layers would be a loop
        parts = [nn.Sequential(nn.Linear(self.width, n), nn.GELU(), nn.Linear(n, self.width)) for n in sizes]
        self.parts, self.last = nn.ModuleList(parts), nn.Linear(self.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5
        for part in self.parts:
            y = part(nn.functional.layer_norm(x, (self.width,)) if self.norm else x)
            if self.in_place:
                x += y
            else:
                x = x + y
            x = torch.relu(x) if self.relu else x
        return self.last(x)


class Convolutions(nn.Module):
    """A small DenseNet or ResNet over images, with batch norm, and a projection where the sizes change."""

    def __init__(self, pick: random.Random) -> None:
        super().__init__()
        self.width, self.dense = pick.choice((2, 3)), pick.random() < 0.5
        channels, layers, shorts = self.width, [], []
        for number in range(pick.randint(4, 6)):
            new = pick.randint(1, 3) if self.dense else channels if number % 2 else channels + 1
            layers.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, new, 3, padding=1)))
            shorts.append(nn.Identity() if self.dense or new == channels else nn.Conv2d(channels, new, 1, bias=False))
            channels = channels + new if self.dense else new
        self.layers, self.shorts, self.last = nn.ModuleList(layers), nn.ModuleList(shorts), nn.Linear(channels, 3)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for layer, short in zip(self.layers, self.shorts):
            x = cat([x, layer(x)], 1) if self.dense else short(x) + layer(x)
        return self.last(torch.nn.functional.avg_pool2d(x, 2).mean((2, 3)))


def random_network(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A network and the shape of its input."""
    pick = random.Random(seed)
    torch.manual_seed(seed)
    net = pick.choice((Dense, Residual, Convolutions))(pick)
    batch = pick.randint(1, 4)
    return net, (batch, net.width, 6, 6) if isinstance(net, Convolutions) else (batch, net.width)
