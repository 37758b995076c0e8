"""Train the character models for a minute, then run each on a long text, as it is and through fxsolve.

    python -m examples.rnn.run [--small] [--device cuda]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxsolve
from examples.bar import bar
from examples.report import Row, interleaved, medians, once, print_table, row, write_report
from examples.rnn.models import CharModel, build
from examples.rnn.text import Text
from fxsolve import visualize

OUT = Path(__file__).parent / "out"


def train(model: CharModel, text: Text, batches: int, seconds: float, fill_in: bool, device: str) -> list[float]:
    """Train on so many batches or for so many seconds; returns the loss of each batch in nats per character."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    end = time.perf_counter() + seconds
    with bar("training", batches) as move:
        while len(losses) < batches and time.perf_counter() < end:
            reads, says = (part.to(device) for part in text.batch(32, 64, fill_in))
            loss = nn.functional.cross_entropy(model(reads).flatten(0, 1), says.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            move(len(losses), f"training, {losses[-1]:.2f} nats")
    return losses


@torch.no_grad()
def compare(name: str, model: CharModel, reads: torch.Tensor, rounds: int, device: str) -> tuple[Row, Any]:
    """Run the model and its compiled twin in turns on one long text; returns the table's line and the twin."""
    fast = fxsolve.compile(model)
    first = once(lambda: fast(reads), device)
    difference = (fast(reads) - model(reads)).abs().max().item()
    seconds = medians(interleaved({"eager": lambda: model(reads), "fast": lambda: fast(reads)}, rounds, device))
    print(f"{name}: first call {first:.1f} s, eager {seconds['eager']:.4f} s, fxsolve {seconds['fast']:.4f} s")
    assert difference < 1e-3, f"{name}: logits differ by {difference}"
    return row(name, fast.solution, seconds["eager"], seconds["fast"], difference), fast


def picture(blocks: dict[str, list], losses: dict[str, list[float]], path: Path) -> None:
    """Left: how many equations are final after each sweep. Right: the loss while training."""
    with visualize.drawn(path, 5, 1, 2, width=13) as (_, ((left, right),)):
        for name, solved in blocks.items():
            if solved:
                frontier = [0, *solved[0].frontier]
                left.plot(range(len(frontier)), frontier, marker="o", label=f"{name} ({solved[0].solver})")
        left.set(xlabel="sweeps", ylabel="final equations", title="frontier of the first block")
        for name, values in losses.items():
            window = max(1, len(values) // 50)
            smooth = torch.tensor(values).unfold(0, window, 1).mean(1)
            right.plot(smooth, label=name)
        right.set(xlabel="batches", ylabel="nats per character", title="training")
        left.xaxis.get_major_locator().set_params(integer=True)
        left.legend(fontsize="small", loc="upper left")
        right.legend(fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, for tests")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=60.0, help="most training time, all models together")
    options = parser.parse_args()
    hidden, batches, length, rounds = (32, 20, 512, 3) if options.small else (128, 300, 4096, 7)

    torch.manual_seed(0)
    text = Text()
    models = build(len(text.alphabet), hidden)
    reads = text.held_out[:length][None].to(options.device)
    rows: list[Row] = []
    twins: dict[str, Any] = {}
    blocks: dict[str, list] = {}
    losses: dict[str, list[float]] = {}
    for name, model in models.items():
        model.to(options.device)
        fill_in = "bidirectional" in name
        losses[name] = train(model, text, batches, options.seconds / len(models), fill_in, options.device)
        last = losses[name][-10:]
        print(f"{name}: trained {len(losses[name])} batches, {sum(last) / len(last):.2f} nats per character")
        line, twins[name] = compare(name, model.eval(), reads, rounds, options.device)
        rows.append(line)
        blocks[name] = list(twins[name].solution.blocks)
    print_table(f"character models, one text of {length} characters", rows)
    path = OUT / ("small.png" if options.small else "rnn.png")
    picture(blocks, losses, path)
    print(f"picture: {path}")
    write_report(twins[max(rows, key=lambda line: line.ratio).model], OUT, options.small)


if __name__ == "__main__":
    main()
