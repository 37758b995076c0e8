"""Train recurrent models eagerly and through fxsolve, from the same weights, on the same batches.

    python -m examples.rnn.train [--small] [--steps N] [--device cuda]

Pixels: the setting of Song et al. 2021 (digits of 10 x 10 pixels, one pixel a step, a softplus cell of width 128, batch 1,
next-pixel loss). Text: an LSTM written as a loop, 1024 and 4096 characters a step of training, batch 8.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import fxsolve
from examples.made.train import digits
from examples.report import SEED
from examples.rnn.models import CharModel, LSTMLoop, PixelRNN
from examples.rnn.text import Text
from fxsolve import visualize

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True)
class Setting:
    """A model, its loss for a batch and an output, and its batches, the same at each call."""

    name: str
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    rate: float


def pixels(hidden: int, device: str) -> Setting:
    images = (digits(10)[0] / 255)[..., None].to(device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for number in torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED)):
            image = images[number][None]
            yield image, image[:, 1:]

    def loss(out: Tensor, says: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(out[:, :-1], says)

    return Setting(f"pixels, {images.shape[1]} steps, batch 1", PixelRNN(hidden).to(device), loss, batches, 1e-3)


def characters(length: int, batch: int, hidden: int, device: str) -> Setting:
    text = Text()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        state = torch.random.get_rng_state()
        torch.manual_seed(SEED)
        drawn = [text.batch(batch, length, False) for _ in range(64)]
        torch.random.set_rng_state(state)
        while True:
            yield from ((reads.to(device), says.to(device)) for reads, says in drawn)

    def loss(out: Tensor, says: Tensor) -> Tensor:
        return F.cross_entropy(out.flatten(0, 1), says.flatten())

    model = CharModel(len(text.alphabet), hidden, LSTMLoop(nn.LSTMCell(hidden, hidden)), hidden).to(device)
    return Setting(f"characters, {length} steps, batch {batch}", model, loss, batches, 3e-3)


@dataclass(frozen=True)
class Curve:
    """The loss of each batch, and the seconds at which it was known."""

    losses: list[float]
    seconds: list[float]


def train(setting: Setting, run: nn.Module, steps: int, device: str) -> Curve:
    """Adam with clipping. The first batch is taken twice, and is not counted the first time: it warms up, or compiles."""
    parameters = list(run.parameters())
    optimizer = torch.optim.Adam(parameters, lr=setting.rate)
    setting.loss(run(next(setting.batches())[0]), next(setting.batches())[1]).backward()
    losses, seconds, start = [], [], time.perf_counter()
    for (reads, says), _ in zip(setting.batches(), range(steps)):
        optimizer.zero_grad()
        loss = setting.loss(run(reads), says)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return Curve(losses, seconds)


def gradients(setting: Setting, run: nn.Module) -> Tensor:
    """All gradients of the first batch in one vector."""
    reads, says = next(setting.batches())
    for _ in range(2):  # the first call is the original's own
        run.zero_grad()
        setting.loss(run(reads), says).backward()
    return torch.cat([p.grad.flatten() for p in run.parameters() if p.grad is not None])


def compare(setting: Setting, steps: int, device: str, table: Table) -> dict[str, Curve]:
    """Trains eagerly, on two thread counts, and compiled, in turns.

    So much do two eager runs differ: sums over many elements are split by threads. (One thread and two split alike here.)
    """
    start = setting.model.state_dict()
    threads = torch.get_num_threads()
    other = f"eager, {2 * threads} threads"
    models = {name: copy.deepcopy(setting.model) for name in ("eager", other, "fxsolve")}
    fast = models["fxsolve"] = fxsolve.compile(models["fxsolve"])
    ours, theirs = gradients(setting, fast), gradients(setting, models["eager"])
    curves = {}
    for name, model in models.items():
        torch.set_num_threads(2 * threads if name == other else threads)
        model.load_state_dict(start)
        curves[name] = train(setting, model, steps, device)
    torch.set_num_threads(threads)
    difference = float((ours - theirs).norm() / theirs.norm())
    eager, quick = (curves[name].seconds[-1] / steps for name in ("eager", "fxsolve"))
    gap = [max(abs(a - b) for a, b in zip(curves["eager"].losses, curves[n].losses)) for n in (other, "fxsolve")]
    blocks = fast.solution.blocks
    sweeps = fast.solution.fallback or ", ".join(f"{b.equations} in {b.steps}" for b in blocks)
    cells = (f"{eager * 1e3:.1f}", f"{quick * 1e3:.1f}", f"{eager / quick:.2f}x", f"{difference:.1e}")
    table.add_row(setting.name, sweeps, *cells, f"{gap[1]:.1e} ({gap[0]:.1e})", f"{curves['fxsolve'].losses[-1]:.3f}")
    assert difference < 1e-4, f"{setting.name}: gradients differ by {difference}"
    return curves


def picture(found: dict[str, dict[str, Curve]], path: Path) -> None:
    """The loss against wall-clock time, one panel a setting."""
    with visualize.drawn(path, 4.5, 1, len(found), width=6 * len(found)) as (_, axes):
        for axis, (name, curves) in zip(axes[0], found.items()):
            for label, curve in curves.items():
                window = max(1, len(curve.losses) // 25)
                smooth = torch.tensor(curve.losses).unfold(0, window, 1).mean(1)
                axis.plot(curve.seconds[window - 1 :], smooth, label=label)
            axis.set(title=name, xlabel="seconds", ylabel="loss")
            axis.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, for tests")
    parser.add_argument("--steps", type=int, default=40, help="of the text of 1024; pixels take 5 times as many")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    steps = 2 if options.small else options.steps
    lengths, hidden = ((256,), 16) if options.small else ((1024, 4096), 64)
    torch.manual_seed(SEED)
    settings = [pixels(16 if options.small else 128, options.device)]
    settings += [characters(length, 8, hidden, options.device) for length in lengths]
    table = Table(title="training, forward and backward and optimizer", title_justify="left")
    for heading in ("setting", "equations in sequential steps", "eager ms", "fxsolve ms", "ratio", "gradients differ by"):
        table.add_column(heading)
    table.add_column("losses differ by (two eager runs)")
    table.add_column("last loss")
    found = {}
    for number, setting in enumerate(settings):
        count = min(steps * 5, 1500) if number == 0 else steps if number == 1 else max(2, steps // 5)
        print(f"{setting.name}: {count} steps of training, three times")
        found[setting.name] = compare(setting, count, options.device, table)
    console = Console()
    Console(width=max(console.width, 160)).print(table)
    path = OUT / ("train-small.png" if options.small else "train.png")
    picture(found, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
