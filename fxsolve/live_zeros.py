"""Zeros that a causality proof rests on, and that have gradients themselves.

    x_t = W x + b     in order, with W_tj = 0 for j >= t:      dW_tj = l_t x_j,     x_j as step t saw it

In order, step t sees the later slots as they were at first; at the solution they are as they are at last. What is
multiplied by a zero makes no difference to anything but to the gradient of that zero. So the zeros that a proof rests on
must not change with anything that has a gradient, as those of `weight * mask` do not; else it must hold without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxsolve.errors import CaptureError
from fxsolve.ir import CONST, FixedPoint
from fxsolve.passes.causality import Proof, prove

Tensors = Sequence[torch.Tensor]


def rests_on_live_zeros(block: FixedPoint, proof: Proof, consts: Tensors) -> str | None:
    """Why gradients at the solution would not be those of the steps in order, or None."""
    values = {f"{CONST}{i}": c for i, c in enumerate(consts)}
    dense: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys([*proof.used, *proof.head_used]):
        const = values[name]
        live = moving(const) if const.requires_grad else torch.zeros_like(const, dtype=torch.bool)
        if name in proof.exact and bool(live.any()):
            return f"is causal because of the values of {name}, which are trained"
        if bool((live & (const == 0)).any()):
            dense[name] = const.detach().masked_fill(live & (const == 0), 1.0)
    if not dense:
        return None
    values |= dense
    again = prove(block.network, block.head, block.slots, block.table, values, values)
    return None if again.holds else f"is causal because of zeros that are trained, not masked: {again.reason}"


def moving(value: torch.Tensor) -> torch.Tensor:
    """Where a value changes with the tensors that it was computed from: J r != 0 for a random r.

    J r is the derivative of J^T z by z, times r. Where autograd does not go through twice, everything may change.
    """
    leaves = leaves_of(value)
    if any(leaf is value for leaf in leaves):
        return torch.ones_like(value, dtype=torch.bool)
    private = torch.Generator("cpu").manual_seed(0)
    z = torch.zeros_like(value, requires_grad=True)
    try:
        with torch.enable_grad():
            pulled = torch.autograd.grad(value, leaves, z, create_graph=True, allow_unused=True)
            pulled = [p for p in pulled if p is not None and p.requires_grad]
            noise = [torch.randn(p.shape, generator=private, dtype=p.dtype).to(p.device) for p in pulled]
            (moved,) = torch.autograd.grad(pulled, z, noise, allow_unused=True)
    except (CaptureError, RuntimeError):
        return torch.ones_like(value, dtype=torch.bool)
    return torch.zeros_like(value, dtype=torch.bool) if moved is None else moved != 0


def leaves_of(value: torch.Tensor) -> list[torch.Tensor]:
    """The tensors at which backpropagation from a value ends."""
    if value.grad_fn is None:
        return [value]
    found: list[torch.Tensor] = []
    seen, pending = {value.grad_fn}, [value.grad_fn]
    while pending:
        node = pending.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)  # type: ignore[attr-defined]
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                pending.append(after)
    return found
