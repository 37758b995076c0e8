"""Train a MADE on digits, then sample with its own loop as it is and through fxsolve: the same images, bit for bit.

    python -m examples.made.run [--small] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fxsolve
from examples.made.model import MADE
from examples.made.train import OUT, trained
from examples.report import SEED, Row, interleaved, medians, once, print_table, row, write_report
from fxsolve import visualize


def seeded(sample: Callable[[int], Tensor], n: int) -> Tensor:
    """n samples, always from the same noise."""
    torch.manual_seed(SEED)
    return sample(n)


def compare(model: MADE, fast, n: int, device: str) -> tuple[Row, Tensor]:
    """Draw n samples eagerly and compiled, in turns; the samples must be equal bit for bit."""
    first = once(lambda: fast(n), device)
    images, expected = seeded(fast, n), seeded(model.sample, n)
    assert torch.equal(images, expected), f"batch {n}: the samples differ"
    seconds = medians(interleaved({"eager": lambda: model.sample(n), "fast": lambda: fast(n)}, 3, device))
    print(f"batch {n}: first call {first:.1f} s, eager {seconds['eager']:.3f} s, fxsolve {seconds['fast']:.3f} s")
    difference = (images - expected).abs().max().item()
    return row(f"MADE, batch {n}", fast.solution, seconds["eager"], seconds["fast"], difference), images


def picture(images: Tensor, frontiers: dict[int, tuple[int, ...]], side: int, path: Path) -> None:
    """Left: samples. Right: how many pixels are final after each sweep."""
    with visualize.drawn(path, 5, 1, 2, width=12) as (_, ((left, right),)):
        framed = torch.nn.functional.pad(images[:16].view(4, 4, side, side), (1, 1, 1, 1), value=-1.0)
        tiles = framed.transpose(1, 2).reshape(4 * (side + 2), 4 * (side + 2))
        left.imshow(tiles.clamp(-1, 1).cpu(), cmap="gray")
        left.set(title="samples", xticks=[], yticks=[])
        for n, frontier in frontiers.items():
            steps = [0, *frontier]
            right.plot(range(len(steps)), steps, marker=".", label=f"fxsolve, batch {n}")
        longest = max((len(frontier) for frontier in frontiers.values()), default=1)
        right.plot(range(longest + 1), range(longest + 1), color="gray", label="pixel by pixel")
        right.set(xlabel="sweeps (passes of the network)", ylabel="final pixels", title="frontier")
        right.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, for tests")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.device != "cpu":  # it puts a Python call before each of torch's functions
        torch.set_default_device(options.device)
    model, side = trained(options.small)

    fast = fxsolve.compile(model.sample)
    rows: list[Row] = []
    frontiers: dict[int, tuple[int, ...]] = {}
    images = torch.empty(0)
    for n in (1, 16, 100):
        line, images = compare(model, fast, n, options.device)
        rows.append(line)
        if fast.solution.blocks:
            frontiers[n] = fast.solution.blocks[0].frontier
    print_table(f"sampling {side}x{side} digits pixel by pixel; all samples are equal bit for bit", rows)
    path = OUT / ("small.png" if options.small else "made.png")
    picture(images, frontiers, side, path)
    seen = visualize.record(fast, 16)
    made = [
        path,
        visualize.heat_map(seen, path.with_stem(f"{path.stem}-sweeps")),
        visualize.images(seen, path.with_stem(f"{path.stem}-images"), shape=(side, side), samples=range(3), span=(-1, 1)),
    ]
    for each in made:
        print(f"picture: {each}")
    write_report(fast, OUT, options.small)


if __name__ == "__main__":
    main()
