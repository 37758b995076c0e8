"""Random programs with loops: several carries, reads up to three steps back, index constants of every kind, bodies that
differ by the step's number, nested loops, lists that are stacked, indexed or read by a second loop, buffers that are
written slot by slot, noise, and Python numbers that change from step to step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

STEPS, ROWS, WIDTH = 12, 2, 3
Program = Callable[[Tensor, Tensor], Any]

UNARY: list[Callable[[Tensor], Tensor]] = [
    torch.tanh, torch.sigmoid, torch.relu, torch.sin, torch.neg, torch.abs,
    lambda v: v * 0.5, lambda v: 1 - v, lambda v: v.flip(1), lambda v: v.clamp(-1, 0.5), lambda v: v.softmax(1),
    lambda v: v.t().contiguous().t(), lambda v: v.chunk(2, 1)[0].expand(-1, WIDTH) if v.shape[1] == 1 else v.roll(1, 1),
]  # fmt: skip
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum,
    lambda a, b: torch.where(a > b, a, b * 0.5), lambda a, b: torch.cat([a[:, :1], b[:, 1:]], 1),
    lambda a, b: torch.addcmul(a, a, b, value=0.5), lambda a, b: a + b[:, :1], lambda a, b: torch.stack([a, b]).amax(0),
]  # fmt: skip
WEIGHTS = [torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(k)) / 2 for k in range(3)]
MASK = torch.tril(torch.ones(WIDTH, WIDTH))
KNOBS = [0.5, 0.25, 0.125]


def arguments(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(STEPS, ROWS, WIDTH, generator=generator), torch.randn(ROWS, WIDTH, generator=generator)


def body(seed: int, values: list[Tensor]) -> Tensor:
    """The same few operations wherever it is called with the same seed."""
    rng, values = random.Random(seed), list(values)
    for _ in range(rng.randint(2, 5)):
        kind = rng.random()
        if kind < 0.35:
            values.append(rng.choice(UNARY)(rng.choice(values)))
        elif kind < 0.75:
            values.append(rng.choice(BINARY)(rng.choice(values), rng.choice(values)))
        elif kind < 0.9:
            values.append(rng.choice(values) @ (rng.choice(WEIGHTS) * MASK).t())
        else:
            values.append(torch.nn.functional.linear(rng.choice(values), rng.choice(WEIGHTS), values[0][0]))
    return torch.tanh(values[-1] + values[0])


def positions(rng: random.Random, count: int) -> list[int]:
    """Index constants: in order, backwards, in a permutation, at random with repetitions."""
    order = list(range(count))
    kind = rng.randrange(4)
    if kind == 1:
        order.reverse()
    elif kind == 2:
        rng.shuffle(order)
    elif kind == 3:
        order = [rng.randrange(count) for _ in order]
    return order


def ending(rng: random.Random, states: list[Tensor], second: int) -> Any:
    """What is made of a list of states: stacked, joined, picked from, or read by a second loop."""
    kind = rng.randrange(7)
    if kind == 0:
        return torch.stack(states, rng.randrange(3))
    if kind == 1:
        return torch.cat(states, rng.randrange(2)), states[-1]
    if kind == 2:
        return states[-1], states[len(states) // 2], states[0] + states[-2]
    if kind == 3:
        return {"all": torch.stack(states[::-1]), "some": torch.stack(states[1::2]), "last": states[-2]}
    if kind == 4:
        return torch.stack(states)[torch.tensor(positions(rng, len(states)))]
    if kind == 5:
        total = states[0]
        for state in states[1:]:
            total = total * 0.5 + state
        return total
    again, out = states[0], []
    for position in positions(rng, len(states)):
        again = body(second, [again, states[position]])
        out.append(again)
    return torch.stack(out, 1), states[3]


def states_loop(seed: int) -> Program:
    """Lists of states: one to three carries, up to three steps back; noise; numbers; alternating bodies."""

    def program(x: Tensor, h: Tensor) -> Any:
        rng = random.Random(seed)
        back, carries = rng.randint(1, 3), rng.randint(1, 3)
        alternate, noisy, numbers, mixed = (rng.random() < p for p in (0.3, 0.3, 0.3, 0.3))
        reads = positions(rng, STEPS)
        inputs = rng.choice([lambda: x, lambda: list(x), lambda: x.unbind(0), lambda: x.flip(0), lambda: x.transpose(1, 2)])()
        per_step = [0.9**t for t in range(STEPS)]
        pasts = [[h * (k + 1 + c) for k in range(back)] for c in range(carries)]
        for t in range(back, STEPS):
            given = inputs[reads[t]]
            if given.shape != h.shape:
                given = given.t()
            known = [past[-1] for past in pasts] + [given, pasts[0][-back]]
            if noisy:
                known.append(torch.randn(ROWS, WIDTH))
            if numbers:
                known.append(given * per_step[t] + t)
            if mixed:
                known.append(torch.full((ROWS, WIDTH), 0.1 * t) * (x[t] > 0.1 * t))
            for c, past in enumerate(pasts):
                past.append(body(seed + c + (t % 2 if alternate else 0), [past[-1], *known]))
        return ending(rng, pasts[0], seed + 7), pasts[-1][-1]

    return program


def buffer_loop(seed: int) -> Program:
    """A buffer written slot by slot, in any order, along any dimension; read at the slot before, at itself, as a whole."""

    def program(x: Tensor, h: Tensor) -> Any:
        rng = random.Random(seed)
        order = positions(rng, STEPS)
        dim = rng.randrange(3)
        buffer = torch.zeros(STEPS, ROWS, WIDTH) if rng.random() < 0.5 else x.clone() if rng.random() < 0.7 else x
        buffer = buffer.movedim(0, dim).contiguous().movedim(dim, 0) if rng.random() < 0.5 else buffer
        whole, scaled, twice, masked = (rng.random() < p for p in (0.3, 0.3, 0.2, 0.2))
        previous = order[0]
        for i in order[1:]:
            known = [x[i] * 0.5, buffer[previous], buffer[i]]
            if whole:
                known.append(buffer.amax(0))
            buffer[i] = body(seed, known)
            if scaled:
                buffer[i, :, :1].mul_(0.5)
            if twice:
                buffer[i] += h
            if masked:
                buffer[i].masked_fill_(buffer[i] > 0.5, 0.25)
            previous = i
        return buffer, buffer[previous] * 2, buffer.flatten(1)

    return program


def nested_loop(seed: int) -> Program:
    """Rows and columns, layers and steps, steps and inner iterations."""

    def program(x: Tensor, h: Tensor) -> Any:
        rng = random.Random(seed)
        kind = rng.randrange(4)
        if kind == 0:  # an inner loop in each step
            for t in range(STEPS):
                h = h + x[t]
                for k in range(3):
                    h = body(seed + (k if rng.random() < 0 else 0), [h, x[t]])
            return h
        if kind == 1:  # layers of steps
            layer = list(x)
            for _ in range(3):
                state, out = h, []
                for given in layer:
                    state = body(seed, [state, given])
                    out.append(state)
                layer = out
            return torch.stack(layer), h
        image = torch.zeros(ROWS, 6, 7)
        if kind == 2:  # rows and columns, the first ones different
            for i in range(6):
                for j in range(7):
                    left = image[:, i, j - 1] if j else h[:, 0]
                    above = image[:, i - 1, j] if i else torch.zeros(ROWS)
                    image[:, i, j] = torch.tanh(0.5 * left - above + x[i, :, j % 3])
            return image
        for i in range(6):  # slots in rows and columns, the whole image read each time
            for j in range(7):
                seen = torch.tanh(image.amax(1) * 0.5)
                image[:, i, j] = seen[:, j] * 0.3 + x[i, :, j % 3]
        return image, image[:, 2]

    return program


def two_loops(seed: int) -> Program:
    """Two loops in a row: forwards and backwards, the second reading the first, or with another body."""

    def program(x: Tensor, h: Tensor) -> Any:
        rng = random.Random(seed)
        forwards, state = [], h
        for given in x:
            state = body(seed, [state, given])
            forwards.append(state)
        backwards: list[Tensor] = []
        state = h if rng.random() < 0.5 else state
        reads = [lambda t: x[t], lambda t: forwards[t], lambda t: forwards[t] + x[t], lambda t: torch.stack(forwards)[t]]
        read = rng.choice(reads)
        for t in reversed(range(STEPS)):
            state = body(seed + rng.randrange(1), [state, read(t)])
            backwards.insert(0, state)
        both = [torch.cat([a, b], 1) for a, b in zip(forwards, backwards, strict=True)]
        return rng.choice([lambda: torch.stack(both, 1), lambda: both[3:5], lambda: (torch.stack(forwards), backwards[0])])()

    return program


KINDS = (states_loop, buffer_loop, nested_loop, two_loops)
