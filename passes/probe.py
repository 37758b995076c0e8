"""The empirical check beside the causality proof: do later slots touch the bits of what earlier steps read?

The proof speaks of exact arithmetic. A kernel may still mix positions in its rounding (Winograd and FFT convolutions
do), so later slots are perturbed, and what the head reads for earlier steps is compared by bit pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxsolve.bits import bits, same_bits
from fxsolve.ir import CONST, INDEX, FixedPoint, Slots, TensorType, placeholders
from fxsolve.passes.causality_head import reads
from fxsolve.prims import SlotView

name = "probe"

# Perturbations of floats: values like a network's own, and values far outside.
SCALES = (1.0, 100.0)


def probe_bits(
    network: Callable[..., Sequence[Tensor]],
    block: FixedPoint,
    buffers: Sequence[Tensor],
    steps: Sequence[int],
    consts: Sequence[Tensor],
    nonfinite: bool = False,
) -> str | None:
    """Why `network(*buffers)` is not causal in bits, or None.

    For each t of `steps` all slots from t on are perturbed; what the head reads for the steps up to t must not change.
    A perturbation at which the network overflows says nothing. `nonfinite` puts NaN and infinities there instead:
    masked weights let them through (0 * NaN is NaN), so failing that says only that such guesses must be kept out.
    `consts` are the block's invariants c0, c1, ...
    """
    reader = _Reader(block, consts)
    generator = torch.Generator("cpu").manual_seed(0)
    before = reader.read(network(*buffers), block.length)
    for t in steps:
        for scale in (torch.inf,) if nonfinite else SCALES:
            changed = [_perturbed(b, s, t, scale, generator) for b, s in zip(buffers, block.slots, strict=True)]
            features = network(*changed)
            if not nonfinite and not all(bool(f.isfinite().all()) for f in features if f.is_floating_point()):
                continue
            after = reader.read(features, t + 1)
            if not all(same_bits(a[: t + 1], b) for a, b in zip(before, after, strict=True)):
                return f"what step {t} or an earlier one reads changes in bits when the slots from {t} on change"
    return None


def _perturbed(buffer: Tensor, slots: Slots, t: int, scale: float, generator: torch.Generator) -> Tensor:
    """A copy of the buffer with other values in the slots from t on; integers stay in the range that is there."""
    out = buffer.clone()
    view = SlotView.of(slots.shape, slots.stride, slots.offsets, buffer.device)
    shape = view.gather(out)[t:].shape
    if not buffer.is_floating_point():
        fresh = torch.randint(0, max(int(buffer.max()), 1) + 1, shape, generator=generator)
    elif scale == torch.inf:
        fresh = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.randint(0, 3, shape, generator=generator)]
    else:
        fresh = torch.randn(shape, generator=generator) * scale
    view.scatter_(out, fresh.to(buffer.device, buffer.dtype), t)
    return out


class _Reader:
    """What a block's head picks from the network's results, step by step, on real tensors."""

    def __init__(self, block: FixedPoint, consts: Sequence[Tensor]) -> None:
        self.block, self.consts = block, consts
        self.plan = reads(block.head)

    def read(self, features: Sequence[Tensor], steps: int) -> list[Tensor]:
        """All that the first `steps` steps pick, stacked over the steps."""
        head = self.block.head
        env: dict[fx.Node, Any] = dict(zip(placeholders(head, "f"), features, strict=True))
        env.update(zip(placeholders(head, CONST), self.consts, strict=True))
        self._run(self.plan.once, env)
        picked = []
        for t in range(steps):
            env.update(zip(placeholders(head, INDEX), (column[t] for column in self.block.table), strict=True))
            self._run(self.plan.moves, env)
            picked.append([env[node] for node in self.plan.picked])
        return [torch.stack(column) for column in zip(*picked, strict=True)]

    @staticmethod
    def _run(nodes: Sequence[fx.Node], env: dict[fx.Node, Any]) -> None:
        for node in nodes:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), env.__getitem__)  # type: ignore[misc]
            env[node] = node.target(*args, **kwargs)  # type: ignore[operator]


SAMPLES = 1 << 16


def unstable_op(head: fx.Graph) -> str | None:
    """The first elementwise op of a graph that rounds otherwise in vectors than one by one, or None.

    Elementwise kernels take vectors of contiguous elements, and a scalar path for strided operands and for what is left
    over. Ops like sigmoid differ there in the last bit, in a few elements of a hundred, so a head for all slots at once
    would differ from a single slot's now and then. Tried on many random values of several scales, in three layouts.
    """
    for node in head.nodes:
        if node.op != "call_function" or torch.Tag.pointwise not in getattr(node.target, "tags", ()):
            continue
        kind = node.meta["type"]
        if kind.dtype.is_floating_point and _differs(node):
            return f"{node.target} ({node.meta.get('source') or 'unknown line'})"
    return None


def _differs(node: fx.Node) -> bool:
    generator = torch.Generator("cpu").manual_seed(0)
    samples = {n: _values(n.meta["type"], generator) for n in node.all_input_nodes if isinstance(n.meta["type"], TensorType)}
    results = []
    for layout in (_plain, _strided, _short_rows):
        made = {n: layout(value) for n, value in samples.items()}
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: made.get(n, 1))  # noqa: B023
        results.append(node.target(*args, **kwargs).reshape(-1))  # pyright: ignore[reportCallIssue]
    first = results[0]
    return any(bool(((bits(r) != bits(first)) & ~(r.isnan() & first.isnan())).any()) for r in results[1:])


def _values(kind: TensorType, generator: torch.Generator) -> Tensor:
    """Values in (0, 1), about 1 and far from it, of either sign."""
    parts = [torch.rand(SAMPLES, generator=generator), *(torch.randn(SAMPLES, generator=generator) * s for s in (1.0, 20.0))]
    return torch.cat(parts).to(kind.dtype).to(kind.device)


def _plain(value: Tensor) -> Tensor:
    return value.view(-1, 3)


def _strided(value: Tensor) -> Tensor:
    return torch.stack([value, value], -1)[:, 0].view(-1, 3)


def _short_rows(value: Tensor) -> Tensor:
    return torch.cat([value.view(-1, 3)] * 2, 1)[:, :3]
