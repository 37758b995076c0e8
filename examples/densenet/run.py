"""DenseNets as equations: how many Jacobi sweeps their layers need, what that would give, and what it gives.

    python -m examples.densenet.run [--small] [--device cuda] [--torch-compile NAME]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxsolve
from examples.densenet.data import digits, photographs
from examples.densenet.model import cifar
from examples.densenet.weights import trained, untrained
from examples.report import interleaved, medians, once, write_report
from fxsolve import visualize

OUT = Path(__file__).parent / "out"
DEVICES = (1, 4, 16, 1000)


@dataclass(frozen=True)
class Found:
    """What one network showed; times in seconds."""

    name: str
    layers: int
    certificate: str
    distances: tuple[float, ...]  # of the scores from eager's after each sweep, relative to the largest one
    right: tuple[bool, ...]  # whether the best five are eager's, in order, after each sweep
    in_order: float  # the layers one after another, as they were timed one by one
    estimated: dict[int, float]  # what Jacobi sweeps would take on so many devices
    seconds: dict[str, float]  # real ones, on this device
    ratio: float  # of eager's to those of the choice: of runs right after one another
    choice: str

    @property
    def to_top5(self) -> int:
        """The sweeps from which on the best five are right."""
        return len(self.right) - next(n for n, right in enumerate([*self.right[::-1], False]) if not right) + 1


def measure(
    name: str, model: nn.Module, images: Tensor, rounds: int, device: str, beside: bool
) -> tuple[Found, Any]:
    """Solves the layers by Jacobi sweeps, and compares times with eager and with what fxsolve chooses; returns the network
    that was swept, too. `beside`: torch.compile, with CUDA graphs on a GPU, is timed as well.
    """
    swept, fast = fxsolve.compile(model, solver=fxsolve.Jacobi()), fxsolve.compile(model)
    expected = model(images)
    best, largest = expected.topk(5).indices, expected.abs().max()
    swept(images)
    assert torch.equal(fast(images), expected), f"{name}: the chosen schedule gives other bits"
    ours = swept(images)
    (block,) = swept.solution.blocks
    scores = [iterate.state[-1] for iterate in visualize.record(swept, images).block().iterates]
    assert (ours - expected).abs().max() <= 1e-4 * largest, f"{name}: the scores differ"
    distances = tuple(((s - expected).abs().max() / largest).item() for s in scores)
    right = tuple(torch.equal(s.topk(5).indices, best) for s in scores)
    variants = {"eager": lambda: model(images), "fast": lambda: fast(images)}
    if beside:
        variants["torch.compile"] = torch_compiled(model, images, device)
    taken = interleaved(variants, rounds, device)
    ratio = statistics.median(eager / fast for eager, fast in zip(taken["eager"], taken["fast"]))
    seconds = medians(taken) | medians(interleaved({"jacobi": lambda: swept(images)}, 3, device))
    estimated = {n: swept.predict(n) for n in DEVICES}
    choice = "the original" if fast.solution.fallback else fast.solution.blocks[0].solver
    found = Found(
        name, block.equations, block.certificate, distances, right, fast.predict(), estimated, seconds, ratio, choice
    )
    print(f"{name}: {found.layers} layers, {len(right)} sweeps; {block.certificate}", flush=True)
    return found, swept


def torch_compiled(model: nn.Module, images: Tensor, device: str) -> Callable[[], Tensor]:
    """The network as torch.compile makes it, warmed up."""
    compiled = torch.compile(model, mode="reduce-overhead")
    first = once(lambda: compiled(images), device)
    for _ in range(3):
        compiled(images)
    print(f"torch.compile: {first:.1f} s for its first call", flush=True)
    return lambda: compiled(images)


def tables(found: list[Found]) -> None:
    """Sweeps and real times; then, apart from them, the estimates."""
    real = Table(title="Jacobi sweeps over layers; seconds as measured on this device", title_justify="left")
    for heading in ("network", "layers", "sweeps to top 5", "to certificate", "certificate"):
        real.add_column(heading)
    for heading in ("eager s", "chosen s", "ratio", "torch.compile s", "Jacobi s"):
        real.add_column(heading, justify="right", no_wrap=True)
    real.add_column("choice")
    title = "Estimates: layers of a sweep side by side, no communication. Nothing here was measured"
    guess = Table(title=title, title_justify="left")
    guess.add_column("network")
    for heading in ("in order s", *[f"Jacobi, {n} device{'s' * (n > 1)}" for n in DEVICES], "slowest layer x sweeps to top 5"):
        guess.add_column(heading, justify="right")
    for f in found:
        eager, fast = f.seconds["eager"], f.seconds["fast"]
        other = f"{f.seconds['torch.compile']:.4f}" if "torch.compile" in f.seconds else "-"
        times = (f"{eager:.4f}", f"{fast:.4f}", f"{f.ratio:.2f}x", other, f"{f.seconds['jacobi']:.4f}")
        real.add_row(f.name, str(f.layers), str(f.to_top5), str(len(f.right)), f.certificate, *times, f.choice)
        paper = f.estimated[DEVICES[-1]] * f.to_top5 / len(f.right)
        guess.add_row(f.name, *[f"{s:.4f}" for s in (f.in_order, *f.estimated.values(), paper)])
    console = Console()
    console = Console(width=max(console.width, 150))
    console.print(real)
    console.print(guess)


def picture(found: list[Found], path: Path) -> None:
    """The distance from eager's scores after each sweep; a dot from where on the best five are right."""
    with visualize.drawn(path, 4.2) as (_, ((axis,),)):
        for f in found:
            sweeps = range(1, len(f.distances) + 1)
            (line,) = axis.semilogy(sweeps, [max(d, 1e-9) for d in f.distances], label=f"{f.name}, {f.layers} layers")
            axis.plot(f.to_top5, max(f.distances[f.to_top5 - 1], 1e-9), "o", color=line.get_color())
            axis.axvline(f.layers, color=line.get_color(), linestyle=":", linewidth=0.8)
        axis.set_xlabel("Jacobi sweeps (dots: the best five scores are right; dotted: the number of layers)")
        axis.set_ylabel("distance from eager's scores, relative")
        axis.legend()


