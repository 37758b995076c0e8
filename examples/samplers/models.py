"""Three autoregressive networks with the samplers that people write for them. Nothing here knows fxsolve."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.made.model import MADE


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.mix(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.between = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class Transformer(nn.Module):
    """A causal transformer over characters, with learned positions."""

    def __init__(self, tokens: int, length: int = 256, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.length = length
        self.embedding, self.positions = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, t) tokens to (batch, t, tokens) logits for the next one."""
        places = torch.arange(x.shape[1], device=x.device)
        return self.out(self.norm(self.layers(self.embedding(x) + self.positions(places))))

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 0.8, top_k: int = 20) -> Tensor:
        """n texts that start with token 0, in a buffer of the final length."""
        x = torch.zeros(n, self.length, dtype=torch.long, device=self.out.bias.device)
        for t in range(self.length - 1):
            x[:, t + 1] = pick(self(x)[:, t] / temperature, top_k)
        return x

    @torch.no_grad()
    def generate(self, n: int, temperature: float = 0.8, top_k: int = 20) -> Tensor:
        """The same, with a text that grows."""
        x = torch.zeros(n, 1, dtype=torch.long, device=self.out.bias.device)
        for _ in range(self.length - 1):
            x = torch.cat([x, pick(self(x)[:, -1] / temperature, top_k)[:, None]], 1)
        return x


def pick(logits: Tensor, top_k: int) -> Tensor:
    """One token for each row, among the `top_k` likeliest."""
    least = torch.topk(logits, top_k).values[:, -1:]
    logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(torch.softmax(logits, -1), 1)[:, 0]


class WaveNet(nn.Module):
    """Gated causal convolutions with growing dilation over a signal, after van den Oord et al. (2016); Gaussian output."""

    def __init__(self, length: int = 1000, width: int = 32, layers: int = 8) -> None:
        super().__init__()
        self.length = length
        self.first = nn.Conv1d(1, width, 2)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**k) for k in range(layers))
        self.mixes = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.out = nn.Conv1d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, t) to (batch, 2, t): mean and log standard deviation of each sample given those before it."""
        h = self.first(F.pad(x, (2, 0))[:, :, :-1])
        skip = torch.zeros_like(h)
        for gate, mix in zip(self.gates, self.mixes):
            a, b = gate(F.pad(h, (gate.dilation[0], 0))).chunk(2, 1)
            new = mix(torch.tanh(a) * torch.sigmoid(b))
            h, skip = h + new, skip + new
        mean, log_std = self.out(F.relu(skip)).chunk(2, 1)
        return torch.cat([mean, log_std.clamp(-6.0, 2.0)], 1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, 1, self.length, device=self.out.bias.device)
        for t in range(self.length):
            mean, log_std = self(x)[:, :, t].unbind(1)
            x[:, 0, t] = mean + log_std.exp() * torch.randn(n, device=x.device)
        return x


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees the pixels above and to the left; `strict`: not the pixel itself."""

    mask: Tensor

    def __init__(self, *args, strict: bool, **kwargs) -> None:
        super().__init__(*args, padding="same", **kwargs)
        rows, columns = self.kernel_size
        mask = torch.ones_like(self.weight)
        mask[:, :, rows // 2, columns // 2 + (not strict) :] = 0
        mask[:, :, rows // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class PixelCNN(nn.Module):
    """A PixelCNN (van den Oord et al. 2016) of images with few grey levels, for a given class of image."""

    def __init__(self, side: int = 16, levels: int = 8, classes: int = 10, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        self.side, self.levels = side, levels
        self.first = MaskedConv2d(1, width, 7, strict=True)
        self.classes = nn.Embedding(classes, width)
        self.layers = nn.ModuleList(MaskedConv2d(width, width, 3, strict=False) for _ in range(layers))
        self.out = nn.Conv2d(width, levels, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """(batch, 1, side, side) in [0, 1] and (batch,) labels to (batch, levels, side, side) logits."""
        h = self.first(x) + self.classes(label)[:, :, None, None]
        for layer in self.layers:
            h = h + F.relu(layer(F.relu(h)))
        return self.out(F.relu(h))

    @torch.no_grad()
    def sample(self, label: Tensor) -> Tensor:
        x = torch.zeros(len(label), 1, self.side, self.side, device=label.device)
        for i in range(self.side):
            for j in range(self.side):
                probabilities = torch.softmax(self(x, label)[:, :, i, j], -1)
                x[:, 0, i, j] = torch.multinomial(probabilities, 1)[:, 0] / (self.levels - 1)
        return x


class PermutedMADE(MADE):
    """A MADE that goes through the pixels in a random order."""

    order: Tensor
    places: Tensor

    def __init__(self, pixels: int, hidden: tuple[int, ...]) -> None:
        super().__init__(pixels, hidden)
        order = torch.randperm(pixels)
        self.register_buffer("order", order)
        self.register_buffer("places", torch.argsort(order))

    def forward(self, x: Tensor) -> Tensor:
        loc, log_scale = super().forward(x[:, self.order]).chunk(2, -1)
        return torch.cat([loc[:, self.places], log_scale[:, self.places]], -1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, self.pixels, device=self.order.device)
        for i in self.order.tolist():
            loc, log_scale = self(x).chunk(2, -1)
            u = torch.rand(n, device=x.device)
            x[:, i] = loc[:, i] + log_scale[:, i].exp() * (torch.log(u) - torch.log1p(-u))
        return x
