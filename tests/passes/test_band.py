"""Band: the rows that a band computes are those of the whole network, the halos being kept from the pass before."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxsolve.ir import to_text
from fxsolve.passes.band import Band, NotBanded, band
from tests.passes.tracing import traced

N, SIDE = 2, 12
Network = Callable[[Tensor], Tensor]


@cache
def weights(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def down(x: Tensor, channels: int, rows: int = 2, stride: int = 1) -> Tensor:
    """A convolution that reads rows above."""
    return F.conv2d(F.pad(x, (1, 1, rows - 1, 0)), weights(channels, x.shape[1], rows, 3), weights(channels), stride)


def up(x: Tensor, channels: int) -> Tensor:
    w = weights(x.shape[1], channels, 2, 3)
    return F.conv_transpose2d(x, w, stride=2, output_padding=1)[:, :, :-1, 1:-1]


def shifted(x: Tensor) -> Tensor:
    return F.pad(x[:, :, :-1], (0, 0, 1, 0))


def streams(x: Tensor) -> Tensor:
    """Two streams at two resolutions, joined: what a PixelCNN++ is made of."""
    u, v = shifted(down(x, 4)), down(x, 4, rows=1)
    a, b = down(F.elu(torch.cat([u, -u], 1)), 8).chunk(2, 1)
    u = u + a * torch.sigmoid(b)
    v = v + down(F.elu(torch.cat([v, u], 1)), 4)
    small = down(u, 4, stride=2)
    return up(torch.tanh(down(small, 4)), 4) + v


def padded_inside(x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.relu(F.conv2d(x, weights(3, x.shape[1], 3, 3), weights(3), padding=1))
    return F.conv2d(x, weights(2, 3, 1, 1))


def dilated(x: Tensor) -> Tensor:
    """A WaveNet's layers over one axis."""
    for d in (1, 2, 4):
        x = x[:, :1] + torch.tanh(F.conv1d(F.pad(x, (d, 0)), weights(3, x.shape[1], 2), dilation=d))
    return x


def moved(x: Tensor) -> Tensor:
    """Views that keep the rows apart, and an operand that spans them."""
    y = x.permute(0, 2, 3, 1).reshape(N, SIDE, SIDE * x.shape[1]) * weights(SIDE, 1)
    return y.unsqueeze(1).transpose(1, 2)


NETWORKS: dict[str, tuple[Network, tuple[int, ...], int]] = {
    "streams": (streams, (N, 2, SIDE, SIDE), 2),
    "padded inside": (padded_inside, (N, 2, SIDE, SIDE), 2),
    "columns": (padded_inside, (N, 2, SIDE, SIDE), 3),
    "dilated": (dilated, (N, 2, 4 * SIDE), 2),
    "moved": (moved, (N, 2, SIDE, SIDE), 2),
}


