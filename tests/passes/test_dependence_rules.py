"""The dependence rules against brute force: each input element is a slot; which outputs does changing it change?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxsolve import prims
from fxsolve.ir import Slots, TensorType, results
from fxsolve.passes.causality_head import seeds
from fxsolve.passes.dependence import RULES, Analysis, index_of, overloads
from fxsolve.passes.dependence_interpret import interpret

from .tracing import call, placeholder, traced

Op = Callable[[Tensor], Any]
A = torch.ops.aten


@functools.cache
def weight(*shape: int) -> Tensor:
    """Fixed numbers, about a third of them zero; drawn once, so that tracing meets them as constants."""
    generator = torch.Generator().manual_seed(sum(shape))
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn * (torch.rand(shape, generator=generator) < 0.67)


def chosen(*indices: int) -> Tensor:
    return torch.tensor(indices)


def integers(x: Tensor, below: int) -> Tensor:
    """Integers that depend on x."""
    return (x * 3).long().abs() % below


CAUSAL = torch.ones(4, 4, dtype=torch.bool).tril()

VECTOR: dict[str, Op] = {
    "mv": lambda x: weight(5, 6) @ x,
    "dot": lambda x: torch.dot(x, weight(6)),
    "dot with itself": lambda x: torch.dot(x, x.flip(0)),
    "addmv": lambda x: torch.addmv(x[:5], weight(5, 6), x),
    "outer": lambda x: torch.outer(x, weight(4)),
    "diag": lambda x: torch.diag_embed(x, 1),
    "cumprod": lambda x: x.cumprod(0),
    "logcumsumexp": lambda x: x.logcumsumexp(0),
    "cummin": lambda x: x.cummin(0).values,
    "roll": lambda x: x.roll(2),
    "repeat": lambda x: x.repeat(2, 3),
    "tile": lambda x: x.tile(2),
    "repeat_interleave": lambda x: x.repeat_interleave(2),
    "unfold": lambda x: x.unfold(0, 3, 2),
    "rsub": lambda x: 1.0 - x,
    "sub": lambda x: x - x.flip(0),
    "addcmul": lambda x: torch.addcmul(x, x.flip(0), weight(6)),
    "lerp": lambda x: torch.lerp(x, weight(6), 0.3),
    "logsigmoid": F.logsigmoid,
    "prelu": lambda x: F.prelu(x, weight(1) + 0.3),
    "clamp": lambda x: x.clamp(weight(6) - 1, weight(6) + 1),
    "where": lambda x: torch.where(weight(6) > 0, x, x.flip(0)),
    "where on the state": lambda x: torch.where(x > 0, weight(6), 2.0),
    "masked_fill by the state": lambda x: weight(6).masked_fill(x > 0, 1.0),
    "like": lambda x: torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 2.0) + x.new_zeros(6),
    "copy": lambda x: A.copy.default(weight(6), x.flip(0)),
    "index": lambda x: x[chosen(5, 0, 0)],
    "index by the state": lambda x: weight(7)[integers(x, 7)],
    "index of both": lambda x: x[integers(x, 6)],
    "index by a mask": lambda x: x[weight(6) != 0],
    "index_put": lambda x: torch.index_put(x, (chosen(3, 1),), x[:2]),
    "index_put twice": lambda x: torch.index_put(x, (chosen(3, 3),), x[:2], accumulate=True),
    "index_add": lambda x: torch.index_add(x, 0, chosen(3, 3), x[:2]),
    "index_copy": lambda x: torch.index_copy(x, 0, chosen(3, 4), x[:2]),
    "scatter_add": lambda x: x.scatter_add(0, chosen(2, 2, 5), x[3:]),
    "scatter source": lambda x: x.scatter(0, chosen(2, 5), x),
    "scatter by the state": lambda x: x.scatter(0, integers(x, 6), 1.0),
    "take_along_dim": lambda x: x.take_along_dim(x.argsort(0), 0),
    "embedding": lambda x: F.embedding(chosen(0, 5, 5), x[:, None]),
    "embedding by the state": lambda x: F.embedding(integers(x, 4), weight(4, 2)),
    "kthvalue": lambda x: x.kthvalue(2).values,
    "median": lambda x: x.median(),
    "prod": lambda x: x[:3].prod() + x[3:].sum(),
    "var_mean": lambda x: torch.var_mean(x[:4]),
    "aminmax": lambda x: torch.aminmax(x[1:]),
    "maximum of two": lambda x: torch.max(x, weight(6)),
    "any": lambda x: (x > 0).any() | (x < 9).all(),
    "isnan": lambda x: x.isnan() | (x.long() > 0),
    "searchsorted": lambda x: torch.searchsorted(weight(9).sort().values, x),
    "as_strided": lambda x: (x + 1).as_strided((2, 2), (3, 1), 1),
    "split": lambda x: torch.split(x, [1, 5])[1],
    "tensor_split": lambda x: torch.tensor_split(x, 4)[1],
    "masked product": lambda x: (x * (weight(6) != 0)) * 2.0 / 3.0 + weight(6),
    "pow": lambda x: (x + 9) ** weight(6) + 2.0**x,
    "atan2": lambda x: torch.atan2(x, x.flip(0)),
    "log": lambda x: (x.abs() + 1).log() / (x.exp() + 1),
    "remainder": lambda x: x.remainder(0.7) + x.fmod(0.3),
    "one_hot": lambda x: (integers(x, 3)[:, None] == torch.arange(3)) * 1.0,
}

MATRIX: dict[str, Op] = {
    "mm": lambda x: x @ weight(4, 3),
    "mm on the left": lambda x: weight(3, 4) @ x,
    "mm of the state": lambda x: x @ x.tril(),
    "triangular": lambda x: (x.tril() @ x) + x.triu(1),
    "addmm": lambda x: torch.addmm(x[0], weight(3, 4), x),
    "linear": lambda x: A.linear.default(x, weight(3, 4), weight(3)),
    "bmm": lambda x: torch.bmm(x[None].expand(2, 4, 4), weight(2, 4, 3)),
    "baddbmm": lambda x: torch.baddbmm(x[None, :, :3], weight(2, 4, 4), x[None, :, :3].expand(2, 4, 3)),
    "baddbmm of the state": lambda x: torch.baddbmm(weight(3), x.triu()[None], x.tril()[None, :, :3]),
    "matmul": lambda x: A.matmul.default(weight(2, 1, 3, 4), x[None]),
    "einsum": lambda x: torch.einsum("ij,kjl->kil", x, weight(2, 4, 3)),
    "softmax": lambda x: x.softmax(0),
    "causal softmax": lambda x: x.masked_fill(~CAUSAL, -torch.inf).softmax(1),
    "causal log_softmax": lambda x: x.masked_fill(~CAUSAL, -torch.inf).log_softmax(1).exp(),
    "scaled causal softmax": lambda x: (x.masked_fill(~CAUSAL, -torch.inf) / 2.0).softmax(1) @ x,
    "causal attention": lambda x: (x + torch.where(CAUSAL, 0.0, -torch.inf)).softmax(1) @ x,
    "logsumexp": lambda x: x.logsumexp(1),
    "norm": lambda x: x.norm(dim=1) + x.norm(1, 0),
    "argmax": lambda x: x.argmax(0),
    "topk": lambda x: x.topk(2, 0),
    "sort": lambda x: x.sort(1),
    "std_mean": lambda x: torch.std_mean(x, 1),
    "mode": lambda x: x.round().mode(1).values,
    "layer_norm": lambda x: F.layer_norm(x, (4,), x[0], weight(4)),
    "glu": lambda x: F.glu(x, 1),
    "gather": lambda x: x.gather(1, torch.tensor([[3, 0], [1, 1]])),
    "gather by the state": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "index_select": lambda x: x.index_select(1, chosen(3, 1)),
    "index_select by the state": lambda x: weight(5, 4).index_select(0, integers(x[0], 5)),
    "index of rows": lambda x: x[chosen(1, 0), chosen(2, 3)] + x[:, chosen(3, 1)][:2].sum(0),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0),
    "select_scatter": lambda x: x.select_scatter(x[1], 1, 2),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :2], 1, 2),
    "diagonal": lambda x: x.diagonal(1) + x.diagonal_scatter(x[0])[:3, 0],
    "rot90": lambda x: x.rot90(),
    "scalar": lambda x: x.sum() * x[0, 0],
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        x.view(1, 4, 2, 2), x[:2].view(1, 2, 2, 2), x[2:].view(1, 2, 2, 2), is_causal=True, enable_gqa=True
    ),
    "causal fused attention": lambda x: F.scaled_dot_product_attention(
        x[None, None], x[None, None], x[None, None] + 1, is_causal=True
    ),
    "masked fused attention": lambda x: F.scaled_dot_product_attention(
        x[None, None].expand(2, 2, 4, 4), x[None, None].expand(2, 2, 4, 4), x[None, None].expand(2, 2, 4, 4),
        torch.where(torch.stack([CAUSAL, CAUSAL.flip(0)]).view(2, 1, 4, 4), weight(4, 4), -torch.inf),
    ),
}  # fmt: skip

IMAGE: dict[str, Op] = {
    "conv2d": lambda x: F.conv2d(x, weight(3, 2, 2, 2), weight(3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
    "grouped": lambda x: F.conv2d(x, weight(4, 1, 3, 2), padding=1, groups=2),
    "transposed": lambda x: F.conv_transpose2d(x, weight(2, 3, 2, 3), stride=(2, 1), padding=1, dilation=(1, 2)),
    "transposed groups": lambda x: F.conv_transpose2d(x, weight(2, 2, 2, 2), stride=2, output_padding=1, groups=2),
    "conv1d": lambda x: F.conv1d(x.flatten(2), weight(3, 2, 3), padding=2, dilation=2),
    "conv3d": lambda x: F.conv3d(x[:, None], weight(2, 1, 2, 2, 2), padding=(1, 0, 0)),
    "weights of the state": lambda x: F.conv2d(weight(1, 2, 4, 4), x[:, :, :2, :2].expand(2, 2, 2, 2), x[0, :, 3, 3]),
    "max_pool2d": lambda x: F.max_pool2d(x, 2, 1, 1, 2),
    "max_pool2d ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max_pool with indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 3, 2),
    "max_pool3d": lambda x: F.max_pool3d(x[:, None], 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, (2, 3), 1, (0, 1)),
    "avg_pool1d": lambda x: F.avg_pool1d(x.flatten(2), 3),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3),
    "global pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest down": lambda x: F.interpolate(x, size=(3, 2)),
    "nearest exact": lambda x: F.interpolate(x, size=(5, 6), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, size=(9, 7), mode="bilinear"),
    "bilinear corners": lambda x: F.interpolate(x, size=(8, 6), mode="bilinear", align_corners=True),
    "bilinear down": lambda x: F.interpolate(x, size=(2, 2), mode="bilinear", antialias=True),
    "bicubic": lambda x: F.interpolate(x, size=(9, 7), mode="bicubic"),
    "linear1d": lambda x: F.interpolate(x.flatten(2), size=40, mode="linear"),
    "reflect": lambda x: F.pad(x, (1, 2, 0, 3), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 0, 3), mode="replicate"),
    "constant": lambda x: F.pad(x, (1, -2, -1, 3), value=2.0),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unfold": lambda x: F.unfold(x, (2, 3), padding=1, stride=2),
    "fold": lambda x: F.fold(x.reshape(1, 8, 4), (3, 3), 2),
    "group_norm": lambda x: F.group_norm(x, 2, weight(2), weight(2)),
    "instance_norm": lambda x: F.instance_norm(x),
    "batch_norm": lambda x: F.batch_norm(x, weight(2), weight(2).square() + 1, weight(2), weight(2)),
    "batch_norm in training": lambda x: F.batch_norm(x, None, None, training=True),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "local_response_norm": lambda x: F.local_response_norm(x, 2),
    "fft": lambda x: torch.fft.fft2(x).real,
}

CASES = [
    pytest.param(shape, op, id=name)
    for shape, ops in (((6,), VECTOR), ((4, 4), MATRIX), ((1, 2, 4, 4), IMAGE))
    for name, op in ops.items()
]


def returned(op: Op, x: Tensor) -> tuple[Tensor, ...]:
    found = op(x)
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def true_index(op: Op, x: Tensor) -> list[Tensor]:
    """For each element of each result the largest element of x (in memory order) that changes it."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.full(each.shape, -1.0) for each in returned(op, x)]
    for _ in range(6):
        base = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        before = returned(op, base)
        for t in range(x.numel()):
            changed = base.clone()
            changed.view(-1)[t] += 3 * torch.randn((), generator=generator, dtype=x.dtype)
            for n, (a, b) in enumerate(zip(returned(op, changed), before, strict=True)):
                found[n] = torch.where(a != b, found[n].clamp_min(t), found[n])
    return found


