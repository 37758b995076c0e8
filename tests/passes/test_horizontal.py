"""Horizontal fusion: calls of one form become one call, which computes what they did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, cat, fx, nn, relu
from torch.nn import functional as F

from fxsolve.ir import CARRY, calls, placeholders, to_text
from fxsolve.passes.build import build
from fxsolve.passes.chain import is_heavy
from fxsolve.passes.graphs import parted
from fxsolve.passes.horizontal import horizontal
from fxsolve.passes.readable import generated
from fxsolve.passes.reuse import reuse
from tests.passes.random_layers import random_network
from tests.passes.running import cleaned
from tests.passes.test_chain import block_of, found

aten = torch.ops.aten
W = [torch.randn(3, 2 + k) for k in range(4)]
V = [torch.randn(2 + k, 3) for k in range(4)]


def residual(x: Tensor) -> Tensor:
    """Layers of different widths inside."""
    for w, v in zip(W, V):
        x = x + relu(x @ w) @ v
    return x


def inputs_of(graph: fx.Graph) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.rand(n.meta["type"].shape, dtype=n.meta["type"].dtype) + 0.5 for n in placeholders(graph)]


def count(graph: fx.Graph, target: object) -> int:
    return sum(n.target is target for n in calls(graph))


def close(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """To a thousand eps of the largest value: sums of a few dozen terms, in whichever order."""
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).abs().max() <= 1000 * torch.finfo(b.dtype).eps * b.abs().max()


def test_golden(golden: Callable[[str, str], None]) -> None:
    before = block_of(found(residual, torch.randn(2, 3))).layers
    text = to_text(before)
    after = horizontal(before)
    assert to_text(before) == text, "the pass changed its input"
    assert count(before, aten.mm.default) == 8 and count(after, aten.bmm.default) == 2
    golden("horizontal", "\n\n-->\n\n".join([text, to_text(after)]))
    again = horizontal(after)
    assert to_text(again) == to_text(after)
    inputs = inputs_of(before)
    close(generated(after)(*inputs), generated(before)(*inputs))


@pytest.mark.parametrize("seed", range(50))
def test_random_networks(seed: int) -> None:
    net, shape = random_network(seed)
    with torch.no_grad():
        graph = block_of(found(net, torch.randn(shape))).layers
        fused = horizontal(graph)
        assert to_text(horizontal(fused)) == to_text(fused)
        assert sum(map(is_heavy, calls(fused))) < sum(map(is_heavy, calls(graph)))
        inputs = inputs_of(graph)
        expected = generated(graph)(*inputs)
        close(generated(fused)(*inputs), expected)
        weights, sweep = parted(fused, placeholders(fused, CARRY))
        carries = len(placeholders(graph, CARRY))
        states = inputs[:carries]
        kept = [s.clone() for s in states]
        close(generated(reuse(sweep))(*states, *generated(weights)(*inputs[carries:])), expected)
        assert all(map(torch.equal, states, kept))


def traced(fn: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> fx.Graph:
    """The graph of a program of independent parts, as a sweep's layers are."""
    return build(cleaned(fn, *inputs), []).graph


def test_pointwise_calls_keep_their_bits_and_other_arguments_keep_calls_apart() -> None:
    def fn(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x.exp(), y.exp(), F.leaky_relu(x, 0.1), F.leaky_relu(y, 0.2), x + 2 * x, torch.add(y, y, alpha=3)

    inputs = torch.randn(2, 3), torch.randn(2, 5)
    graph = traced(fn, *inputs)
    fused = horizontal(graph)
    assert count(fused, aten.exp.default) == 1 and count(fused, aten.leaky_relu.default) == 2
    for ours, expected in zip(generated(fused)(*inputs), fn(*inputs), strict=True):
        assert torch.equal(ours, expected)


def test_numbers_that_only_print_alike_are_told_apart() -> None:
    def fn(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return torch.atan2(x, y) * 0.0, torch.atan2(y, x) * -0.0

    inputs = torch.rand(2, 3), torch.rand(2, 3)
    fused = horizontal(traced(fn, *inputs))
    assert all(torch.equal(a.signbit(), b.signbit()) for a, b in zip(generated(fused)(*inputs), fn(*inputs), strict=True))


def test_operands_may_come_second_and_third() -> None:
    def fn(x: Tensor, y: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        return torch.clamp(x, min=low), torch.clamp(y, min=low), torch.clamp(x, max=high), torch.clamp(y, max=high)

    graph = traced(fn, *[torch.randn(2, 3) for _ in range(4)])
    fused, inputs = horizontal(graph), [torch.randn(2, 3) for _ in range(4)]
    assert (count(graph, aten.clamp.Tensor), count(fused, aten.clamp.Tensor)) == (4, 2)
    for ours, expected in zip(generated(fused)(*inputs), generated(graph)(*inputs), strict=True):
        assert torch.equal(ours, expected)


def test_what_depends_on_one_another_and_what_is_far_wider_stays_apart() -> None:
    narrow, wide = torch.randn(3, 4), torch.randn(3, 40)

    def fn(x: Tensor) -> tuple[Tensor, ...]:
        y = x @ narrow
        return x @ wide, y, y @ torch.ones(4, 3)

    graph = traced(fn, torch.randn(2, 3))
    fused = horizontal(graph)
    assert count(fused, aten.bmm.default) == 0
    inputs = inputs_of(graph)
    close(generated(fused)(*inputs), generated(graph)(*inputs))


def test_convolutions_and_norms_of_unequal_channels_are_one() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(3 + k), nn.ReLU(), nn.Conv2d(3 + k, 2, 3, padding=1)) for k in range(3))
    layers.eval()

    def net(x: Tensor) -> Tensor:
        for layer in layers:
            x = cat([x, layer(x).mean(1, keepdim=True)], 1)
        return x @ x.mT

    with torch.no_grad():
        graph = block_of(found(net, torch.randn(1, 3, 4, 4))).layers
        fused = horizontal(graph)
        assert (count(graph, aten.convolution.default), count(fused, aten.convolution.default)) == (3, 1)
        assert (count(graph, aten.native_batch_norm.default), count(fused, aten.native_batch_norm.default)) == (3, 1)
        inputs = inputs_of(graph)
        close(generated(fused)(*inputs), generated(graph)(*inputs))


def test_a_norm_in_training_stays_alone() -> None:
    def fn(x: Tensor) -> tuple[Tensor, ...]:
        return F.batch_norm(x, None, None, training=True), F.batch_norm(x * 2, None, None, training=True)

    x = torch.randn(4, 3)
    graph = traced(fn, x)
    fused = horizontal(graph)
    assert count(fused, aten.native_batch_norm.default) == count(graph, aten.native_batch_norm.default) == 2
    close(generated(fused)(x), fn(x))
