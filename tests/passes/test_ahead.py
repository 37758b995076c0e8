"""What a step computes without the state, ahead of the steps: golden text, what goes and what stays, and eager's bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from fxsolve.bits import same_bits
from fxsolve.ir import CARRY, CONST, STACKED, Recurrence, TensorType, calls, contiguous_stride, placeholders, to_text
from fxsolve.passes.ahead import LARGEST, ahead, exact
from fxsolve.passes.hoist_invariants import hoist_invariants
from fxsolve.passes.hoist_noise import hoist_noise
from fxsolve.walk_in_order import WalkInOrder
from tests.passes.random_loops import arguments, states_loop
from tests.passes.running import program_of

T = 12
torch.manual_seed(0)
WEIGHT = torch.randn(4, 4)
BETA = torch.linspace(1e-4, 0.02, T)


def denoised(x: Tensor) -> Tensor:
    bars = (1 - BETA).cumprod(0)
    for t in reversed(range(1, T)):
        e = torch.tanh(x @ WEIGHT)
        x = (x - BETA[t] / (1 - bars[t]).sqrt() * e) / (1 - BETA[t]).sqrt()
        x = x + BETA[t].sqrt() * torch.randn_like(x)
    return x


def block_of(fn: Callable[..., Any], *args: Any) -> Recurrence:
    (block,) = hoist_noise(hoist_invariants(program_of(fn, *args))).blocks.values()
    assert isinstance(block, Recurrence)
    return block


def names(graph: fx.Graph) -> list[str]:
    return [node.target.__name__ for node in calls(graph)]  # type: ignore[union-attr]


def agrees(block: Recurrence, seed: int) -> None:
    """The walk, against the step called again and again."""
    generator = torch.Generator().manual_seed(seed)

    def example(prefix: str, *lead: int) -> list[Tensor]:
        found = []
        for node in placeholders(block.step, prefix):
            kind = node.meta["type"]
            values = 3 * torch.randn(*lead, *kind.shape, generator=generator)
            found.append(values.to(kind.dtype) if lead else kind.empty().copy_(values))
        return found

    state, stacked, consts = example(CARRY), example(STACKED, block.length), example(CONST)
    walked = WalkInOrder(block)(state, stacked, consts)
    step, outputs = fx.GraphModule({}, block.step), []
    order = range(block.length)
    for t in reversed(order) if block.reverse else order:
        made = step(*state, *[x[t] for x in stacked], *[c[t] for c in block.table], *consts)
        state = made[: block.carries]
        outputs.append(made[block.carries :])
    outputs = outputs[::-1] if block.reverse else outputs
    expected = [*state, *[torch.stack(column) for column in zip(*outputs, strict=True)]]
    assert len(walked) == len(expected)
    for ours, theirs in zip(walked, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert same_bits(ours.contiguous().nan_to_num(), theirs.contiguous().nan_to_num())


def test_golden(golden: Callable[[str, str], None]) -> None:
    block = block_of(denoised, torch.randn(2, 4))
    pre, rest = ahead(block)
    golden("ahead", f"{to_text(block.step)}\n\n-->\n\n{to_text(pre)}\n\n{to_text(rest.step)}")
    again, same = ahead(rest)
    assert not names(again) and to_text(same.step) == to_text(rest.step)
    agrees(block, 0)


@pytest.mark.parametrize(
    "op",
    [
        lambda x, t: x[t].exp(),
        lambda x, t: x[t] @ WEIGHT,
        lambda x, t: torch.add(x[t], x[t - 1], alpha=0.3),
        lambda x, t: x[t].sum(),
        lambda x, t: torch.addcmul(x[t], x[t], x[t - 1]),
        lambda x, t: x[t].sigmoid(),
    ],
)
def test_what_rounds_as_the_shape_has_it_stays(op: Callable[[Tensor, int], Tensor]) -> None:
    def program(x: Tensor, h: Tensor) -> Tensor:
        for t in range(1, T):
            h = torch.tanh(h) + op(x, t)
        return h

    block = block_of(program, torch.randn(T, 3, 4), torch.randn(3, 4))
    pre, rest = ahead(block)
    moving = {"select.int", "slice.Tensor"}
    assert set(names(pre)) <= moving and len(names(rest.step)) + len(names(pre)) == len(names(block.step))
    agrees(block, 0)


def test_what_a_product_reads_is_where_eager_has_it() -> None:
    """The bits of a product of one row depend on where that row begins."""

    def program(x: Tensor, h: Tensor) -> Tensor:
        for t in range(T):
            h = torch.tanh(h) + (x[t] * 2)[1:].t() @ WEIGHT + x[t, 0] * 3
        return h

    block = block_of(program, torch.randn(T, 5, 1), torch.randn(1, 4))
    pre, rest = ahead(block)
    assert names(pre) == ["select.int", "read", "mul.Tensor"]
    assert names(rest.step)[1:4] == ["mul.Tensor", "slice.Tensor", "t.default"]
    agrees(block, 0)


def test_what_lies_otherwise_in_memory_stays() -> None:
    """Elementwise calls round some elements as vectors and some one by one: which ones, the strides say."""

    def program(x: Tensor, h: Tensor) -> Tensor:
        for t in range(T):
            h = torch.tanh(h * x[:, :, t]) + (x[:, :, t] / 3) + (x[:, :, t].t().clone() / 7).t()
        return h

    block = block_of(program, torch.randn(3, 37, T), torch.randn(3, 37))
    pre, rest = ahead(block)
    kinds = [node.meta["type"] for node in placeholders(rest.step, STACKED)]
    assert all(kind.stride == contiguous_stride(kind.shape) for kind in kinds), to_text(rest.step)
    agrees(block, 0)


def test_operands_on_two_devices_stay() -> None:
    for device, goes in (("cuda", False), ("cpu", True)):
        graph = fx.Graph()
        x, y = graph.placeholder("x0"), graph.placeholder("c0")
        x.meta["type"] = TensorType((2, 4), (4, 1), torch.float32, torch.device("cpu"))
        y.meta["type"] = TensorType((), (), torch.float32, torch.device(device))
        product = graph.call_function(torch.ops.aten.mul.Tensor, (x, y))
        product.meta["type"] = x.meta["type"]
        assert exact(product, T) == goes


def test_large_results_stay() -> None:
    def program(x: Tensor, h: Tensor) -> Tensor:
        for t in range(T):
            h = torch.tanh(h) + (x[t] * 2).expand(rows, 4).clone()
        return h

    for rows, ahead_of_it in ((8, True), (LARGEST // T // 4 + 1, False)):
        block = block_of(program, torch.randn(T, 4), torch.randn(rows, 4))
        assert ("expand.default" in names(ahead(block)[0])) == ahead_of_it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 5, 16, 37])
@pytest.mark.parametrize(
    "op",
    [
        lambda a, b, t: a / b,
        lambda a, b, t: a * b - a,
        lambda a, b, t: 1 - a / 3,
        lambda a, b, t: (a * a + t).sqrt(),
        lambda a, b, t: torch.where(a > b, -a, b.abs()),
        lambda a, b, t: a[0, 0] * b + b[:, :1] / t,
        lambda a, b, t: torch.cat([b, a], 0)[1:-1],
        lambda a, b, t: (a.t() / b.t()).t().clone(),
        lambda a, b, t: torch.stack([a, b], 1)[:, 0] * torch.full((), 1.0 / t, dtype=a.dtype),
        lambda a, b, t: ((a < b) & (a > 0)).to(a.dtype) * t,
        lambda a, b, t: a.double().div(3).to(a.dtype),
        lambda a, b, t: sum(b.split(1, 0)) / (t + 1),
    ],
)
def test_bits(op: Callable[[Tensor, Tensor, int], Tensor], width: int, dtype: torch.dtype) -> None:
    def program(x: Tensor, y: Tensor, h: Tensor) -> Tensor:
        seen = []
        for t in range(1, T):
            made = op(x[t], y[t - 1], t)
            h = torch.tanh(h) + made
            seen.append(made)
        return h + torch.stack(seen).sum(0)

    x, y = (torch.randn(T, 2, width, dtype=dtype) for _ in range(2))
    block = block_of(program, x, y, torch.randn(2, width, dtype=dtype))
    assert names(ahead(block)[0]) or width > 1
    agrees(block, width)


@pytest.mark.parametrize("seed", range(60))
def test_random_loops(seed: int) -> None:
    fn, args = states_loop(seed), arguments(seed)
    for block in hoist_noise(hoist_invariants(program_of(fn, *args))).blocks.values():
        assert isinstance(block, Recurrence)
        agrees(block, seed)
        pre, rest = ahead(block)
        assert not names(ahead(rest)[0])
