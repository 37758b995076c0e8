"""What is measured: each case makes a program as a user would write it, its arguments, and its strongest alternative.

Everything is made on torch's default device, which the runner sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from examples.densenet import weights as densenet_weights
from examples.densenet.data import digits, photographs
from examples.made.train import trained
from examples.pixelcnnpp import weights as pixelcnnpp_weights
from examples.rnn.models import LinearGRUCell, LinearLSTMCell, LinearRNNCell, Loop, LSTMLoop, PixelRNN
from examples.samplers import train as samplers_train


def forward(program: Callable, arguments: tuple) -> Tensor:
    """The (first) result of a call, without gradients."""
    with torch.no_grad():
        out = program(*arguments)
    return out[0] if isinstance(out, tuple) else out


def training(program: nn.Module, arguments: tuple) -> Tensor:
    """Forward and backward of the mean square of the result: all gradients in one vector."""
    out = program(*arguments)
    out = out[0] if isinstance(out, tuple) else out
    parameters = list(program.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(out.square().mean(), parameters)])


@dataclass(frozen=True)
class Subject:
    """A program ready to run: `run(program, arguments)`.

    `other` are arguments of another size (() to leave that out); `alternative` does the same work in the fastest way torch
    has for it; `reset(seed)` gives a recurrence new weights in place and returns new arguments; None for samplers, of which
    `network` is the module that a user would hand to torch.compile.
    """

    program: Callable
    arguments: tuple
    other: tuple
    alternative: tuple[str, Callable] | None = None
    reset: Callable[[int], tuple] | None = None
    network: nn.Module | None = None
    run: Callable[[Callable, tuple], Tensor] = forward


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


def trained_recurrence(build: Callable[[int], nn.Module], fused: type | None, batch: int, small: bool, gain=None) -> Subject:
    """The same with T = 1024, forward and backward."""
    length, width = (128, 16) if small else (1024, 64)
    model = build(width)
    reset = partial(reseed, model, (batch, length, width), gain)
    alternative = (f"nn.{fused.__name__}", fused(width, width, batch_first=True)) if fused else None
    return Subject(model, reset(0), (torch.randn(batch, length * 3 // 4, width),), alternative, reset, run=training)


def pixel_rnn(small: bool) -> Subject:
    """The paper's training setting: T = 100, a softplus cell of width 128, batch 1."""
    torch.manual_seed(0)
    model = PixelRNN(16 if small else 128)

    def reset(seed: int) -> tuple[Tensor]:
        torch.manual_seed(seed)
        return (torch.rand(1, 100, 1),)

    return Subject(model, reset(0), (), None, reset, run=training)


def made(batch: int, small: bool) -> Subject:
    """The sampler of examples/made with its trained weights."""
    model, _ = trained(small)
    return Subject(model.sample, (batch,), (2 * batch,), network=model)


def densenet(network: int | str, small: bool) -> Subject:
    """The networks of examples/densenet, one image: "digits", trained, or DenseNet-121 or -201, untrained, on a photograph."""
    if small or network == "digits":
        model, image = densenet_weights.trained(), digits()[1][0][:1]
    else:
        model, image = densenet_weights.untrained(int(network)), photographs(1)
    device = torch.get_default_device()
    return Subject(model.to(device), (image.to(device),), ())


def pixelcnnpp(kind: str, method: str, batch: int, small: bool) -> Subject:
    """The samplers of examples/pixelcnnpp with their trained weights."""
    model = pixelcnnpp_weights.trained(kind).to(torch.get_default_device())
    if small:
        model.side = 8
    return Subject(getattr(model, method), (batch,), (), network=model)


def sampler(name: str, method: str, arguments: tuple, small: bool) -> Subject:
    """The samplers of examples/samplers, trained."""
    model = samplers_train.trained(name, small)
    given = tuple(torch.arange(a.stop) if isinstance(a, range) else a for a in arguments)
    return Subject(getattr(model, method), given, (), network=model)


def flow(package: str, batch: int, small: bool) -> Subject:
    """Sampling from zuko's flow, inverting normflows', both as they come."""
    from examples.flows import models as flow_models  # needs both packages, which no other case does

    model = flow_models.trained(package, small)
    if package == "zuko":
        return Subject(model().sample, ((batch,),), ())
    return Subject(model.inverse, (torch.randn(batch, flow_models.PIXELS),), ())


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


SAMPLERS: tuple[tuple[str, str, tuple], ...] = (
    ("transformer", "sample", (1,)),
    ("transformer", "generate", (1,)),
    ("WaveNet", "sample", (4,)),
    ("PixelCNN", "sample", (range(10),)),
    ("permuted MADE", "sample", (16,)),
)
PIXELCNNPP = [("digits", output, batch) for batch in (1, 4, 16) for output in ("continuous", "8-bit")]
PIXELCNNPP += [("patches", output, 4) for output in ("continuous", "8-bit")]


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
    found.append(Case("training, pixels as in the paper", partial(pixel_rnn, small)))
    for batch in (1, 8):
        for name in ("loop nn.LSTMCell", "loop nn.GRUCell", "loop LSTM written out", "loop GRU written out"):
            make = partial(trained_recurrence, *LOOPS[name], batch, small)
            found.append(Case(f"training, {name}, batch {batch}", make))
        for kind in (nn.RNN, nn.GRU, nn.LSTM):
            make = partial(trained_recurrence, module(kind), None, batch, small)
            found.append(Case(f"training, module nn.{kind.__name__}, batch {batch}", make))
    make = partial(trained_recurrence, *LOOPS["loop nn.RNNCell"], 1, small, 2.0)
    found.append(Case("training, loop nn.RNNCell that does not contract, gain 2.0", make))
    found += [Case(f"MADE sampler, batch {batch}", partial(made, batch, small)) for batch in (1, 16, 100)]
    for package, what in (("zuko", "sampling"), ("normflows", "inversion")):
        found += [Case(f"{package} MAF, {what}, batch {n}", partial(flow, package, n, small)) for n in (1, 16, 256)]
    for name, method, arguments in SAMPLERS:
        grows = ", a text that grows" if method == "generate" else ""
        found.append(Case(f"{name} sampler{grows}", partial(sampler, name, method, arguments, small)))
    for network in ("digits", 121, 201):
        name = "DenseNet-BC-100, trained on digits" if network == "digits" else f"DenseNet-{network}, untrained"
        found.append(Case(f"{name}, batch 1", partial(densenet, network, small)))
    for kind, output, batch in PIXELCNNPP:
        method = "sample_8bit" if output == "8-bit" else "sample"
        make = partial(pixelcnnpp, kind, method, batch, small)
        found.append(Case(f"PixelCNN++ sampler, {kind}, {output}, batch {batch}", make))
    return found
