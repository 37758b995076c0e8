"""Random straight-line programs that write in place: to slices, strided, transposed and overlapping views, masked, indexed,
with broadcasting and conversion of dtypes, to arguments and to fresh tensors; and read the past."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import torch
from torch import Tensor

Program = Callable[[Tensor, Tensor, Tensor], list[Tensor]]
SHAPES = ((4, 6), (6,), (5, 4))  # of the arguments: two of floats, one of integers


def arguments(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    floats = [torch.randn(shape, generator=generator) for shape in SHAPES[:2]]
    return floats[0], floats[1], torch.randint(0, 4, SHAPES[2], generator=generator)


def random_program(seed: int, length: int = 16) -> Program:
    """The same choices at every call: they depend on shapes alone."""

    def program(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        rng = random.Random(seed)
        known, results = [a, b, c], []
        for _ in range(length):
            kind = rng.random()
            if kind < 0.3:
                known.append(view_of(rng, rng.choice(known)))
            elif kind < 0.4:
                known.append(fresh_from(rng, rng.choice(known)))
            elif kind < 0.85:
                write(rng, rng.choice(known), rng.choice(known))
            else:
                results.append(read(rng, rng.choice(known)))
        return [*results, *rng.sample(known, 2)]

    return program


def view_of(rng: random.Random, x: Tensor) -> Tensor:
    """A view that may be written to, of at least one element."""
    dim = rng.randrange(x.dim()) if x.dim() else 0
    views: list[Callable[[], Tensor]] = [lambda: x.detach(), lambda: x.data, lambda: x.unsqueeze(0)]
    if x.dim():
        size = x.shape[dim]
        low, step = rng.randrange(size), rng.randint(1, 2)
        views += [
            lambda: x.select(dim, low),
            lambda: x.narrow(dim, low, size - low),
            lambda: x.movedim(0, -1),
            lambda: x.chunk(2, dim)[-1],
            lambda: x.split(max(1, size // 2), dim)[0],
            lambda: x.unbind(dim)[low],
            lambda: x[low:] if dim == 0 else x[:, low:],
            lambda: x[::step] if dim == 0 else x[:, ::step],
            lambda: x.unfold(dim, 1, 2),
            lambda: x.as_strided((2,), (1,), x.storage_offset()) if x.numel() > 1 else x,
        ]
    if x.is_contiguous():
        views.append(lambda: x.view(-1))
    if x.dim() == 2:
        views += [lambda: x.t(), lambda: x.diagonal()]
    return rng.choice(views)()


def fresh_from(rng: random.Random, x: Tensor) -> Tensor:
    """Another storage."""
    return rng.choice([
        lambda: x.clone(),
        lambda: torch.zeros_like(x),
        lambda: torch.full((3, 4), 0.5),
        lambda: x.to(torch.float64 if x.dtype != torch.float64 else torch.float32),
        lambda: torch.tensor([1.0, 2.0, 3.0]),
        lambda: x.contiguous().clone(),
        lambda: torch.empty(x.shape, dtype=x.dtype).fill_(2),
    ])()  # fmt: skip


def write(rng: random.Random, x: Tensor, y: Tensor) -> None:
    """One in-place call on `x`, where y's elements are values; a call that eager refuses changes nothing."""
    number = rng.choice([2, 3]) if x.dtype == torch.int64 else rng.choice([0.5, -1.25, 2, float("nan")])
    source = fitted(rng, y, x)
    same = source.to(x.dtype)
    row = torch.tensor([rng.randrange(x.shape[0]), 0]) if x.dim() else torch.tensor([0, 0])
    acts: list[Callable[[], object]] = [
        lambda: x.fill_(number),
        lambda: x.zero_(),
        lambda: x.copy_(source),
        lambda: x.add_(same),
        lambda: x.add_(same, alpha=2),
        lambda: x.mul_(same),
        lambda: x.sub_(1),
        lambda: x.clamp_(-1, 1),
        lambda: x.neg_(),
        lambda: x.relu_(),
        lambda: x.masked_fill_(x > 0, number),
        lambda: x.copy_(torch.where(x > 0, same, x)),
        lambda: torch.add(same.expand(x.shape), 1, out=x),
        lambda: x.mul_(0),
    ]
    if x.dtype.is_floating_point:
        acts += [lambda: x.tanh_(), lambda: x.lerp_(same, 0.25), lambda: x.addcmul_(same, same, value=0.5)]
    if x.dim():
        acts += [
            lambda: x.__setitem__(0, number),
            lambda: x.__setitem__(slice(None, None, 2), number),
            lambda: x.__setitem__(..., source),
            lambda: x.__setitem__(x > 0, number),
            lambda: x.__setitem__(row, number),
            lambda: x.index_put_((row,), same[:1], accumulate=True),
            lambda: x.index_fill_(0, row, 1),
            lambda: x.index_add_(0, row[:1], same[:1]),
            lambda: x.index_copy_(0, row[:1], same[:1]),
            lambda: x.cumsum_(0),
        ]
    if x.dim() == 2:
        acts += [lambda: x.tril_(), lambda: x.triu_(1), lambda: x.scatter_(1, torch.zeros(x.shape[0], 1, dtype=torch.int64), 1)]
    with contextlib.suppress(RuntimeError, IndexError):  # an overlap, an expanded tensor, or no such dimension
        rng.choice(acts)()


def fitted(rng: random.Random, y: Tensor, x: Tensor) -> Tensor:
    """Elements of `y` in a shape that broadcasts to that of `x`; sometimes y itself, which may overlap with x."""
    if y.shape == x.shape and rng.random() < 0.7:
        return y
    shape = [n if rng.random() < 0.7 else 1 for n in x.shape][rng.randint(0, 1) if x.dim() else 0 :]
    count = 1
    for n in shape:
        count *= n
    return y.reshape(-1).repeat(count // max(1, y.numel()) + 1)[:count].reshape(shape)


def read(rng: random.Random, x: Tensor) -> Tensor:
    """A value made from what `x` holds now. No sums: they round by the order that the strides ask for."""
    return rng.choice([
        lambda: x * 2,
        lambda: x.amax(),
        lambda: x.flip(0) if x.dim() else x + 1,
        lambda: x.reshape(-1),
        lambda: x.abs().contiguous(),
        lambda: x.to(torch.float64),
        lambda: torch.cat([x.reshape(-1), x.reshape(-1)]),
        lambda: x > 0,
    ])()  # fmt: skip
