"""For each architecture one variant that leaks: refused with the op and the user's line named, and still right."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fxsolve
from examples.pixelcnnpp.model import Down, DownRight, PixelCNNpp
from examples.samplers import models
from examples.samplers.models import PixelCNN, Transformer, WaveNet
from fxsolve.bits import same_bits


def leaking_pixelcnnpp() -> tuple[Callable[..., Tensor], tuple]:
    """The first layer forgets to shift: a pixel sees itself."""
    net = PixelCNNpp(1, 8, 1, 2, 8).eval()
    net.ul_left.shift = False
    return net.sample, (2,)


def leaking_stream() -> tuple[Callable[..., Tensor], tuple]:
    """The layers from above look one row too far down."""
    net = PixelCNNpp(1, 8, 1, 2, 8).eval()
    for layer in net.modules():
        if isinstance(layer, Down) and not isinstance(layer, DownRight) and not layer.shift:
            top, bottom = layer.pad[2], layer.pad[3]
            layer.pad = (*layer.pad[:2], top - 1, bottom + 1)
    return net.sample, (2,)


def leaking_wavenet() -> tuple[Callable[..., Tensor], tuple]:
    """The first layer looks at the sample itself."""
    net = WaveNet(24, 4, 3)

    class Early(WaveNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (0, 1))[:, :, 1:])

    net.__class__ = Early
    return net.sample, (2,)


def leaking_pixelcnn() -> tuple[Callable[..., Tensor], tuple]:
    """The first mask keeps the pixel itself."""
    net = PixelCNN(6, 4, 3, 8, 1)
    net.first.mask[:, :, 3, 3] = 1
    return net.sample, (torch.tensor([0, 2]),)


def leaking_transformer() -> tuple[Callable[..., Tensor], tuple]:
    """The attention is not causal."""
    net = Transformer(9, 12, 8, 2, 2).eval()

    class Open(models.Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            return self.mix(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    for layer in net.layers:
        layer.attention.__class__ = Open
    return lambda n: net.sample(n, top_k=4), (2,)


LEAKS = {
    "PixelCNN++": (leaking_pixelcnnpp, "convolution"),
    "PixelCNN++, from above": (leaking_stream, "convolution"),
    "WaveNet": (leaking_wavenet, "convolution"),
    "PixelCNN": (leaking_pixelcnn, "convolution"),
    "transformer": (leaking_transformer, "attention|bmm|softmax"),
}


def seeded(program: Callable[..., Any], arguments: tuple) -> Any:
    torch.manual_seed(5)
    with torch.no_grad():
        return program(*arguments)


@pytest.mark.parametrize("name", LEAKS)
def test_refused_by_op_and_line_and_still_right(name: str) -> None:
    make, op = LEAKS[name]
    torch.manual_seed(0)
    program, arguments = make()
    compiled = fxsolve.compile(program)
    for _ in range(2):
        assert same_bits(seeded(compiled, arguments), seeded(program, arguments))
    explained = compiled.explain()
    assert "FixedPoint" not in explained, explained
    assert re.search(rf"not causal: slot \d+ depends on slot \d+.* aten\.\w*({op})[\w.]* \(\S+\.py:\d+\)", explained), explained


def test_whole_the_same_networks_are_proved() -> None:
    torch.manual_seed(0)
    transformer = Transformer(9, 12, 8, 2, 2).eval()
    whole = [
        (PixelCNNpp(1, 8, 1, 2, 8).eval().sample, (2,)),
        (WaveNet(24, 4, 3).sample, (2,)),
        (PixelCNN(6, 4, 3, 8, 1).sample, (torch.tensor([0, 2]),)),
        (lambda n: transformer.sample(n, top_k=4), (2,)),
    ]
    for program, arguments in whole:
        compiled = fxsolve.compile(program, solver=fxsolve.Jacobi(), exactness="rounding")
        seeded(compiled, arguments)
        assert "causality proof: holds" in compiled.explain()
