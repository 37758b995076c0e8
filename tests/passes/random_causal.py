"""Random small networks on a slot buffer, and their true dependence by brute force."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = Callable[[Tensor, list[Tensor]], Tensor]
SIDE, CHANNELS = 3, 4
LENGTH = SIDE * SIDE


class Network:
    """A network (2, LENGTH) -> (2, CHANNELS, LENGTH) of randomly chosen layers; `tensors` are its invariants."""

    def __init__(self, seed: int, depth: int = 4) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: list[Tensor] = []
        self.names: list[str] = []
        self.layers = [self._layer(first=True)] + [self._layer() for _ in range(depth - 1)]

    def __call__(self, state: Tensor, *tensors: Tensor) -> Tensor:
        x = state[:, None, :]
        for layer in self.layers:
            x = layer(x, list(tensors))
        return x

    def keep(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def holes(self, *shape: int) -> Tensor:
        """Random weights, about half of them zero."""
        return self.normal(*shape) * (torch.rand(shape, generator=self.generator) < 0.5)

    def _layer(self, first: bool = False) -> Layer:
        kinds = FIRST if first else KINDS
        kind = self.random.choice(sorted(kinds))
        self.names.append(kind)
        return kinds[kind](self)


def masked_linear(net: Network, inputs: int = CHANNELS) -> Layer:
    """Flat masked weights, as MADE has them."""
    weight = net.keep(net.normal(CHANNELS * LENGTH, inputs * LENGTH))
    degrees = torch.arange(LENGTH).repeat(CHANNELS)
    strict = net.random.random() < 0.3
    allowed = degrees[:, None] - int(strict) >= torch.arange(LENGTH).repeat(inputs)
    mask = net.keep((allowed & (torch.rand(allowed.shape, generator=net.generator) < 0.8)).double())
    bias = net.keep(net.normal(CHANNELS * LENGTH))
    return lambda x, t: F.linear(x.flatten(1), t[weight] * t[mask], t[bias]).view(-1, CHANNELS, LENGTH).tanh()


def channel_linear(net: Network) -> Layer:
    weight = net.keep(net.holes(CHANNELS, CHANNELS))
    return lambda x, t: F.relu(x.transpose(1, 2) @ t[weight]).transpose(1, 2) + x


def _square(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], SIDE, SIDE)


def masked_conv(net: Network, inputs: int = CHANNELS) -> Layer:
    """PixelCNN's masks."""
    mask = torch.ones(CHANNELS, inputs, 3, 3, dtype=torch.float64)
    mask[:, :, 1, 1 + net.random.randint(0, 1) :] = 0
    mask[:, :, 2:] = 0
    weight, kept = net.keep(net.normal(CHANNELS, inputs, 3, 3)), net.keep(mask)
    return lambda x, t: F.conv2d(_square(x), t[weight] * t[kept], padding=1).flatten(2)


def shifted_conv(net: Network, inputs: int = CHANNELS) -> Layer:
    """PixelCNN++'s down shift: pad above, crop below."""
    weight, bias = net.keep(net.normal(CHANNELS, inputs, 2, 3)), net.keep(net.normal(CHANNELS))

    def layer(x: Tensor, t: list[Tensor]) -> Tensor:
        out = F.conv2d(F.pad(_square(x), (1, 1, 1, 0)), t[weight], t[bias])
        return F.pad(out, (0, 0, 1, 0))[:, :, :-1].flatten(2)

    return layer


