"""The report of a compiled callable: one self-contained HTML page, the certificate first.

Nothing is fetched: styles, pictures and text are in the page, which follows the reader's light or dark setting.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from html import escape
from importlib import metadata
from pathlib import Path

import torch

from fxsolve.codegen import Executable
from fxsolve.errors import FxsolveError
from fxsolve.plan import Runner
from fxsolve.solution import BlockSolution, Solution
from fxsolve.visualize.chart import frontier_chart
from fxsolve.visualize.graph import svg

CHARTS = 12
NODES = 800  # a larger graph would take the page, and `dot`, too long
STYLE = """
:root { color-scheme: light dark; --ink: #1c2329; --soft: #5b6670; --page: #ffffff; --panel: #f3f5f7; --line: #d5dbe0;
  --accent: #1f6fd6; --good: #17703a; --warn: #9a5b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8eb; --soft: #9aa5ae; --page: #14181c; --panel: #1d2329; --line: #36404a; --accent: #6eaaf5;
    --good: #6fcf91; --warn: #e6b058; }
  .graph svg { filter: invert(0.92) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.certificate { border-left: 4px solid var(--good); background: var(--panel); padding: .6rem 1rem; margin: 0 0 1rem; }
.certificate.none { border-color: var(--warn); }
.certificate p { margin: .2rem 0; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr:last-child td { border-bottom: 0; } th { color: var(--soft); font-weight: 600; }
pre { margin: 0; padding: .8rem 1rem; background: var(--panel); font: 13px/1.45 ui-monospace, monospace; overflow-x: auto; }
pre.text { white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 6px; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 0 1 24rem; min-width: 16rem; }
figcaption, .soft { color: var(--soft); font-size: .9rem; }
.chart { width: 100%; height: auto; } .chart text { fill: var(--soft); font-size: 11px; }
.chart path { fill: none; stroke: var(--soft); } .chart .grid { stroke: var(--line); stroke-dasharray: 3 3; }
.chart polyline { fill: none; stroke: var(--accent); stroke-width: 2; } .chart circle { fill: var(--accent); }
.graph { padding: .5rem; } .graph svg { display: block; margin: 0 auto; max-width: none; }
"""


def report(
    executable: Executable | None,
    solution: Solution | None,
    path: str | os.PathLike[str],
    *,
    name: str,
    explanation: str,
) -> Path:
    """Writes the page of one compiled callable: of its last call's program, or of the original where that ran.

    executable: None where nothing was compiled; explanation: what `explain()` says. Returns the path.
    """
    path = Path(path)
    path.write_text(page(executable, solution, name, explanation), encoding="utf-8")
    return path


def page(executable: Executable | None, solution: Solution | None, name: str, explanation: str) -> str:
    runners = list(executable.runners.values()) if executable is not None else []
    sections = [certificate(solution), section("Plan", f"<pre class='text' tabindex='0'>{escape(explanation)}</pre>")]
    if executable is not None:
        sections += [
            section("Blocks", trial_note(solution) + blocks_table(runners)),
            section("Convergence", charts(runners)),
            section("Dataflow", picture(executable)),
            section("Generated source", f"<div class='wide'><pre tabindex='0'>{escape(executable.source())}</pre></div>"),
        ]
    sections.append(section("Environment", environment(executable)))
    title = escape(f"fxsolve: {name}")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def certificate(solution: Solution | None) -> str:
    """What was checked about the last call's result."""
    if solution is None or solution.fallback is not None or not solution.blocks:
        why = solution.fallback if solution is not None and solution.fallback else "no call was solved"
        return (
            f"<div class='certificate none'><p><strong>The original computed the last result</strong>, so there is nothing to "
            f"certify.</p><p>{escape(why)}</p></div>"
        )
    said = "".join(f"<p><strong>{escape(b.certificate)}</strong> ({escape(b.name)})</p>" for b in solution.blocks)
    equations = sum(b.equations for b in solution.blocks)
    steps = sum(b.steps for b in solution.blocks)
    return (
        f"<div class='certificate'>{said}<p>{equations} equations solved in {steps} sequential steps, "
        f"{solution.seconds:.4f} s for the whole call.</p></div>"
    )


def trial_note(solution: Solution | None) -> str:
    """Says where the figures come from if the last call was not solved."""
    tried = solution is None or solution.fallback is not None
    return "<p class='soft'>From the trial of the compiled program, not from the last call.</p>" if tried else ""


def blocks_table(runners: Iterable[Runner]) -> str:
    """One row for each block that was solved, with the figures of the last time that it ran."""
    heads = ("block", "kind", "solver", "equations", "sweeps", "steps", "residual", "certificate", "seconds", "source")
    rows = [row(r.solution, r.block.source) for r in runners if r.solution is not None]
    if not rows:
        return "<p>No block was solved.</p>"
    head = "".join(f"<th scope='col'>{h}</th>" for h in heads)
    return (
        f"<div class='wide' tabindex='0'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "<p class='soft'>The residual is the largest violation of an equation, in units of its own rounding; "
        "steps are those that had to follow one another.</p>"
    )


def row(s: BlockSolution, source: str) -> str:
    numbers = {3: f"{s.equations}", 4: f"{s.sweeps}", 5: f"{s.steps}", 6: f"{s.residual:.3g}", 8: f"{s.seconds:.4f}"}
    texts = {0: s.name, 1: s.kind, 2: s.solver, 7: s.fallback or s.certificate, 9: source}
    cells = [
        f"<td class='number'>{numbers[i]}</td>" if i in numbers else f"<td>{escape(texts[i])}</td>"
        for i in range(len(numbers) + len(texts))
    ]
    return f"<tr>{''.join(cells)}</tr>"


def charts(runners: Iterable[Runner]) -> str:
    """The frontier against sweeps, block by block."""
    solved = [r.solution for r in runners if r.solution is not None and r.solution.frontier]
    figures = "".join(
        f"<figure>{frontier_chart(s.frontier, s.equations, s.name)}"
        f"<figcaption>{escape(s.name)}: {escape(s.solver)}</figcaption></figure>"
        for s in solved[:CHARTS]
    )
    rest = f"<p class='soft'>and {len(solved) - CHARTS} more blocks</p>" if len(solved) > CHARTS else ""
    return f"<div class='charts'>{figures}</div>{rest}" if solved else "<p>Nothing was swept.</p>"


def picture(executable: Executable) -> str:
    """The graph inline, or why it is not there."""
    nodes = len(executable.program.graph.nodes) + sum(len(r.block.body.nodes) for r in executable.runners.values())
    if nodes > NODES:
        return f"<p>The graph has {nodes} nodes, too many for this page; draw(path) draws it.</p>"
    try:
        drawn = svg(executable)
    except FxsolveError as error:
        return f"<p>{escape(str(error))}</p>"
    for namespace in (' xmlns="http://www.w3.org/2000/svg"', ' xmlns:xlink="http://www.w3.org/1999/xlink"'):
        drawn = drawn.replace(namespace, "")
    return f"<div class='wide graph' tabindex='0'>{drawn}</div>"


def environment(executable: Executable | None) -> str:
    rows = {
        "fxsolve": metadata.version("fxsolve"),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "threads": f"{torch.get_num_threads()}",
    }
    if executable is not None:
        devices = dict.fromkeys(leaf.tensor.device for leaf in executable.program.leaves)
        rows["devices"] = ", ".join(device_name(d) for d in devices) or "cpu"
    cells = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<div class='wide'><table><tbody>{cells}</tbody></table></div>"


def device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