def abstract_index(op: Op, x: Tensor, analysis: Analysis) -> list[Tensor]:
    returned(op, x)
    graph, values = traced(lambda x: returned(op, x), {"s0": x})
    slots = (Slots((), (), tuple(range(x.numel()))),)
    env = interpret(graph, seeds(graph, slots, values), analysis)
    return [index_of(env[node]) for node in results(graph)]


# Where a rule is coarser than the truth, there is none, or the truth is hard to hit by trying.
COARSE = {
    "addcmul", "any", "batch_norm", "bicubic", "bilinear", "bilinear corners", "bilinear down",
    "causal fused attention", "causal log_softmax", "causal softmax", "fft", "fold", "group_norm",
    "grouped attention", "index of both", "index_copy", "index_put twice", "isnan", "linear1d",
    "local_response_norm", "masked fused attention", "masked_fill by the state", "one_hot", "scatter",
    "scatter by the state", "scatter source", "take_along_dim", "weights of the state", "where on the state",
}  # fmt: skip


@pytest.mark.parametrize(("shape", "op"), CASES)
def test_a_rule_is_sound(shape: tuple[int, ...], op: Op, request: pytest.FixtureRequest) -> None:
    x = torch.zeros(shape, dtype=torch.float64)
    analysis = Analysis(x.numel() - 1.0)
    name = request.node.callspec.id
    for mine, true in zip(abstract_index(op, x, analysis), true_index(op, x), strict=True):
        assert mine.shape == true.shape
        assert bool((mine >= true).all()), (mine, true)
        assert name in COARSE or torch.equal(mine, true), (mine, true)
    assert name in COARSE or not analysis.unknown


def test_strided_reads_and_writes() -> None:
    x = torch.arange(16.0).view(4, 4)
    graph = fx.Graph()
    base = placeholder(graph, "s0", x)
    turned = call(graph, A.t.default, (base,), x, "")
    turned.meta["type"] = TensorType.of(x.t())
    region = ((2, 2), (5, 2), 3)
    picked = call(graph, prims.read, (turned, *region), prims.read(x.t(), *region), "")
    place = ((2,), (8,), 1)
    first = call(graph, A.select.int, (picked, 0, 0), torch.zeros(2), "")
    written = call(graph, prims.write, (turned, first, *place), x, "")
    graph.output((picked, written))
    env = interpret(graph, seeds(graph, (Slots((), (), tuple(range(16))),), {}), Analysis(15.0))
    assert torch.equal(env[picked].index, prims.read(x.t(), *region))
    assert torch.equal(env[written].index, prims.write(x.t(), prims.read(x.t(), *region)[0], *place))


def test_rules_are_written_for_ops_that_exist() -> None:
    assert len(RULES) > 600
    assert all(target in RULES for name in ("mul", "mm", "convolution", "where") for target in overloads(name))
