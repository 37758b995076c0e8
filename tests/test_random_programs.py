"""Random programs end to end: loops of random bodies, in-place writes and reads of the past agree with eager.

A program is a list of instructions, drawn once from a seed and interpreted in every iteration, so that what is recorded
is as irregular as what users write: registers, buffers that are written in place, branches on the iteration's number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fxsolve
from fxsolve import GaussSeidel, GSJacobi, Jacobi, JacobiGS

from .checking import assert_same_bits, assert_to_rounding, clones, doubled, quiet

STEPS, BATCH, WIDTH = 22, 2, 4
PROGRAMS, CHUNK = 360, 12
PARALLEL: list[Any] = [JacobiGS(5), JacobiGS(8, 4), Jacobi(), GSJacobi(7), GaussSeidel(3)]

UNARY: list[Callable[[Tensor], Tensor]] = [
    torch.tanh, torch.sigmoid, torch.relu, torch.sin, torch.abs, F.softplus, F.gelu, F.silu,
    lambda v: 0.5 * v, lambda v: v - 0.25, lambda v: v.neg(), lambda v: v.clamp(-1, 1), lambda v: 1 / (1 + v * v),
    lambda v: F.layer_norm(v, v.shape[-1:]), lambda v: torch.softmax(v, -1), lambda v: v.cumsum(-1) * 0.3,
    lambda v: v.mean(-1, keepdim=True).expand_as(v), lambda v: v.flip(-1), lambda v: v.roll(1, -1),
    lambda v: torch.cat(v.chunk(2, -1)[::-1], -1), lambda v: v.t().t(), lambda v: v.reshape(-1).view(v.shape),
]  # fmt: skip
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum,
    lambda a, b: 0.3 * a + b, lambda a, b: torch.lerp(a, b, 0.25), lambda a, b: torch.addcmul(a, a, b, value=0.5),
    lambda a, b: a / (1 + b.abs()), lambda a, b: torch.where(a > b, a, 0.5 * b),
    lambda a, b: (a.unsqueeze(1) @ b.unsqueeze(2)).squeeze(2).expand_as(a) * 0.1,
]  # fmt: skip
IN_PLACE: list[Callable[[Tensor, Tensor], Any]] = [
    lambda a, b: a.add_(b, alpha=0.5), lambda a, b: a.mul_(0.5), lambda a, b: a.clamp_(-1, 1),
    lambda a, b: a[:, :2].copy_(b[:, 1:3]), lambda a, b: a[:, 1].fill_(0.25), lambda a, b: a[:1].add_(b[1:]),
    lambda a, b: a.sub_(b * 0.1).tanh_(), lambda a, b: a.t()[0].mul_(2),
]  # fmt: skip
NUMBERS: list[Callable[[int], float]] = [lambda t: 0.1 * t, lambda t: float(t % 4), lambda t: 1 / (t + 1)]
CONDITIONS: list[Callable[[int], bool]] = [
    lambda t: t % 2 == 0, lambda t: t % 3 == 1, lambda t: t > 0, lambda t: t != STEPS - 1
]  # fmt: skip

Instruction = tuple[Any, ...]


def body_of(rng: random.Random, registers: int, weights: int, buffers: int) -> list[Instruction]:
    """Some instructions; at least one state is read and written."""
    kinds = ["unary", "binary", "product", "input", "number", "in_place", "write", "past", "branch", "noise", "write_row"]
    chances = [4, 4, 3, 2, 1, 2, 2 * (buffers > 0), 2 * (buffers > 0), 1, rng.random() < 0.15, 0.7 * (buffers > 0)]

    def register() -> int:
        return rng.randrange(registers)

    def one(depth: int = 0) -> Instruction:
        kind = rng.choices(kinds, chances)[0]
        if kind == "unary":
            return kind, register(), rng.choice(UNARY), register()
        if kind == "binary":
            return kind, register(), rng.choice(BINARY), register(), register()
        if kind == "product":
            return kind, register(), rng.randrange(weights), register()
        if kind == "input":
            return kind, register(), rng.choice([1, 1, 1, -1, 3]), rng.randrange(3)
        if kind == "number":
            return kind, register(), rng.choice(NUMBERS), register()
        if kind == "in_place":
            return kind, register(), rng.choice(IN_PLACE), register()
        if kind == "write":
            return kind, rng.randrange(buffers), rng.choice([0, 0, 0, 1]), register()
        if kind == "write_row":
            return kind, rng.randrange(buffers), rng.randrange(BATCH), rng.randrange(WIDTH), register()
        if kind == "past":
            return kind, register(), rng.randrange(buffers), rng.randint(1, 3)
        if kind == "branch" and depth == 0:
            return kind, rng.choice(CONDITIONS), [one(1) for _ in range(rng.randint(1, 2))]
        if kind == "noise":
            return kind, register(), rng.choice([torch.rand_like, torch.randn_like])
        return "unary", register(), torch.tanh, register()

    found = [one() for _ in range(rng.randint(2, 8))]
    state = register()
    return [*found, ("product", state, rng.randrange(weights), register()), ("unary", state, torch.tanh, state)]


def execute(
    code: Sequence[Instruction], t: int, regs: list[Tensor], x: Tensor, weights: list[Tensor], ys: list[Tensor]
) -> None:
    """One iteration."""
    for kind, target, *rest in code:
        if kind == "unary":
            regs[target] = rest[0](regs[rest[1]])
        elif kind == "binary":
            regs[target] = rest[0](regs[rest[1]], regs[rest[2]])
        elif kind == "product":
            regs[target] = regs[rest[1]] @ weights[rest[0]]
        elif kind == "input":
            regs[target] = 0.3 * regs[target] + x[:, (t * rest[0] + rest[1]) % x.shape[1]]
        elif kind == "number":
            regs[target] = 0.5 * regs[rest[1]] + rest[0](t)
        elif kind == "in_place":
            regs[target] = regs[target].clone()
            rest[0](regs[target], regs[rest[1]].clone())
        elif kind == "write":
            ys[target][:, min(t + rest[0], ys[target].shape[1] - 1)] = regs[rest[1]]
        elif kind == "write_row":
            ys[target][rest[0], t, rest[1]] = regs[rest[2]].sum() * 0.1
        elif kind == "past":
            regs[target] = regs[target] * 0.5 + ys[rest[0]][:, max(t - rest[1], 0)]
        elif kind == "branch":
            if target(t):
                execute(rest[0], t, regs, x, weights, ys)
        elif kind == "noise":
            regs[target] = regs[target] * 0.5 + rest[0](regs[target], dtype=torch.float32).to(x.dtype)


def order_of(rng: random.Random, steps: int) -> list[int]:
    """Mostly forwards; sometimes backwards, by twos, or shuffled."""
    forwards = list(range(steps))
    shuffled = rng.sample(forwards, steps)
    return rng.choice([forwards, forwards, forwards, forwards[::-1], forwards[::2] + forwards[1::2], shuffled])


def loop_program(seed: int) -> tuple[Callable[..., Any], list[Any]]:
    """A loop of a random body, or two loops one after the other, with random results."""
    rng = random.Random(seed)
    registers, count, buffers = rng.randint(1, 3), rng.randint(1, 2), rng.choice([0, 1, 1, 2])
    bodies = [body_of(rng, registers, count, buffers) for _ in range(rng.choice([1, 1, 1, 2]))]
    orders = [order_of(rng, STEPS) for _ in bodies]
    collected = rng.randrange(registers)
    mutates = rng.random() < 0.2

    def run(x: Tensor, h: Tensor, *weights: Tensor) -> Any:
        regs = [h * (k + 1) / registers for k in range(registers)]
        ys = [torch.zeros_like(x) if k == 0 else x.flip(1).clone() for k in range(buffers)]
        outs = []
        for code, order in zip(bodies, orders, strict=True):
            for t in order:
                execute(code, t, regs, x, list(weights), ys)
                outs.append(regs[collected])
        if mutates:
            x.mul_(0.5)
            h.copy_(regs[0])
        return {"regs": regs, "outs": torch.stack(outs), "ys": ys, "some": outs[3:5]}

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, STEPS, WIDTH, generator=generator)
    h = torch.randn(BATCH, WIDTH, generator=generator)
    weights = [0.35 * torch.randn(WIDTH, WIDTH, generator=generator) for _ in range(count)]
    return run, [x, h, *weights]


def sampler_program(seed: int) -> tuple[Callable[..., Any], list[Any]]:
    """A buffer that a random masked network fills slot by slot; sometimes a weight leaks, or the order is another one."""
    rng = random.Random(seed)
    order = order_of(rng, STEPS)
    place = torch.empty(STEPS, dtype=torch.long)
    place[torch.tensor(order)] = torch.arange(STEPS)
    reach = rng.choice([STEPS, 3, 1])
    ago = place[:, None] - place[None, :]
    mask = ((ago >= 1) & (ago <= reach)).float()
    loose = ((ago >= 0) & (ago <= rng.choice([0, 2, STEPS]))).float()
    if rng.random() < 0.2:
        mask[rng.randrange(STEPS), rng.randrange(STEPS)] = 1.0
    acts = [rng.choice([torch.tanh, torch.relu, torch.sin, torch.sigmoid, F.softplus]) for _ in range(2)]
    noise = rng.choice([None, "rand", "randn", "bernoulli"])
    integers = noise == "bernoulli" and rng.random() < 0.5
    masked_first = rng.random() < 0.5

    def run(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        x = x.clone()
        a, b = v * mask.to(v.dtype), w * loose.to(w.dtype)
        if not masked_first:
            a, b = b, a
        for i in order:
            inner = F.linear(acts[0](F.linear(x.to(v.dtype), a)), b)[:, i]
            if noise == "rand":
                inner = inner + torch.rand(inner.shape, dtype=torch.float32).to(inner.dtype)
            elif noise == "randn":
                inner = inner + 0.5 * torch.randn_like(inner, dtype=torch.float32).to(inner.dtype)
            value = acts[1](inner)
            x[:, i] = torch.bernoulli(value.clamp(0, 1)) if noise == "bernoulli" else value
        return x

    generator = torch.Generator().manual_seed(seed)
    start = torch.zeros(BATCH, STEPS) if rng.random() < 0.7 else torch.randn(BATCH, STEPS, generator=generator)
    square = [torch.randn(STEPS, STEPS, generator=generator) / STEPS**0.5 for _ in range(2)]
    return run, [start.long() if integers else start, *square]


def solver_of(seed: int) -> Any:
    """Often one of the parallel solvers, sometimes in order, sometimes the automatic choice (mostly in order: T is small)."""
    rng = random.Random(seed + 1)
    return rng.choices([rng.choice(PARALLEL), GaussSeidel(), "auto"], [4, 2, 1])[0]


def seeded_run(fn: Callable[..., Any], args: Sequence[Any], seed: int) -> tuple[Any, list[Any], Tensor]:
    """The result, the arguments as they are afterwards, and the generator's state."""
    given = clones(args)
    torch.manual_seed(seed)
    with torch.no_grad():
        result = fn(*given)
    return result, given, torch.get_rng_state()


