"""Samplers of other kinds as they are, and through fxsolve: the same samples, bit for bit.

    python -m examples.samplers.run [--small] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from examples.report import compared, print_table
from examples.rnn.text import Text
from examples.samplers.train import trained


def programs(small: bool) -> Iterator[tuple[str, Callable[..., Tensor], tuple]]:
    """(name, what a user calls, with what)."""
    transformer = trained("transformer", small)
    yield "transformer, top-k, 1 text", transformer.sample, (1,)
    yield "transformer, top-k, 4 texts", transformer.sample, (4,)
    yield "transformer, a text that grows", transformer.generate, (1,)
    yield "WaveNet, 4 signals", trained("WaveNet", small).sample, (4,)
    yield "PixelCNN, one digit of each", trained("PixelCNN", small).sample, (torch.arange(10),)
    yield "MADE, permuted, 16", trained("permuted MADE", small).sample, (16,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, for tests")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.device != "cpu":
        torch.set_default_device(options.device)
    rows = []
    for job in programs(options.small):
        line, (samples,), _ = compared(*job, 3, options.device)
        rows.append(line)
        if job[0].startswith("transformer, top-k, 1"):
            alphabet = Text().alphabet
            print("".join(alphabet[i] for i in samples[0].tolist()))
    print_table("autoregressive samplers; all samples are equal bit for bit", rows)


if __name__ == "__main__":
    main()
