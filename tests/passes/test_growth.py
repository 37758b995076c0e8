"""A sequence that grows by cat: discrete ones move into a buffer and come out as eager's; others are named, with the line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxsolve
from fxsolve.errors import FallbackWarning
from fxsolve.passes.growth import STEPS, Padded, growth
from tests.passes.running import cleaned, leaf_values, run_tape

torch.manual_seed(0)
WORDS, WIDTH, LONGEST = 9, 6, 24
TABLE, KERNEL, OUT = torch.randn(WORDS, WIDTH), torch.randn(WIDTH, WIDTH, 3), torch.randn(WIDTH, WORDS)
PLACES, BANNED = torch.randn(LONGEST, WIDTH), torch.triu(torch.ones(LONGEST, LONGEST), 1).bool()

Net = Callable[[Tensor], Tensor]


def mean_so_far(x: Tensor) -> Tensor:
    return F.embedding(x, TABLE).cumsum(1) / torch.arange(1, x.shape[1] + 1)[None, :, None]


def convolution(x: Tensor) -> Tensor:
    return F.conv1d(F.pad(F.embedding(x, TABLE).transpose(1, 2), (2, 0)), KERNEL).transpose(1, 2)


def attention(x: Tensor) -> Tensor:
    n, length = x.shape
    h = F.embedding(x, TABLE) + F.embedding(torch.arange(length), PLACES)
    q, k, v = (h @ KERNEL[:, :, i] for i in range(3))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def held_mask(x: Tensor) -> Tensor:
    n, length = x.shape
    h = F.embedding(x, TABLE) + PLACES[:length]
    scores = (h @ h.transpose(1, 2)).masked_fill(BANNED[None, :length, :length], -torch.inf)
    return scores.softmax(-1) @ h


def made_mask(x: Tensor) -> Tensor:
    h = F.embedding(x, TABLE)
    mask = torch.triu(torch.full((x.shape[1], x.shape[1]), -torch.inf), diagonal=1)
    return (h @ h.transpose(1, 2) + mask).softmax(-1) @ h


def flat(x: Tensor) -> Tensor:
    return F.linear(F.embedding(x, TABLE).view(-1, WIDTH), KERNEL[:, :, 0]).view(*x.shape, WIDTH).cumsum(1)


NETS: list[Net] = [mean_so_far, convolution, attention, held_mask, made_mask, flat]
PICKS: dict[str, Callable[[Tensor], Tensor]] = {
    "index": lambda h: h[:, -1],
    "list": lambda h: h[:, [-1], :][:, 0],
    "slice": lambda h: h[:, -1:].squeeze(1),
    "length": lambda h: h[:, h.shape[1] - 1],
}


def likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1, keepdim=True)


def drawn(logits: Tensor) -> Tensor:
    least = torch.topk(logits, 4).values[:, [-1]]
    logits[logits < least] = -torch.inf
    return torch.multinomial(logits.softmax(-1), 1)


def sampler(net: Net, pick: Net = PICKS["index"], choose: Net = drawn) -> Callable[[Tensor, int], Tensor]:
    def sample(x: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            x = torch.cat([x, choose(pick(net(x)) @ OUT)], 1)
        return x

    return sample


PROMPT = torch.tensor([[1, 2], [0, 5], [7, 7]])


@pytest.mark.parametrize("choose", [likeliest, drawn])
@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("net", NETS)
def test_the_rewritten_tape_gives_the_same_tokens(net: Net, pick: str, choose: Net) -> None:
    sample = sampler(net, PICKS[pick], choose)
    torch.manual_seed(1)
    padded = growth(cleaned(sample, PROMPT, 18))
    assert isinstance(padded, Padded), padded
    assert len(padded.steps) >= 15
    assert growth(padded.tape) is None
    for prompt in (PROMPT, (PROMPT + 3) % WORDS):
        torch.manual_seed(2)
        wanted = sample(prompt, 18)
        state = torch.get_rng_state()
        torch.manual_seed(2)
        (found,), _ = run_tape(padded.tape, leaf_values(padded.tape.leaves, [prompt, 18]))
        assert torch.equal(found, wanted)
        assert torch.equal(torch.get_rng_state(), state)


def test_golden(golden: Callable[[str, str], None]) -> None:
    tape = cleaned(sampler(mean_so_far, choose=likeliest), PROMPT, 6)
    padded = growth(tape)
    assert isinstance(padded, Padded)
    golden("growth", f"{tape.text()}\n\n-->\n\n{padded.tape.text()}\n\n{padded.steps}")


@pytest.mark.parametrize("net", NETS)
def test_compiled(net: Net) -> None:
    sample = sampler(net)
    compiled = fxsolve.compile(sample, solver=fxsolve.Jacobi())
    for seed in range(4):
        torch.manual_seed(seed)
        found, state = compiled(PROMPT, 20), torch.get_rng_state()
        torch.manual_seed(seed)
        assert torch.equal(found, sample(PROMPT, 20))
        assert torch.equal(state, torch.get_rng_state())
        assert compiled.solution is not None and compiled.solution.fallback is None, compiled.solution
        (block,) = compiled.solution.blocks
        assert block.kind == "FixedPoint" and block.sweeps <= block.equations
        assert seed == 0 or "no choice is a near tie" in block.certificate


def end_positions(x: Tensor) -> Tensor:
    return F.embedding(x, TABLE).cumsum(1) + PLACES[LONGEST - x.shape[1] :]


def counted_from_the_end(x: Tensor) -> Tensor:
    return F.embedding(x, TABLE).cumsum(1) * torch.ones(x.shape[1]).cumsum(0).flip(0)[None, :, None]


def share_of_the_length(x: Tensor) -> Tensor:
    return F.embedding(x, TABLE).cumsum(1) / x.shape[1]


def acausal(x: Tensor) -> Tensor:
    h = F.embedding(x, TABLE)
    return (h @ h.transpose(1, 2)).softmax(-1) @ h


def noisy(x: Tensor) -> Tensor:
    h = F.embedding(x, TABLE)
    return h.cumsum(1) + 0.1 * torch.randn_like(h)


def with_scores(x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    scores = []
    for _ in range(steps):
        logits = mean_so_far(x)[:, -1] @ OUT
        scores.append(logits.amax(-1))
        x = torch.cat([x, likeliest(logits)], 1)
    return x, torch.stack(scores)


def with_prefix(x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    for t in range(steps):
        x = torch.cat([x, likeliest(mean_so_far(x)[:, -1] @ OUT)], 1)
        if t == steps // 2:
            half = x
    return x, half


def continuous(x: Tensor, steps: int) -> Tensor:
    x = x.float()
    for _ in range(steps):
        x = torch.cat([x, x.cumsum(1)[:, -1:].sin()], 1)
    return x


def grown_in_front(x: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        x = torch.cat([likeliest(mean_so_far(x)[:, -1] @ OUT), x], 1)
    return x


KEPT: dict[str, tuple[Callable[..., object], str]] = {
    "positions from the end": (sampler(end_positions), "moves and grows"),
    "weights from the end": (sampler(counted_from_the_end), "the original's|something else"),
    "divided by the length": (sampler(share_of_the_length), "differ in more than their sizes"),
    "not causal": (sampler(acausal), "not causal"),
    "noise of the length": (sampler(noisy), "as many random numbers"),
    "scores taken out": (with_scores, "more than the sequence"),
    "a prefix taken out": (with_prefix, "used after it was lengthened"),
    "floats": (continuous, "no integers"),
    "in front": (grown_in_front, "does not stand at the end"),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_as_it_is_and_the_user_is_told(name: str) -> None:
    fn, reason = KEPT[name]
    compiled = fxsolve.compile(fn)
    for seed in range(2):
        torch.manual_seed(seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = compiled(PROMPT, 16)
        torch.manual_seed(seed)
        wanted = fn(PROMPT, 16)
        for a, b in zip(found, wanted, strict=True):  # type: ignore[call-overload]
            assert torch.equal(a, b)
        if seed == 0:
            assert [w.category for w in told] == [FallbackWarning]
            assert re.search(reason, str(told[0].message)), told[0]


def test_near_ties_go_to_the_original() -> None:
    """Two words that only rounding tells apart."""
    out = OUT.clone()
    out[:, 1] = out[:, 4] * (1 + 1e-7)

    def sample(x: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            x = torch.cat([x, likeliest(convolution(x)[:, -1] @ out)], 1)
        return x

    prompts = torch.randint(WORDS, (40, 2), generator=torch.Generator().manual_seed(0))
    compiled = fxsolve.compile(sample, solver=fxsolve.Jacobi())
    assert torch.equal(compiled(prompts, 20), sample(prompts, 20))
    assert torch.equal(compiled(prompts.flip(0), 20), sample(prompts.flip(0), 20))
    assert compiled.solution is not None and "near tie" in (compiled.solution.fallback or "")


def test_bitwise_keeps_the_original() -> None:
    compiled = fxsolve.compile(sampler(convolution), exactness="bitwise")
    with pytest.warns(FallbackWarning, match="would round differently"):
        compiled(PROMPT, 16)


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS, 20])
def test_found_from_a_number_of_steps_on(steps: int) -> None:
    found = growth(cleaned(continuous, torch.randn(2, 3), steps))
    assert (found is None) == (steps < STEPS)
    assert found is None or f"{__file__}:{continuous.__code__.co_firstlineno + 3}" in str(found)


def join(x: Tensor) -> Tensor:
    parts = [x]
    for _ in range(9):
        parts.append(torch.cat([parts[-1][:, 1:], x[:, :1]], 1))  # a window of one length
    return torch.cat(parts, 1)


def test_a_window_does_not_grow() -> None:
    assert growth(cleaned(join, torch.randint(9, (2, 3)))) is None


def test_the_layers_of_a_densenet_are_no_loop() -> None:
    layers = nn.ModuleList(nn.Linear(4 + k, 1) for k in range(12))

    def dense(x: Tensor) -> Tensor:
        for layer in layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return x

    assert growth(cleaned(dense, torch.randn(2, 4))) is None
