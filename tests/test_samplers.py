"""Autoregressive samplers end to end: eager's bits in few sweeps, and everything that must not be collapsed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal

import fxsolve
from fxsolve import GaussSeidel, GSJacobi, Jacobi, JacobiGS

from .checking import assert_same_bits, quiet

PIXELS, BATCH = 24, 3
SEED = 5


def run_seeded(fn: Callable[..., Any], *args: Any, seed: int = SEED, **kwargs: Any) -> tuple[Any, Tensor]:
    """The result and the generator's state afterwards."""
    torch.manual_seed(seed)
    with torch.no_grad():
        result = fn(*args, **kwargs)
    return result, torch.get_rng_state()


def check(fn: Callable[..., Any], *args: Any, solver: Any = None, **options: Any) -> Any:
    """Two calls of the compiled function: eager's bits, and the generator where eager leaves it."""
    compiled = fxsolve.compile(fn, **({} if solver is None else {"solver": solver}), **options)
    for seed in (SEED, SEED + 1, SEED):
        ours, after = run_seeded(compiled, *args, seed=seed)
        theirs, expected = run_seeded(fn, *args, seed=seed)
        assert_same_bits(ours, theirs)
        assert torch.equal(after, expected), "the generator is left in another state"
    return compiled


def assert_collapsed(compiled: Any, blocks: int = 1) -> None:
    """The last call was solved as a fixed point, in at most as many sweeps as equations."""
    solution = compiled.solution
    assert solution.fallback is None, str(solution)
    assert [b.kind for b in solution.blocks] == ["FixedPoint"] * blocks
    for block in solution.blocks:
        assert block.residual == 0.0
        assert block.frontier[-1] == block.equations
        assert block.sweeps <= block.equations


def assert_not_collapsed(compiled: Any) -> None:
    """Nothing was solved as a fixed point."""
    assert all(b.kind != "FixedPoint" or b.solver.startswith("GaussSeidel") for b in compiled.solution.blocks)


