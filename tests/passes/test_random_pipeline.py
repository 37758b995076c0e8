"""Random programs through every stage of the pipeline, bit for bit with eager: loops of random bodies, in-place writes at
random places, reads of the past. The same programs, wherever their loops roll, are what the solvers get."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.passes.running import agrees

STEPS = 12
UNARY: list[Callable[[Tensor], Tensor]] = [torch.tanh, torch.sigmoid, torch.relu, torch.sin, lambda v: v * 0.5, lambda v: -v]
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add,
    torch.mul,
    torch.sub,
    torch.maximum,
    lambda a, b: torch.where(a > 0, a, b),
    lambda a, b: torch.cat([a[:, :1], b[:, 1:]], 1),
]


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(3, 3, generator=generator) / 2 for _ in range(2)]


W = weights()


def random_expression(rng: random.Random, values: list[Tensor]) -> Tensor:
    """A few random operations on (2, 3) values; the same choices whenever `rng` starts from the same state."""
    values = list(values)
    for _ in range(rng.randint(2, 5)):
        kind = rng.random()
        if kind < 0.35:
            values.append(rng.choice(UNARY)(rng.choice(values)))
        elif kind < 0.8:
            values.append(rng.choice(BINARY)(rng.choice(values), rng.choice(values)))
        else:
            values.append(rng.choice(values) @ rng.choice(W))
    return torch.tanh(values[-1])


def carried_loop(seed: int) -> Callable[[Tensor], object]:
    """Lists of states with reads up to three steps back, noise now and then, results stacked, concatenated or picked."""

    def program(x: Tensor) -> object:
        head = random.Random(seed)
        back, noisy, ending = head.randint(1, 3), head.random() < 0.3, head.randint(0, 3)
        past = [x[0] * (k + 1) for k in range(back)]
        for t in range(back, STEPS):
            known = [x[t], past[-1], past[-back]]
            if noisy:
                known.append(torch.randn(2, 3))
            h = random_expression(random.Random(seed + 1), known)
            past.append(h)
        if ending == 0:
            return torch.stack(past, 1)
        if ending == 1:
            return torch.cat(past[back:], 1), past[-1]
        if ending == 2:
            return past[-1], past[STEPS // 2]
        return {"all": torch.stack(past[::-1]), "last": past[-2]}

    return program


def in_place_loop(seed: int) -> Callable[[Tensor], object]:
    """A buffer written slot by slot in a random order, read at random places that were written or not."""

    def program(x: Tensor) -> object:
        head = random.Random(seed)
        order = list(range(STEPS))
        if head.random() < 0.5:
            head.shuffle(order)
        buffer = torch.zeros(STEPS, 2, 3) if head.random() < 0.5 else x.clone()
        whole, scaled = head.random() < 0.3, head.random() < 0.3
        previous = order[0]
        for i in order[1:]:
            known = [x[i], buffer[previous], buffer[i]]
            if whole:
                known.append(buffer.sum(0))
            value = random_expression(random.Random(seed + 1), known)
            buffer[i] = value
            if scaled:
                buffer[i, :, :1].mul_(0.5)
            previous = i
        return buffer, buffer[previous]

    return program


def straight_line(seed: int) -> Callable[[Tensor], object]:
    """No loop that rolls: random writes to overlapping regions of one buffer and its views."""

    def program(x: Tensor) -> object:
        rng = random.Random(seed)
        buffer = x.clone()
        views = [buffer, buffer[2:7], buffer.transpose(0, 1), buffer[:, 0], buffer[::2], buffer.view(STEPS, 6)]
        results = []
        for _ in range(14):
            view = rng.choice(views)
            act = rng.randint(0, 5)
            if act == 0:
                view.mul_(0.5)
            elif act == 1:
                view.copy_(rng.choice(views).flatten()[0].clone())
            elif act == 2:
                view[rng.randrange(view.shape[0])] = 1.5
            elif act == 3:
                view.add_(view.amax())  # a sum would round by the order that the strides ask for
            elif act == 4:
                view.masked_fill_(view > 1, 0.25)
            else:
                results.append(view * 2)
        return [buffer, *results]

    return program


@pytest.mark.parametrize("make", [carried_loop, in_place_loop, straight_line], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(110))
def test_random_programs(make: Callable[[int], Callable[[Tensor], object]], seed: int) -> None:
    x = torch.randn(STEPS, 2, 3, generator=torch.Generator().manual_seed(seed))
    agrees(make(seed), x, values=False)