def bitwise(compiled: Any) -> bool:
    """Whether the last call promises eager's bits."""
    solution = compiled.solution
    return solution.fallback is not None or all(
        b.kind == "FixedPoint" or b.solver == "GaussSeidel()" for b in solution.blocks
    )


def check(fn: Callable[..., Any], args: list[Any], solver: Any) -> Any:
    """Later calls, with other noise and with other values, agree with eager."""
    compiled = fxsolve.compile(fn, solver=solver, verify="never")
    seeded_run(compiled, args, 0)
    other = [args[0].flip(0), *args[1:]]
    for seed, given in enumerate((args, other)):
        ours, ours_after, ours_state = seeded_run(compiled, given, seed)
        theirs, theirs_after, theirs_state = seeded_run(fn, given, seed)
        assert torch.equal(ours_state, theirs_state), "the generator is left in another state"
        if bitwise(compiled):
            assert_same_bits((ours, ours_after), (theirs, theirs_after))
        else:
            exact, exact_after, _ = seeded_run(fn, [doubled(a) for a in given], seed)
            assert_to_rounding((ours, ours_after), (theirs, theirs_after), (exact, exact_after))
    assert "internal error" not in str(compiled.solution.fallback), compiled.solution.fallback
    return compiled


@pytest.mark.parametrize("chunk", range(PROGRAMS // CHUNK))
def test_random_programs(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        fn, args = sampler_program(seed) if seed % 4 == 3 else loop_program(seed)
        solver = solver_of(seed)
        try:
            quiet(lambda: check(fn, args, solver))  # noqa: B023
        except fxsolve.ScheduleError as error:
            assert solver in PARALLEL and "block" in str(error), f"seed {seed}"
        except Exception as error:
            raise AssertionError(f"seed {seed}, {solver}: {error}") from error


def test_the_programs_are_worth_it() -> None:
    """Most programs are compiled, and each way of solving occurs often."""
    kinds: list[str] = []
    for seed in range(0, PROGRAMS, 6):
        fn, args = sampler_program(seed) if seed % 4 == 3 else loop_program(seed)
        compiled = fxsolve.compile(fn, solver=GaussSeidel())
        seeded_run(lambda *a: quiet(lambda: compiled(*a)), args, 0)  # noqa: B023
        kinds.append("original" if compiled.solution.fallback else "blocks")
    assert kinds.count("blocks") >= 0.8 * len(kinds)