def masks(order: list[int], hidden: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """MADE's masks: hidden unit j sees inputs that come among the first degree[j] of the order (Germain et al. 2015)."""
    place = torch.empty(len(order), dtype=torch.long)
    place[torch.tensor(order)] = torch.arange(len(order))
    degree = torch.arange(hidden) % (len(order) - 1)
    first = (degree[:, None] >= place[None, :]).float()
    middle = (degree[:, None] >= degree[None, :]).float()
    last = (place[:, None] > degree[None, :]).float()
    return first, middle, last


class MaskedLinear(nn.Linear):
    """Masks its weight in the call, or through `.data`, or carries zeros already."""

    mask: Tensor

    def __init__(self, mask: Tensor, how: str) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.how = how
        self.register_buffer("mask", mask)
        if how == "once":
            self.weight.data *= mask

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "data":
            self.weight.data *= self.mask
        return F.linear(x, self.weight * self.mask if self.how == "call" else self.weight, self.bias)


def logistic(x: Tensor, u: Tensor) -> Tensor:
    """A sample of a logistic distribution with mean and log scale in the last dimension."""
    mean, log_scale = x.unbind(-1)
    return mean + log_scale.clamp(-3, 1).exp() * (u.log() - (1 - u).log())


class MADE(nn.Module):
    """Masked autoencoder; two outputs for each pixel; the sampler as a stranger would write it."""

    def __init__(self, how: str = "call", order: list[int] | None = None, leak: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.order = order or list(range(PIXELS))
        first, middle, last = masks(self.order)
        if leak:
            last = last.clone()
            last[self.order[3]] = 1.0
        self.net = nn.Sequential(
            MaskedLinear(first, how), nn.ReLU(), MaskedLinear(middle, how), nn.Tanh(), MaskedLinear(last.repeat(2, 1), how)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).view(x.shape[0], 2, PIXELS).transpose(1, 2)

    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in self.order:
            out = self(x)
            x[:, i] = logistic(out[:, i], torch.rand(n).clamp(1e-5, 1 - 1e-5))
        return x

    def sample_bernoulli(self, n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in self.order:
            x[:, i] = Bernoulli(logits=self(x)[:, i, 0]).sample()
        return x

    def sample_plain_bernoulli(self, n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in self.order:
            x[:, i] = torch.bernoulli(torch.sigmoid(self(x)[:, i, 0]))
        return x

    def sample_normal(self, n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in self.order:
            mean, log_scale = self(x)[:, i].unbind(-1)
            x[:, i] = Normal(mean, log_scale.exp()).sample()
        return x

    def sample_reparametrised(self, n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in self.order:
            mean, log_scale = self(x)[:, i].unbind(-1)
            x[:, i] = mean + log_scale.exp() * torch.randn_like(mean)
        return x

    def most_likely(self, x: Tensor) -> Tensor:
        x = x.clone()
        for i in self.order:
            x[:, i] = self(x)[:, i, 0]
        return x


@pytest.mark.parametrize("how", ["call", "data", "once"])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_made(how: str, batch: int) -> None:
    compiled = check(MADE(how).sample, batch, solver=Jacobi())
    if how == "once":
        assert compiled.solution.blocks[0].sweeps <= PIXELS
    assert_collapsed(compiled)


def test_the_automatic_choice_is_right() -> None:
    for how in ("call", "data", "once"):
        check(MADE(how).sample, BATCH)


@pytest.mark.parametrize("solver", [Jacobi(), GaussSeidel(), JacobiGS(4), JacobiGS(100), GSJacobi(5), GSJacobi(1)], ids=str)
def test_every_solver(solver: Any) -> None:
    compiled = check(MADE().sample, BATCH, solver=solver)
    (block,) = compiled.solution.blocks
    assert block.solver == str(solver) and block.frontier[-1] == block.equations


@pytest.mark.parametrize(
    "name", ["sample_bernoulli", "sample_plain_bernoulli", "sample_normal", "sample_reparametrised"]
)
def test_distributions(name: str) -> None:
    assert_collapsed(check(getattr(MADE(), name), BATCH, solver=Jacobi()))


def test_without_noise() -> None:
    assert_collapsed(check(MADE().most_likely, torch.randn(BATCH, PIXELS), solver=Jacobi()))


@pytest.mark.parametrize("how", ["call", "once"])
def test_permuted_order(how: str) -> None:
    order = torch.randperm(PIXELS, generator=torch.Generator().manual_seed(2)).tolist()
    assert_collapsed(check(MADE(how, order).sample, BATCH, solver=Jacobi()))
    assert_collapsed(check(MADE(how, order[::-1]).sample_bernoulli, BATCH, solver=Jacobi()))


def test_an_order_that_is_not_the_nets_is_refused_and_right() -> None:
    made = MADE()
    made.order = made.order[::-1]
    compiled = check(made.sample, BATCH)
    assert_not_collapsed(compiled)
    with pytest.raises(fxsolve.ScheduleError, match="not causal"):
        run_seeded(fxsolve.compile(made.sample, solver=Jacobi()), BATCH)


def test_one_leaking_weight_is_refused_and_explained() -> None:
    compiled = check(MADE(leak=True).sample, BATCH)
    assert_not_collapsed(compiled)
    text = compiled.explain()
    assert "causality proof: fails" in text and "slot" in text


def test_what_a_step_returns_may_not_depend_on_later_slots_either() -> None:
    """Without noise all slots stay zero, and the first call cannot tell."""
    weight = torch.randn(PIXELS, PIXELS).tril(-1)

    def sample(noise: Tensor) -> tuple[Tensor, Tensor]:
        x, seen = torch.zeros_like(noise), []
        for i in range(PIXELS):
            means = torch.tanh(x @ weight.t())
            seen.append(means.sum())
            x[:, i] = means[:, i] + noise[:, i]
        return x, torch.stack(seen)

    compiled = fxsolve.compile(sample)
    with torch.no_grad():
        for noise in (torch.zeros(BATCH, PIXELS), torch.randn(BATCH, PIXELS)):
            assert_same_bits(compiled(noise), sample(noise))
    assert "not causal" in compiled.explain()


def test_sums_over_what_steps_return() -> None:
    """Sums round by the strides of what they sum."""
    made = MADE()

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x, logits = torch.zeros(n, PIXELS), []
        for i in range(PIXELS):
            logits.append(made(x)[:, i, 0])
            x[:, i] = logits[-1] + torch.randn(n)
        return x, torch.stack(logits).sum(0)

    assert_collapsed(check(sample, 32, solver=Jacobi()))


def test_a_weight_that_stops_being_zero_is_seen() -> None:
    made = MADE("once")
    compiled = fxsolve.compile(made.sample, solver=Jacobi())
    run_seeded(compiled, BATCH)
    ours, _ = run_seeded(compiled, BATCH)
    assert_same_bits(ours, run_seeded(made.sample, BATCH)[0])
    with torch.no_grad():
        made.net[4].weight[3] = 0.5
    automatic = fxsolve.compile(made.sample)
    for _ in range(2):
        assert_same_bits(run_seeded(automatic, BATCH)[0], run_seeded(made.sample, BATCH)[0])
    try:
        ours, _ = quiet(lambda: run_seeded(compiled, BATCH))
    except fxsolve.ScheduleError as error:
        assert "causal" in str(error)
    else:
        assert_same_bits(ours, run_seeded(made.sample, BATCH)[0])


def test_weights_updated_in_place_are_seen() -> None:
    made = MADE("call")
    compiled = fxsolve.compile(made.sample, solver=Jacobi())
    run_seeded(compiled, BATCH)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1.5)
    assert_same_bits(run_seeded(compiled, BATCH)[0], run_seeded(made.sample, BATCH)[0])
    assert_collapsed(compiled)


def test_batch_size_and_seed_may_change() -> None:
    made = MADE()
    compiled = fxsolve.compile(made.sample, solver=Jacobi())
    for batch in (1, 4, 2, 4, 1):
        assert_same_bits(run_seeded(compiled, batch, seed=batch)[0], run_seeded(made.sample, batch, seed=batch)[0])


def test_a_given_generator() -> None:
    made = MADE()

    def sample(n: int, generator: torch.Generator) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in range(PIXELS):
            u = torch.rand(n, generator=generator).clamp(1e-5, 1 - 1e-5)
            x[:, i] = logistic(made(x)[:, i], u)
        return x

    compiled = fxsolve.compile(sample, solver=Jacobi())
    mine, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    before = torch.get_rng_state()
    with torch.no_grad():
        for _ in range(3):
            assert_same_bits(quiet(lambda: compiled(BATCH, mine)), sample(BATCH, other))
            assert torch.equal(mine.get_state(), other.get_state())
    assert torch.equal(torch.get_rng_state(), before)


def test_another_generator_object() -> None:
    def walk(x: Tensor, generator: torch.Generator) -> Tensor:
        h = x
        for _ in range(40):
            h = 0.5 * h + torch.randn(4, generator=generator)
        return h

    compiled = fxsolve.compile(walk, solver=JacobiGS(8))
    for seed in (1, 2, 3):
        first, second = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        ours, theirs = quiet(lambda: compiled(torch.zeros(4), first)), walk(torch.zeros(4), second)  # noqa: B023
        assert float((ours - theirs).abs().max()) <= 1e-6
        assert torch.equal(first.get_state(), second.get_state())


# -- convolutions ----------------------------------------------------------------------------------


class MaskedConv(nn.Conv2d):
    """A convolution that sees pixels above and to the left (and itself, in type B)."""

    mask: Tensor

    def __init__(self, kind: str, inside: int, outside: int, size: int) -> None:
        super().__init__(inside, outside, size, padding=size // 2)
        mask = torch.ones_like(self.weight)
        middle = size // 2
        mask[:, :, middle, middle + (kind == "B") :] = 0
        mask[:, :, middle + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class PixelCNN(nn.Module):
    SIDE, LEVELS = 5, 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(
            MaskedConv("A", 1, 8, 5), nn.ReLU(), MaskedConv("B", 8, 8, 3), nn.ReLU(), MaskedConv("B", 8, self.LEVELS, 1)
        )

    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, 1, self.SIDE, self.SIDE)
        for i in range(self.SIDE):
            for j in range(self.SIDE):
                out = self.net(x)
                probabilities = F.softmax(out[:, :, i, j], dim=-1)
                x[:, :, i, j] = torch.multinomial(probabilities, 1).float() / (self.LEVELS - 1)
        return x

    def sample_bernoulli(self, n: int) -> Tensor:
        x = torch.zeros(n, 1, self.SIDE, self.SIDE)
        for i in range(self.SIDE):
            for j in range(self.SIDE):
                x[:, 0, i, j] = torch.bernoulli(torch.sigmoid(self.net(x)[:, 0, i, j]))
        return x

    def row_by_row(self, n: int) -> Tensor:
        """Work that is done once a row, inside the pixel loop's block."""
        x = torch.zeros(n, 1, self.SIDE, self.SIDE)
        for i in range(self.SIDE):
            bias = 0.1 * x[:, 0, :i].sum((1, 2)) if i else torch.zeros(n)
            for j in range(self.SIDE):
                x[:, 0, i, j] = torch.sigmoid(self.net(x)[:, 0, i, j] + bias)
        return x


@pytest.mark.parametrize("name", ["sample", "sample_bernoulli"])
def test_pixelcnn(name: str) -> None:
    compiled = check(getattr(PixelCNN(), name), 2, solver=Jacobi(), exactness="rounding")
    assert_collapsed(compiled)
    assert compiled.solution.blocks[0].equations == PixelCNN.SIDE**2


@pytest.mark.parametrize("name", ["sample", "sample_bernoulli", "row_by_row"])
def test_pixelcnn_automatic(name: str) -> None:
    quiet(lambda: check(getattr(PixelCNN(), name), 2))


class WaveNet(nn.Module):
    """Dilated causal convolutions over a signal that is written sample by sample."""

    LENGTH = 32

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.Conv1d(1 if d == 1 else 4, 4, 2, dilation=d) for d in (1, 2, 4)])
        self.out = nn.Conv1d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pad(x, (1, -1))
        for layer in self.layers:
            h = torch.tanh(layer(F.pad(h, (layer.dilation[0], 0))))
        return self.out(h)

    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, 1, self.LENGTH)
        for t in range(self.LENGTH):
            x[:, :, t] = self(x)[:, :, t] + 0.3 * torch.randn(n, 1)
        return x

    def shifted(self, n: int) -> Tensor:
        x = torch.zeros(n, 1, self.LENGTH + 1)
        for t in range(self.LENGTH):
            x[:, :, t + 1] = self(x)[:, :, t] + 0.3 * torch.randn(n, 1)
        return x[..., 1:]


@pytest.mark.parametrize("name", ["sample", "shifted"])
def test_wavenet(name: str) -> None:
    assert_collapsed(check(getattr(WaveNet(), name), 2, solver=Jacobi(), exactness="rounding"))
    quiet(lambda: check(getattr(WaveNet(), name), 2))


# -- tokens ----------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """A small causal transformer over a preallocated buffer of tokens; attention masked in one of three ways."""

    LENGTH, TOKENS, WIDTH = 12, 7, 8

    def __init__(self, attention: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.attention = attention
        self.tokens, self.places = nn.Embedding(self.TOKENS, self.WIDTH), nn.Embedding(self.LENGTH, self.WIDTH)
        self.qkv, self.mixed = nn.Linear(self.WIDTH, 3 * self.WIDTH), nn.Linear(self.WIDTH, self.WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(self.WIDTH) for _ in range(2)])
        self.mlp = nn.Sequential(nn.Linear(self.WIDTH, 16), nn.GELU(), nn.Linear(16, self.WIDTH))
        self.head = nn.Linear(self.WIDTH, self.TOKENS)
        self.register_buffer("mask", torch.full((self.LENGTH, self.LENGTH), -math.inf).triu(1))

    def attend(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, -1)
        if self.attention == "fused":
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.WIDTH)
        if self.attention == "added":
            return torch.softmax(scores + self.mask, -1) @ v
        return torch.softmax(scores.masked_fill(self.mask < 0, -math.inf), -1) @ v

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens) + self.places.weight
        h = h + self.mixed(self.attend(self.norms[0](h)))
        return self.head(h + self.mlp(self.norms[1](h)))

    def sample(self, n: int) -> Tensor:
        tokens = torch.zeros(n, self.LENGTH, dtype=torch.long)
        for t in range(self.LENGTH - 1):
            probabilities = torch.softmax(self(tokens)[:, t], -1)
            tokens[:, t + 1] = torch.multinomial(probabilities, 1)[:, 0]
        return tokens

    def categorical(self, n: int) -> Tensor:
        tokens = torch.zeros(n, self.LENGTH, dtype=torch.long)
        for t in range(self.LENGTH - 1):
            tokens[:, t + 1] = Categorical(logits=self(tokens)[:, t]).sample()
        return tokens

    def greedy(self, n: int) -> Tensor:
        tokens = torch.zeros(n, self.LENGTH, dtype=torch.long)
        for t in range(self.LENGTH - 1):
            tokens[:, t + 1] = self(tokens)[:, t].argmax(-1)
        return tokens


@pytest.mark.parametrize("attention", ["added", "filled", "fused"])
@pytest.mark.parametrize("name", ["sample", "categorical", "greedy"])
def test_decoder(attention: str, name: str) -> None:
    decoder = Decoder(attention)
    assert_collapsed(check(getattr(decoder, name), 2, solver=Jacobi(), exactness="rounding"))
    quiet(lambda: check(getattr(decoder, name), 2))


def test_integer_buffer_with_a_masked_table() -> None:
    torch.manual_seed(6)
    table, mask = torch.randn(5, 8), torch.ones(8, 8).tril(-1)

    def sample(n: int) -> Tensor:
        x = torch.zeros(n, 8, dtype=torch.long)
        for t in range(8):
            logits = torch.einsum("ts,nsd->ntd", mask, F.embedding(x, table)) @ table.t()
            x[:, t] = torch.multinomial(logits[:, t].softmax(-1), 1).squeeze(-1)
        return x

    assert_collapsed(check(sample, 3, solver=Jacobi()))


# -- what must not be collapsed, and odd values ----------------------------------------------------


def sample_from(made: MADE, x: Tensor) -> Tensor:
    for i in range(PIXELS):
        x[:, i] = logistic(made(x)[:, i], torch.rand(x.shape[0]).clamp(1e-5, 1 - 1e-5))
    return x


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38])
def test_initial_buffers_that_are_not_finite(value: float) -> None:
    made = MADE()

    def sample(start: Tensor) -> Tensor:
        return sample_from(made, start.clone())

    for place in (0, 7, PIXELS - 1):
        start = torch.zeros(BATCH, PIXELS)
        start[1, place] = value
        for solver in (None, Jacobi()):
            compiled = fxsolve.compile(sample, **({} if solver is None else {"solver": solver}))
            run_seeded(compiled, torch.zeros(BATCH, PIXELS))
            for _ in range(2):
                assert_same_bits(run_seeded(compiled, start)[0], run_seeded(sample, start)[0])


