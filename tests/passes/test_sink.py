"""Sink: a step that picks before it computes gives what the step that computes a whole image gives."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

import fxsolve
from fxsolve import prims
from fxsolve.ir import CARRY, INDEX, Program, Recurrence, calls, placeholders, to_text
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.hoist_noise import hoist_noise
from fxsolve.passes.sink import sink
from tests.passes.running import program_of

N, SIDE, MIXTURES = 2, 4, 3
MASK = torch.ones(3 * MIXTURES, 1, 3, 3)
MASK[:, :, 1, 1:] = 0
MASK[:, :, 2:] = 0
torch.manual_seed(0)
WEIGHT = torch.randn(3 * MIXTURES, 1, 3, 3) * MASK

Head = Callable[[Tensor], Tensor]


def sampler(head: Head) -> Callable[[Tensor], Tensor]:
    """A PixelCNN's loop that works out every pixel in every step; `head` maps (N, C, H, W) to (N, H, W)."""

    def sample(x: Tensor) -> Tensor:
        x = x.clone()
        for i in range(SIDE):
            for j in range(SIDE):
                x[:, :, i, j] = head(F.conv2d(x, WEIGHT.to(x.dtype), padding=1))[:, None][:, :, i, j]
        return x

    return sample


def logistic_mixture(out: Tensor) -> Tensor:
    """As public PixelCNN++ code does it: noise for all pixels, one-hot sums, channels last."""
    out = out.permute(0, 2, 3, 1)
    logits, means, log_scales = out[..., :MIXTURES], out[..., MIXTURES : 2 * MIXTURES], out[..., 2 * MIXTURES :]
    gumbel = logits - torch.log(-torch.log(torch.empty_like(logits).uniform_(1e-5, 1 - 1e-5)))
    chosen = torch.zeros_like(gumbel).scatter_(3, gumbel.max(3)[1].unsqueeze(-1), 1.0)
    mean, log_scale = (means * chosen).sum(3), (log_scales * chosen).sum(3).clamp(min=-7.0)
    u = torch.empty_like(mean).uniform_(1e-5, 1 - 1e-5)
    return (mean + torch.exp(log_scale) * (torch.log(u) - torch.log(1.0 - u))).clamp(-1.0, 1.0)


def block_of(head: Head, dtype: torch.dtype = torch.float32) -> Recurrence:
    x = torch.zeros(N, 1, SIDE, SIDE, dtype=dtype)
    program: Program = hoist_noise(hoist_invariants(program_of(sampler(head), x)))
    (block,) = program.blocks.values()
    assert isinstance(block, Recurrence)
    return block


def run(graph: fx.Graph, block: Recurrence, given: dict[str, Tensor], t: int) -> list[Tensor]:
    columns = {f"{INDEX}{k}": column[t] for k, column in enumerate(block.table)}
    return list(fx.GraphModule({}, graph)(*[(given | columns)[n.name] for n in placeholders(graph)]))


def check(block: Recurrence) -> Recurrence:
    """The step before and after, at every place, on random values; ops may round differently at other shapes."""
    sunk = sink(block)
    assert sunk is not None
    generator = torch.Generator().manual_seed(1)
    nodes = [n for n in placeholders(block.step) if n.meta["type"] is not None]
    given = {n.name: n.meta["type"].empty().copy_(torch.rand(n.meta["type"].shape, generator=generator)) for n in nodes}
    for t in range(block.length):
        for a, b in zip(run(sunk.step, sunk, given, t), run(block.step, block, given, t), strict=True):
            torch.testing.assert_close(a, b, rtol=8 * torch.finfo(a.dtype).eps, atol=8 * torch.finfo(a.dtype).eps)
    for node in calls(sunk.step):
        kind = node.meta["type"]
        assert isinstance(kind, tuple) or prims.read is not node.target
    assert sink(sunk) is None, "a second time finds nothing"
    return sunk


def whole_images(block: Recurrence) -> list[str]:
    """Calls behind the network that still work out all places."""
    network = {n for n in calls(block.step) if n.all_input_nodes and all(a.name[0] in CARRY + "c" for a in n.all_input_nodes)}
    return [
        node.name
        for node in calls(block.step)
        if node not in network and node.target is not prims.write
        and not isinstance(node.meta["type"], tuple) and node.meta["type"].shape[-2:] == (SIDE, SIDE)
    ]  # fmt: skip


def test_a_mixture_of_logistics() -> None:
    sunk = check(block_of(logistic_mixture))
    assert not whole_images(sunk)
    largest = max(n.meta["type"].numel for n in calls(sunk.step) if n.target in (torch.ops.aten.log.default,))
    assert largest == N * MIXTURES


def test_golden(golden) -> None:
    block = block_of(logistic_mixture)
    golden("sink", f"{to_text(block.step)}\n\n{to_text(sink(block).step)}")


def test_nothing_to_do() -> None:
    assert sink(block_of(lambda out: out[:, 0])) is None  # what the network says is the same at every step


class RandomHead:
    """A random chain of ops over (N, C, H, W) values and noise, down to (N, H, W)."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.ops = [rng.choice(OPS) for _ in range(rng.randint(2, 6))]
        self.last = rng.choice(LAST)

    def __call__(self, out: Tensor) -> Tensor:
        x = out + torch.rand_like(out)
        for op in self.ops:
            x = op(x)
        return self.last(x)


OPS: list[Head] = [
    torch.sin,
    lambda x: x * torch.rand_like(x),
    lambda x: x - x.mean(1, keepdim=True),
    lambda x: torch.softmax(x, 1),
    lambda x: x.permute(0, 2, 3, 1).flip(3).permute(0, 3, 1, 2) if x.shape[1] > 1 else x,
    lambda x: torch.where(x > 0.5, x, -x),
    lambda x: x.transpose(1, 3).cumsum(3).transpose(1, 3),
    lambda x: torch.cat([x, 2 * x], 1),
    lambda x: x.view(N, -1, 3, SIDE, SIDE).amax(2).repeat_interleave(3, 1),
    lambda x: x.reshape(N, x.shape[1], SIDE * SIDE).neg().view(N, x.shape[1], SIDE, SIDE),
    lambda x: torch.stack([x, x + 1], 2).sum(2),
    lambda x: x.gather(1, x.argmax(1, keepdim=True).expand_as(x)),
    lambda x: x.sort(1)[0],
    lambda x: x.roll(1, 3),  # reads other places: the pick stays behind it
    lambda x: torch.cat(x.chunk(3, 1)[::-1], 1),
    lambda x: F.one_hot(x.argmax(1), x.shape[1]).permute(0, 3, 1, 2) + x,
]
LAST: list[Head] = [
    lambda x: x.sum(1),
    lambda x: x[:, -1],
    lambda x: x.max(1).values,
    lambda x: x.permute(0, 2, 3, 1)[..., 0],
    lambda x: torch.logsumexp(x, 1),
]


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_random_heads(first: int) -> None:
    for seed in range(first, first + 20):
        block = block_of(RandomHead(seed), torch.float64)
        if sink(block) is not None:
            check(block)


def test_the_public_sampler_end_to_end() -> None:
    compiled = fxsolve.compile(sampler(logistic_mixture), solver=fxsolve.Jacobi())
    x = torch.zeros(N, 1, SIDE, SIDE)
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        ours = compiled(x)
        torch.manual_seed(seed)
        assert torch.equal(ours, sampler(logistic_mixture)(x))
    (block,) = compiled.solution.blocks
    assert block.kind == "FixedPoint" and block.equations == SIDE * SIDE