def holey_conv(net: Network) -> Layer:
    """Any geometry: groups, stride, dilation, padding, transposed back to size."""
    groups, dilation = net.random.choice([1, 2, CHANNELS]), net.random.choice([1, 2])
    weight = net.keep(net.holes(CHANNELS, CHANNELS // groups, 2, 3))
    back = net.keep(net.holes(CHANNELS, CHANNELS // groups, 2, 2))

    def layer(x: Tensor, t: list[Tensor]) -> Tensor:
        y = F.conv2d(_square(x), t[weight], stride=(2, 1), padding=(2, 2), dilation=dilation, groups=groups)
        y = F.conv_transpose2d(y, t[back], stride=2, padding=1, groups=groups, output_padding=1)
        return F.interpolate(y, size=(SIDE, SIDE)).flatten(2)

    return layer


def _heads(x: Tensor, t: list[Tensor], weights: list[int]) -> list[Tensor]:
    tokens = x.transpose(1, 2)
    return [(tokens @ t[w]).unflatten(2, (2, -1)).transpose(1, 2) for w in weights]


def attention(net: Network) -> Layer:
    """Causal or randomly masked attention in all the ways in which people write it."""
    weights = [net.keep(net.normal(CHANNELS, CHANNELS)) for _ in range(3)]
    allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(net.random.choice([0, 0, -1]))
    if net.random.random() < 0.3:
        allowed = torch.rand(LENGTH, LENGTH, generator=net.generator) < 0.5
    allowed[:, 0] |= ~allowed.any(1)  # no empty rows
    mask, additive = net.keep(allowed), net.keep(torch.zeros(LENGTH, LENGTH).masked_fill(~allowed, -torch.inf).double())
    way = net.random.choice(["fill", "add", "where", "sdpa", "sdpa additive", "sdpa causal", "product", "by hand", "finite"])
    net.names.append(way)

    def layer(x: Tensor, t: list[Tensor]) -> Tensor:
        q, k, v = _heads(x, t, weights)
        if way.startswith("sdpa"):
            given = {"sdpa": t[mask], "sdpa additive": t[additive]}.get(way)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=given, is_causal=given is None)
            return x + y.transpose(1, 2).flatten(2).transpose(1, 2)
        scores = q @ k.transpose(2, 3) / 2.0
        if way == "fill":
            share = scores.masked_fill(~t[mask], -torch.inf).softmax(-1)
        elif way == "add":
            share = (scores + t[additive]).softmax(-1)
        elif way == "where":
            share = torch.where(t[mask], scores, -torch.inf).softmax(-1)
        elif way == "finite":
            share = scores.masked_fill(~t[mask], -1e9).softmax(-1)
        elif way == "product":
            share = scores.exp() * t[mask]
            share = share / share.sum(-1, keepdim=True)
        else:
            scores = scores.masked_fill(~t[mask], -torch.inf)
            share = (scores - scores.amax(-1, keepdim=True)).exp()
            share = share / share.sum(-1, keepdim=True)
        return x + (share @ v).transpose(1, 2).flatten(2).transpose(1, 2)

    return layer


def channel_norm(net: Network) -> Layer:
    scale, shift = net.keep(net.normal(CHANNELS)), net.keep(net.normal(CHANNELS))
    return lambda x, t: F.layer_norm(x.transpose(1, 2), (CHANNELS,), t[scale], t[shift]).transpose(1, 2)


def group_norm(net: Network) -> Layer:
    groups = net.random.choice([1, 2, 4])
    return lambda x, t: F.group_norm(x, groups)


def rms_norm(net: Network) -> Layer:
    return lambda x, t: x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-5)


def batch_norm(net: Network) -> Layer:
    mean, spread = net.keep(net.normal(CHANNELS)), net.keep(net.normal(CHANNELS).square())
    return lambda x, t: F.batch_norm(x, t[mean], t[spread])


def elementwise(net: Network) -> Layer:
    def clipped(x: Tensor, t: list[Tensor]) -> Tensor:
        return torch.where(x > 0, x, 0.5 * x.clamp(-1, 1)).add(x.sigmoid(), alpha=2).div(1.5)

    gated = lambda x, t: x.tanh() * F.softplus(x.flip(1)) + torch.cat([x[:, 1:], x[:, :1]], 1)  # noqa: E731
    elu = lambda x, t: F.elu(torch.cat([x, -x], 1))[:, ::2]  # noqa: E731
    return net.random.choice([clipped, gated, elu])


def gated(net: Network) -> Layer:
    """Exact zeros by a mask that is multiplied in."""
    mask = net.keep((torch.rand(CHANNELS, LENGTH, generator=net.generator) < 0.5).double())
    return lambda x, t: torch.cat([x * t[mask], x], 1).unflatten(1, (2, CHANNELS)).sum(1)


def moved(net: Network) -> Layer:
    order = net.keep(torch.randperm(LENGTH, generator=net.generator))
    ways: list[Layer] = [
        lambda x, t: x.roll(2, -1) + x,
        lambda x, t: F.pad(x, (2, 0))[..., :LENGTH],
        lambda x, t: x[..., t[order]],
        lambda x, t: x.index_select(2, t[order]).flip(1),
        lambda x, t: x.gather(2, t[order].expand(x.shape)),
        lambda x, t: torch.stack(x.unbind(1)[::-1], 1),
        lambda x, t: _square(x).transpose(2, 3).flatten(2),
        lambda x, t: F.pad(_square(x), (1, 0, 1, 0), mode="replicate")[..., :-1, :-1].flatten(2),
        lambda x, t: F.pixel_unshuffle(F.pixel_shuffle(_square(x), 2), 2).flatten(2),
        lambda x, t: (x.tril() + x.triu(1)) * 0.5,
        lambda x, t: F.unfold(_square(x), 2, padding=1, dilation=2)[:, : 4 * CHANNELS : 4].flatten(2),
        lambda x, t: torch.split(torch.cat([x, x.cos()], 2), LENGTH, 2)[1],
        lambda x, t: x.scatter(2, t[order][:2].expand(x.shape[0], CHANNELS, 2), 0.25),
        lambda x, t: torch.index_put(x, (torch.tensor(0), slice_all(x), t[order][:3]), x[0, :, :3].T.T),
        lambda x, t: torch.select_scatter(x, x[..., 1], 2, 4),
    ]
    return net.random.choice(ways)


def slice_all(x: Tensor) -> Tensor:
    return torch.arange(CHANNELS)[:, None]


def mixing(net: Network) -> Layer:
    ways: list[Layer] = [
        lambda x, t: x.cumsum(-1) / 4,
        lambda x, t: x + x.mean(-1, keepdim=True),
        lambda x, t: x.cummax(2).values,
        lambda x, t: x.softmax(1),
        lambda x, t: x.log_softmax(-1),
        lambda x, t: x.sort(1).values,
        lambda x, t: x - x.amax((0, 2), keepdim=True),
        lambda x, t: F.max_pool2d(_square(x), 3, 1, 1).flatten(2),
        lambda x, t: F.interpolate(F.avg_pool2d(_square(x), 2, 1), size=(SIDE, SIDE), mode="bilinear").flatten(2),
        lambda x, t: F.interpolate(F.adaptive_avg_pool2d(_square(x), 2), size=(SIDE, SIDE)).flatten(2),
        lambda x, t: x + x.std(1, keepdim=True),
        lambda x, t: x * x.norm(dim=1, keepdim=True),
        lambda x, t: F.instance_norm(x),
        lambda x, t: x + torch.fft.fft(x).real * 0.1,
    ]
    return net.random.choice(ways)


def looked_up(net: Network) -> Layer:
    """Integers that depend on the state as indices."""
    table = net.keep(net.normal(6, CHANNELS))
    ways: list[Layer] = [
        lambda x, t: F.embedding((x[:, 0] * 3).long().clamp(0, 5), t[table]).transpose(1, 2) + x,
        lambda x, t: ((x[:, 1] * 2).long()[:, None] == torch.arange(CHANNELS)[:, None]) * x,
        lambda x, t: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0) + x,
        lambda x, t: x.gather(1, x.argmax(1, keepdim=True)) + x,
        lambda x, t: x + t[table][x.argmin(1)].transpose(1, 2),
        lambda x, t: x.topk(CHANNELS, 1).values,
        lambda x, t: x + torch.bucketize(x, t[table][:, 0].sort().values).cos(),
    ]
    return net.random.choice(ways)


def first_tokens(net: Network) -> Layer:
    weight = net.keep(net.normal(CHANNELS, 1))
    return lambda x, t: t[weight] * x + 0.5


FIRST: dict[str, Any] = {
    "masked_linear": lambda net: masked_linear(net, 1),
    "masked_conv": lambda net: masked_conv(net, 1),
    "shifted_conv": lambda net: shifted_conv(net, 1),
    "first_tokens": first_tokens,
}
KINDS: dict[str, Any] = {
    made.__name__: made
    for made in (
        masked_linear, channel_linear, masked_conv, shifted_conv, holey_conv, attention, channel_norm, group_norm,
        rms_norm, batch_norm, elementwise, gated, moved, mixing, looked_up,
    )
}  # fmt: skip


def brute_force(network: Callable[[Tensor], Tensor], state: Tensor, order: list[int], trials: int = 3) -> Tensor:
    """For each output element the largest t such that changing slot t (column order[t] of all rows) changes it."""
    found = torch.full(network(state).shape, -1.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(trials):
        base = torch.randn(state.shape, generator=generator, dtype=state.dtype)
        before = network(base)
        for t, column in enumerate(order):
            for scale in (0.5, 5.0):
                changed = base.clone()
                changed[:, column] += scale * torch.randn(len(state), generator=generator, dtype=state.dtype)
                after = network(changed)
                if bool(after.isfinite().all()):  # 0 * inf is NaN: the proof is about finite values
                    found = torch.where(after != before, found.clamp_min(t), found)
    return found