def networks(small: bool) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """(name, network, images)."""
    if small:
        yield "DenseNet-BC-22, untrained", cifar(22).eval(), digits()[1][0][:1]
        return
    yield "DenseNet-BC-100, trained on digits", trained(), digits()[1][0][:1]
    for depth in (121, 201):
        yield f"DenseNet-{depth}, untrained", untrained(depth), photographs(1)
        try:
            from torchvision.models import densenet121, densenet201
        except ImportError:  # it has no CPU build: the one that is written out has to do
            continue
        yield f"torchvision's DenseNet-{depth}", {121: densenet121, 201: densenet201}[depth]().eval(), photographs(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="one small network, seconds instead of minutes, for tests")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--torch-compile", metavar="NAME", help="also time torch.compile, of networks whose name begins so")
    options = parser.parse_args()
    found, rounds, device = [], 3 if options.small else 25, options.device
    with torch.no_grad():
        for name, model, images in networks(options.small):
            beside = options.torch_compile is not None and name.startswith(options.torch_compile)
            line, swept = measure(name, model.to(device), images.to(device), rounds, device, beside)
            found.append(line)
    tables(found)
    path = OUT / f"{'small-' if options.small else ''}sweeps.png"
    picture(found, path)
    device_name = torch.cuda.get_device_name() if device == "cuda" else device
    figures = {"torch": torch.__version__, "device": device_name, "networks": [asdict(f) for f in found]}
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"picture: {path}, figures: {path.with_suffix('.json')}")
    write_report(swept, OUT, options.small)


if __name__ == "__main__":
    main()
