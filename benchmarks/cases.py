"""What is measured: each case makes a program as a user would write it, its arguments, and its strongest alternative.

Everything is made on torch's default device, which the runner sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from examples.made.train import trained
from examples.rnn.models import LinearGRUCell, LinearLSTMCell, LinearRNNCell, Loop, LSTMLoop


@dataclass(frozen=True)
class Subject:
    """A program ready to run: `program(*arguments)`.

    `other` are arguments of another size; `alternative` does the same work in the fastest way torch has for it;
    `reset(seed)` gives a recurrence new weights in place and returns new arguments; None for samplers.
    """

    program: Callable
    arguments: tuple
    other: tuple
    alternative: tuple[str, Callable] | None = None
    reset: Callable[[int], tuple] | None = None


@dataclass(frozen=True)
class Case:
    """A named subject, made when its turn comes."""

    name: str
    make: Callable[[], Subject]


def reseed(model: nn.Module, shape: tuple[int, ...], gain: float | None, seed: int) -> tuple[Tensor]:
    """New weights in place, and a new input. With a gain, the recurrent weights are gain * N(0, 1/d)."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.RNNCellBase | nn.RNNBase):
            module.reset_parameters()
    if gain is not None:
        for name, weight in model.named_parameters():
            if "weight_hh" in name:
                nn.init.normal_(weight, std=gain / weight.shape[-1] ** 0.5)
    return (torch.randn(shape),)


def recurrence(build: Callable[[int], nn.Module], fused: type | None, batch: int, small: bool, gain=None) -> Subject:
    """A model over (batch, T, width) with T = 4096 and width 64 in full size; `fused` is torch's module for it."""
    length, width = (256, 16) if small else (4096, 64)
    model = build(width).eval()
    reset = partial(reseed, model, (batch, length, width), gain)
    alternative = (f"nn.{fused.__name__}", fused(width, width, batch_first=True).eval()) if fused else None
    return Subject(model, reset(0), (torch.randn(batch, length * 3 // 4, width),), alternative, reset)


def made(batch: int, small: bool) -> Subject:
    """The sampler of examples/made with its trained weights."""
    model, _ = trained(small)
    return Subject(model.sample, (batch,), (2 * batch,))


def module(kind: type) -> Callable[[int], nn.Module]:
    return lambda width: kind(width, width, batch_first=True)


LOOPS: dict[str, tuple[Callable[[int], nn.Module], type]] = {
    "loop nn.RNNCell": (lambda d: Loop(nn.RNNCell(d, d)), nn.RNN),
    "loop nn.GRUCell": (lambda d: Loop(nn.GRUCell(d, d)), nn.GRU),
    "loop nn.LSTMCell": (lambda d: LSTMLoop(nn.LSTMCell(d, d)), nn.LSTM),
    "loop RNN written out": (lambda d: Loop(LinearRNNCell(d, d)), nn.RNN),
    "loop GRU written out": (lambda d: Loop(LinearGRUCell(d, d)), nn.GRU),
    "loop LSTM written out": (lambda d: LSTMLoop(LinearLSTMCell(d, d)), nn.LSTM),
}


def cases(small: bool) -> list[Case]:
    """Every case, by name."""
    found = []
    for batch in (1, 8):
        for name, (build, fused) in LOOPS.items():
            found.append(Case(f"{name}, batch {batch}", partial(recurrence, build, fused, batch, small)))
        for kind in (nn.RNN, nn.GRU, nn.LSTM):
            make = partial(recurrence, module(kind), None, batch, small)
            found.append(Case(f"module nn.{kind.__name__}, batch {batch}", make))
    for gain in (1.5, 2.0):
        build, fused = LOOPS["loop nn.RNNCell"]
        make = partial(recurrence, build, fused, 1, small, gain)
        found.append(Case(f"loop nn.RNNCell that does not contract, gain {gain}", make))
    found += [Case(f"MADE sampler, batch {batch}", partial(made, batch, small)) for batch in (1, 16, 100)]
    return found
