"""Sample and invert masked autoregressive flows of two packages as they are, and through fxsolve: bit for bit the same.

    python -m examples.flows.run [--small] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import fxsolve
from examples.flows.models import PIXELS, trained
from examples.report import SEED, Row, interleaved, medians, once, print_table, row


def programs(small: bool) -> Iterator[tuple[str, Callable, tuple]]:
    """(name, what a user of the package calls, with what)."""
    flow = trained("zuko", small)()
    for n in (1, 16, 256):
        yield f"zuko MAF, sample {n}", flow.sample, ((n,),)
    yield "zuko MAF, invert 16", flow.transform.inv, (torch.randn(16, PIXELS),)
    other = trained("normflows", small)
    for n in (1, 16, 256):
        yield f"normflows MAF, invert {n}, with log-determinant", other.inverse_and_log_det, (torch.randn(n, PIXELS),)


def first_tensor(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def compare(name: str, program: Callable, arguments: tuple, device: str) -> Row:
    """Eager and compiled in turns from the same seed; all results must be equal bit for bit."""
    fast = fxsolve.compile(program)
    first = once(lambda: fast(*arguments), device)
    results = []
    for run in (fast, program):
        torch.manual_seed(SEED)
        results.append(run(*arguments))
    ours, theirs = results
    pairs = zip(ours, theirs) if isinstance(ours, tuple) else [(ours, theirs)]
    assert all(torch.equal(a, b) for a, b in pairs), f"{name}: the results differ"
    seconds = medians(interleaved({"eager": lambda: program(*arguments), "fast": lambda: fast(*arguments)}, 5, device))
    print(f"{name}: first call {first:.1f} s, eager {seconds['eager']:.3f} s, fxsolve {seconds['fast']:.3f} s")
    difference = (first_tensor(ours) - first_tensor(theirs)).abs().max().item()
    return row(name, fast.solution, seconds["eager"], seconds["fast"], difference)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, for tests")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.device != "cpu":
        torch.set_default_device(options.device)
    rows = [compare(*job, options.device) for job in programs(options.small)]
    print_table("masked autoregressive flows on 8x8 digits; all results are equal bit for bit", rows)


if __name__ == "__main__":
    main()
