"""Sample and invert masked autoregressive flows of two packages as they are, and through fxsolve: bit for bit the same.

    python -m examples.flows.run [--small] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch

from examples.flows.models import OUT, PIXELS, trained
from examples.report import compared, print_table, write_report


def programs(small: bool) -> Iterator[tuple[str, Callable, tuple]]:
    """(name, what a user of the package calls, with what)."""
    flow = trained("zuko", small)()
    for n in (1, 16, 256):
        yield f"zuko MAF, sample {n}", flow.sample, ((n,),)
    yield "zuko MAF, invert 16", flow.transform.inv, (torch.randn(16, PIXELS),)
    other = trained("normflows", small)
    for n in (1, 16, 256):
        yield f"normflows MAF, invert {n}, with log-determinant", other.inverse_and_log_det, (torch.randn(n, PIXELS),)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, for tests")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.device != "cpu":
        torch.set_default_device(options.device)
    rows, compiled = [], []
    for job in programs(options.small):
        line, _, fast = compared(*job, 5, options.device)
        rows.append(line)
        compiled.append(fast)
    print_table("masked autoregressive flows on 8x8 digits; all results are equal bit for bit", rows)
    write_report(compiled[0], OUT, options.small)


if __name__ == "__main__":
    main()
