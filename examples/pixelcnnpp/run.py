"""Sample a trained PixelCNN++ with its own double loop as it is, and through fxsolve: the same images, bit for bit.

    python -m examples.pixelcnnpp.run [--small | --full] [--side 16] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fxsolve
from examples.pixelcnnpp.weights import trained
from examples.report import SEED, Row, interleaved, medians, once, print_table, row, write_report
from fxsolve import visualize

OUT = Path(__file__).parent / "out"


def seeded(sample: Callable[[int], Tensor], n: int) -> Tensor:
    """n samples, always from the same noise."""
    torch.manual_seed(SEED)
    return sample(n)


def compare(name: str, sample: Callable[[int], Tensor], n: int, device: str) -> tuple[Row, visualize.Record, Any]:
    """Draw n samples eagerly and compiled, in turns; they must be equal bit for bit. Also the samples' way there, and
    the compiled sampler.
    """
    fast = fxsolve.compile(sample)
    first = once(lambda: fast(n), device)
    images = seeded(fast, n)
    expected: list[Tensor] = []
    variants = {"eager": lambda: expected.append(sample(n)), "fast": lambda: fast(n)}
    seconds = medians(interleaved(variants, 1, device))
    assert torch.equal(images, expected[0]), f"{name}, batch {n}: the samples differ"
    print(f"{name}, batch {n}: first call {first:.1f} s, eager {seconds['eager']:.2f} s, fxsolve {seconds['fast']:.2f} s")
    difference = (images - expected[0]).abs().max().item()
    line = row(f"{name}, batch {n}", fast.solution, seconds["eager"], seconds["fast"], difference)
    torch.manual_seed(SEED)
    return line, visualize.record(fast, n), fast


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
    parser.add_argument("--side", type=int, help="of the images, in pixels: as in training, or 8 if small")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    lines: list[Row] = []
    for kind, output, batch in jobs(options):
        model = trained(kind).to(options.device)
        model.side = options.side or (8 if options.small else model.side)
        sample = model.sample if output == "continuous" else model.sample_8bit
        line, seen, fast = compare(f"{kind}, {output}", sample, batch, options.device)
        lines.append(line)
        name = f"{f'{model.side}-' if options.small or options.side else ''}{kind}-{output}"
        for picture in (
            visualize.images(seen, OUT / f"{name}.png", samples=range(min(batch, 4)), span=(-1, 1)),
            visualize.heat_map(seen, OUT / f"{name}-sweeps.png"),
        ):
            print(f"picture: {picture}")
    print_table("PixelCNN++, pixel by pixel; all samples are equal bit for bit", lines)
    write_report(fast, OUT, options.small)


if __name__ == "__main__":
    main()