@pytest.mark.parametrize("solver", [None, Jacobi(), GSJacobi(6)], ids=str)
def test_weights_that_are_not_finite(solver: Any) -> None:
    made = MADE("call")
    compiled = fxsolve.compile(made.sample, **({} if solver is None else {"solver": solver}))
    run_seeded(compiled, BATCH)
    with torch.no_grad():
        made.net[0].weight[5, 2] = math.nan
        made.net[4].bias[9] = math.inf
    for _ in range(2):
        assert_same_bits(quiet(lambda: run_seeded(compiled, BATCH))[0], run_seeded(made.sample, BATCH)[0])
    quiet(lambda: check(made.sample, BATCH))


class Exploding(nn.Module):
    """Eager's values are tame, but a guess of a slot is squared again and again: it overflows, and inf * 0 is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(PIXELS, PIXELS).tril(-1))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(7):
            h = h * h  # x ** 128: 1.2 stays finite, 2.1 does not
        return F.linear(h, self.mask)

    def sample(self, x: Tensor) -> Tensor:
        x = x.clone()
        for i in range(PIXELS):
            seen = 10 * F.linear(x, self.mask)[:, i] + self(x)[:, i]
            x[:, i] = 2.5 / (1 + seen) + 0.1 * torch.rand(x.shape[0]) - (1.9 if i == 0 else 0.0)
        return x


@pytest.mark.parametrize("solver", [None, Jacobi(), JacobiGS(4), GSJacobi(5)], ids=str)
def test_guesses_that_overflow(solver: Any) -> None:
    compiled = quiet(lambda: check(Exploding().sample, torch.zeros(2, PIXELS), solver=solver))
    if solver is not None:
        assert_collapsed(compiled)


class Doubling(nn.Module):
    """x[i] = 3 x[i-1]^2: guesses far from the solution overflow to inf and come back as NaN through the mask."""

    def sample(self, x: Tensor) -> Tensor:
        x = x.clone()
        mask = torch.ones(PIXELS, PIXELS).tril(-1)
        for i in range(PIXELS):
            h = (x * x) @ mask.t()
            x[:, i] = 0.9 - (h * h)[:, i] * 1e-3 + torch.rand(x.shape[0])
        return x


@pytest.mark.parametrize("start", [0.0, 1e15, 1e25])
@pytest.mark.parametrize("solver", [None, Jacobi()], ids=str)
def test_large_initial_contents(solver: Any, start: float) -> None:
    try:
        check(Doubling().sample, torch.full((2, PIXELS), start), solver=solver)
    except fxsolve.ScheduleError as error:
        assert start == 1e25 and "bits" in str(error)  # eager's own contents overflow: no proof by bits


class BatchNormed(nn.Module):
    def __init__(self, training: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        first, _, last = masks(list(range(PIXELS)))
        self.net = nn.Sequential(MaskedLinear(first, "call"), nn.BatchNorm1d(32), nn.ReLU(), MaskedLinear(last, "call"))
        self.net[1].running_mean.normal_()
        self.train(training)

    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in range(PIXELS):
            x[:, i] = torch.sigmoid(self.net(x)[:, i]) + 0.1 * torch.randn(n)
        return x


def test_batch_norm_in_evaluation() -> None:
    assert_collapsed(check(BatchNormed(training=False).sample, BATCH, solver=Jacobi()))


def test_batch_norm_in_training_runs_the_original() -> None:
    ours, theirs = BatchNormed(training=True), BatchNormed(training=True)
    compiled = fxsolve.compile(ours.sample)
    with pytest.warns(fxsolve.FallbackWarning, match="running statistics.*test_samplers.py:"):
        first, _ = run_seeded(compiled, BATCH)
    assert_same_bits(first, run_seeded(theirs.sample, BATCH)[0])
    assert_same_bits(run_seeded(compiled, BATCH)[0], run_seeded(theirs.sample, BATCH)[0])
    assert_same_bits(ours.net[1].running_mean, theirs.net[1].running_mean)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        first, _, last = masks(list(range(PIXELS)))
        self.net = nn.Sequential(MaskedLinear(first, "call"), nn.Dropout(0.3), nn.ReLU(), MaskedLinear(last, "call"))

    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in range(PIXELS):
            x[:, i] = torch.sigmoid(self.net(x)[:, i]) + 0.1 * torch.randn(n)
        return x


def test_dropout_in_the_network_is_not_collapsed_in_training() -> None:
    dropping = Dropping()
    compiled = quiet(lambda: check(dropping.sample, BATCH))
    assert_not_collapsed(compiled)
    dropping.eval()
    assert_collapsed(check(dropping.sample, BATCH, solver=Jacobi()))


def test_a_change_of_mode_is_recorded_anew() -> None:
    dropping = Dropping().eval()
    compiled = fxsolve.compile(dropping.sample)
    for training in (False, True, False, True):
        dropping.train(training)
        ours = quiet(lambda: run_seeded(compiled, BATCH))
        assert_same_bits(ours[0], run_seeded(dropping.sample, BATCH)[0])


def test_counting_calls_is_not_collapsed() -> None:
    calls = [0]
    made = MADE()

    def sample(n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in range(PIXELS):
            calls[0] += 1
            x[:, i] = made(x)[:, i, 0] + calls[0]
        return x

    compiled = fxsolve.compile(sample)
    expected = []
    with torch.no_grad():
        for _ in range(3):
            calls[0] = 10 * len(expected)
            expected.append(sample(2))
        ours = []
        for k in range(3):
            calls[0] = 10 * k
            ours.append(quiet(lambda: compiled(2)))
    assert_same_bits(ours, expected)


def test_slots_written_twice() -> None:
    made = MADE()

    def sample(n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in range(PIXELS):
            x[:, i // 2] = made(x)[:, i, 0] + torch.rand(n)
        return x

    quiet(lambda: check(sample, 2))


def test_a_network_that_reads_the_whole_buffer() -> None:
    def sample(n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in range(PIXELS):
            x[:, i] = torch.tanh(x.sum(1) + torch.randn(n))
        return x

    quiet(lambda: check(sample, 2))


def test_batch_wide_statistics_in_the_network() -> None:
    mask = torch.ones(PIXELS, PIXELS).tril(-1)

    def sample(n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in range(PIXELS):
            h = x @ mask.t()
            x[:, i] = torch.sin(h - h.mean(0, keepdim=True))[:, i] + torch.rand(n)
        return x

    assert_collapsed(check(sample, 4, solver=Jacobi()))


def test_two_samplers_in_one_program() -> None:
    made = MADE()

    def sample(n: int) -> Tensor:
        first = made.sample(n)
        return first + made.sample_bernoulli(n) + torch.rand(n, PIXELS)

    assert_collapsed(check(sample, 2, solver=Jacobi()), blocks=2)


def test_sweeps_stay_below_the_proved_depth() -> None:
    def sample(x: Tensor, noise: Tensor) -> Tensor:
        x = x.clone()
        weight = torch.eye(PIXELS).roll(6, 0) * (torch.arange(PIXELS)[:, None] >= 6)
        for i in range(PIXELS):
            x[:, i] = torch.tanh(x @ weight.t())[:, i] + noise[:, i]
        return x

    args = torch.zeros(2, PIXELS), torch.randn(2, PIXELS)
    compiled = check(sample, *args, solver=Jacobi())
    assert_collapsed(compiled)
    assert compiled.solution.blocks[0].sweeps <= PIXELS // 6 + 1


class Latched(nn.Module):
    """Pixel i of a sample follows pixel i - 1 with a weight of its own: 0 for the first sample, 1 for the last."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([0.0, 0.0, 1.0])[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 0))[:, :-1] * self.weight

    def sample(self) -> Tensor:
        x = torch.zeros(BATCH, PIXELS)
        for i in range(PIXELS):
            x[:, i] = self(x)[:, i] + torch.rand(BATCH)
        return x


def test_each_sample_says_when_it_was_final() -> None:
    """Without memory one pass is enough; a chain of sums takes a pass a pixel, and holds up nobody else's count."""
    compiled = check(Latched().sample, solver=Jacobi())
    assert_collapsed(compiled)
    (block,) = compiled.solution.blocks
    assert block.samples == (1, 1, PIXELS)
    assert f"samples final after 1 to {PIXELS}" in str(compiled.solution)
