"""Sample a trained PixelCNN++ with its own double loop as it is, and through fxsolve: the same images, bit for bit.

    python -m examples.pixelcnnpp.run [--small | --full] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import fxsolve
from examples.pixelcnnpp.weights import trained
from examples.report import SEED, Row, interleaved, medians, once, print_table, row
from fxsolve.solution import keep_iterates

OUT = Path(__file__).parent / "out"
SHOWN = (1, 10, 50, 100, 200, 400)  # sweeps after which the picture shows the image


def seeded(sample: Callable[[int], Tensor], n: int) -> Tensor:
    """n samples, always from the same noise."""
    torch.manual_seed(SEED)
    return sample(n)


def compare(name: str, sample: Callable[[int], Tensor], n: int, device: str) -> tuple[Row, Tensor, dict[int, Tensor]]:
    """Draw n samples eagerly and compiled, in turns; they must be equal bit for bit. Also the images on the way."""
    fast = fxsolve.compile(sample)
    first = once(lambda: fast(n), device)
    with keep_iterates(SHOWN) as kept:
        images = seeded(fast, n)
    expected: list[Tensor] = []
    variants = {"eager": lambda: expected.append(sample(n)), "fast": lambda: fast(n)}
    seconds = medians(interleaved(variants, 1, device))
    assert torch.equal(images, expected[0]), f"{name}, batch {n}: the samples differ"
    print(f"{name}, batch {n}: first call {first:.1f} s, eager {seconds['eager']:.2f} s, fxsolve {seconds['fast']:.2f} s")
    difference = (images - expected[0]).abs().max().item()
    on_the_way = {sweep: buffers[0] for sweep, buffers in kept.items()}
    return row(f"{name}, batch {n}", fast.solution, seconds["eager"], seconds["fast"], difference), images, on_the_way


def picture(images: dict[str, Tensor], on_the_way: dict[int, Tensor], path: Path) -> None:
    """Above: samples. Below: the first one after so many sweeps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [(f"{name}, sample {k + 1}", image) for name, batch in images.items() for k, image in enumerate(batch[:4])]
    name, last = next(iter(images.items()))
    ways = [(f"after {sweep} sweeps", batch[0]) for sweep, batch in on_the_way.items()] + [(f"{name}, final", last[0])]
    columns = max(len(rows), len(ways))
    figure, axes = plt.subplots(2, columns, figsize=(1.6 * columns, 4.2), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, shown in zip(axes, (rows, ways)):
        for axis, (title, image) in zip(line, shown):
            axis.imshow(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).cpu(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(trained on, output, batch)."""
    for batch in (1, 4, 16) if options.full else (1,):
        for output in ("continuous", "8-bit"):
            yield "digits", output, batch
    if options.full:
        for output in ("continuous", "8-bit"):
            yield "patches", output, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="small images, seconds instead of minutes, for tests")
    size.add_argument("--full", action="store_true", help="also batch 16, and the 32x32x3 patches: half an hour")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    lines: list[Row] = []
    shown: dict[str, dict[str, Tensor]] = {}
    ways: dict[str, dict[int, Tensor]] = {}
    for kind, output, batch in jobs(options):
        model = trained(kind).to(options.device)
        if options.small:
            model.side = 12
        sample = model.sample if output == "continuous" else model.sample_8bit
        line, images, on_the_way = compare(f"{kind}, {output}", sample, batch, options.device)
        lines.append(line)
        shown.setdefault(kind, {})[output] = images
        if output == "continuous":
            ways[kind] = on_the_way
    print_table("PixelCNN++, pixel by pixel; all samples are equal bit for bit", lines)
    for kind, images in shown.items():
        path = OUT / f"{'small-' if options.small else ''}{kind}.png"
        picture(images, ways[kind], path)
        print(f"picture: {path}")


if __name__ == "__main__":
    main()
