"""A report as Markdown: `python -m benchmarks.table benchmarks/results/cpu.json --readme README.md`.

With --readme the table is put between the lines `<!-- results -->` and `<!-- /results -->` of that file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from examples.report import grouped

HEADINGS = (
    "case",
    "eager ms",
    "fxsolve ms",
    "over eager",
    "strongest alternative ms",
    "torch.compile ms",
    "sequential steps",
    "sweeps",
    "first call s (eager s)",
    "other size s (eager s)",
    "max difference",
    "RMS error, eager / fxsolve",
)


def milliseconds(stats: dict) -> str:
    """The median, and the quartiles around it."""
    low, middle, high = (f"{1000 * stats[key]:.3g}" for key in ("q1", "median", "q3"))
    return f"{middle} ({low} to {high})"


def alternative(result: dict) -> str:
    if "alternative" not in result:
        return ""
    return f"{result['alternative']} {milliseconds(result['seconds']['alternative'])}"


def compiled(result: dict) -> str:
    found = result.get("torch_compile")
    if not found:
        return ""
    return found.get("failed") or f"{1000 * found['median']:.3g}, first call {found['first']:.0f} s"


def line(name: str, result: dict) -> tuple[str, ...]:
    """The cells of one case, in the order of HEADINGS."""
    over, eager = result["over_eager"], result["seconds"]["eager"]
    blocks, fallback = result["solution"]["blocks"], result["solution"]["fallback"]
    errors = result.get("rms_error")
    other = result.get("other_size")
    return (
        name,
        milliseconds(eager),
        milliseconds(result["seconds"]["fxsolve"]),
        f"**{over['median']:.2f}x** ({over['q1']:.2f} to {over['q3']:.2f})",
        alternative(result),
        compiled(result),
        grouped(block["equations"] for block in blocks),
        fallback or grouped(f"{b['sweeps']} {b['solver']}" for b in blocks),
        f"{result['first_call']:.2f} ({eager['median']:.2f})",
        f"{other['first_call']:.2f} ({other['eager']:.2f})" if other else "",
        "same bits" if result["equal_bits"] else f"{result['max_difference']:.1e}",
        f"{errors['eager']:.2e} / {errors['fxsolve']:.2e}" if errors else "",
    )


def markdown(report: dict) -> str:
    """The whole report: the machine in a sentence, then one line a case. Columns without a value are left out."""
    lines = [line(name, result) for name, result in report["cases"].items()]
    kept = [i for i in range(len(HEADINGS)) if any(cells[i] for cells in lines)]
    rows = [HEADINGS, ["---"] * len(HEADINGS), *lines]
    machine = report["machine"]
    where = f"{machine['gpu']}, " if "gpu" in machine else ""
    where += f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    dates = sorted({result["date"] for result in report["cases"].values()})
    text = f"Measured on {where}, torch {machine['torch']}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}. "
    text += "Medians (quartiles) of runs taken in turns in one process.\n\n"
    return text + "".join("| " + " | ".join(row[i] for i in kept) + " |\n" for row in rows)


def insert(readme: Path, table: str) -> None:
    """Put the table between the two marks of a file."""
    text = readme.read_text()
    before, rest = text.split("<!-- results -->", 1)
    after = rest.split("<!-- /results -->", 1)[1]
    readme.write_text(f"{before}<!-- results -->\n{table}<!-- /results -->{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    table = markdown(json.loads(options.report.read_text()))
    if options.readme:
        insert(options.readme, table)
    else:
        print(table, end="")


if __name__ == "__main__":
    main()