def graph_of(network: Network, shape: tuple[int, ...]) -> tuple[fx.Graph, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    network(x)  # its weights are there before it is traced
    graph, values = traced(network, {"s0": x})
    return graph, list(values.values()), x


def run(graph: fx.Graph, *inputs: Tensor) -> list[Tensor]:
    return list(fx.GraphModule({}, graph)(*inputs))


def changed_from(x: Tensor, axis: int, low: int) -> Tensor:
    """Other values from some row on."""
    rows = torch.arange(x.shape[axis]).reshape([-1 if d == axis else 1 for d in range(x.dim())])
    return torch.where(rows < low, x, torch.randn_like(x))


def halos_of(found: Band, kept: dict[str, tuple[int, Tensor]]) -> list[Tensor]:
    """The halos of a band, out of values kept from some row on."""
    halos = []
    for rows in found.halos:
        first, value = kept[rows.name]
        halos.append(value.narrow(rows.dim, rows.first - first, rows.stop - rows.first))
    return halos


def same_rows(found: Band, values: list[Tensor], whole: list[Tensor]) -> None:
    for rows, ours, theirs in zip(found.results, values, whole, strict=False):
        expected = theirs if rows is None else theirs.narrow(rows.dim, rows.first, theirs.shape[rows.dim] - rows.first)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_a_band_are_those_of_the_whole(name: str) -> None:
    """Level after level, each with halos that the level before kept, on buffers that agree in the final rows only."""
    network, shape, axis = NETWORKS[name]
    graph, consts, x = graph_of(network, shape)
    size = shape[axis]
    lows = sorted({1, size // 3, size // 2, size - 3, size - 1})
    needed = list(dict.fromkeys(rows.name for low in lows for rows in band(graph, axis, low).halos))
    torch.manual_seed(1)
    level = band(graph, axis, 0, needed)
    values = run(level.graph, x, *consts)
    for low in lows:
        count = len(values) - len(level.kept)
        kept = {rows.name: (rows.first, v) for rows, v in zip(level.kept, values[count:], strict=True)}
        x = changed_from(x, axis, low)
        level = band(graph, axis, low, needed)
        values = run(level.graph, x, *consts, *halos_of(level, kept))
        same_rows(level, values, run(graph, x, *consts))
    assert all(rows is not None and rows.first > 0 for rows in level.results)  # the last level leaves something out


def chained(layers: list[Network], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def test_random_networks() -> None:
    """Random layers, random levels."""
    for seed in range(60):
        rng = random.Random(seed)
        layers: list[Network] = []
        for _ in range(rng.randint(1, 5)):
            rows, padding, stride = rng.randint(1, 3), rng.randint(0, 2), rng.choice((1, 1, 2))
            layers.append(
                rng.choice(
                    [
                        lambda x, r=rows, s=stride: down(x, 2, r, s),
                        lambda x, r=rows, p=padding, s=stride: F.conv2d(x, weights(2, x.shape[1], r, 1), None, s, (p, 0)),
                        lambda x, r=rows, s=stride: F.conv_transpose2d(x, weights(x.shape[1], 2, r, 1), None, s),
                        shifted,
                        lambda x: torch.cat([x, -x], 1)[:, 1:],
                        lambda x: x * torch.sigmoid(x),
                    ]
                )
            )

        graph, consts, x = graph_of(partial(chained, layers), (N, 2, SIDE, 5))
        low = rng.randrange(1, SIDE)
        found = band(graph, 2, low)
        torch.manual_seed(seed)
        before = band(graph, 2, 0, [rows.name for rows in found.halos])
        values = run(before.graph, x, *consts)
        kept = {rows.name: (0, v) for rows, v in zip(found.halos, values[len(values) - len(found.halos) :], strict=True)}
        x = changed_from(x, 2, low)
        same_rows(found, run(found.graph, x, *consts, *halos_of(found, kept)), run(graph, x, *consts))


def test_golden(golden: Callable[[str, str], None]) -> None:
    graph, _, _ = graph_of(lambda x: torch.tanh(down(x, 4)), (N, 2, SIDE, SIDE))
    golden("band", "\n".join([to_text(graph), "-->", to_text(band(graph, 2, 5).graph)]))


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (lambda x: torch.softmax(x, 2), "no rule for aten._softmax"),
        (lambda x: torch.cat([x, x], 2), "joins along the rows"),
        (lambda x: x[:, :, ::2], "takes every 2-th row"),
        (lambda x: x.reshape(N, -1), "merges the rows"),
        (lambda x: x + x.transpose(2, 3), "joins rows and columns"),
        (lambda x: F.pad(x, (0, 0, -1, 1)), "crops the rows"),
        (lambda x: x.split(3, 2)[0], "splits the rows"),
        (lambda x: F.conv2d(x, x[:1, :, :2, :2]), "has weights that vary"),
    ],
)
def test_refused_by_name(network: Network, why: str) -> None:
    graph, _, _ = graph_of(network, (N, 2, SIDE, SIDE))
    with pytest.raises(NotBanded, match=why):
        band(graph, 2, 5)
