"""The page of a pipeline's stages: what each pass took and made, and the program after it. Self-contained, light or dark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from fxsolve.visualize.stage import Stage

ROWS = 40  # ops in a table of changes
STYLE = """
:root { color-scheme: light dark; --ink: #1c2329; --soft: #5b6670; --page: #ffffff; --panel: #f3f5f7; --line: #d5dbe0;
  --accent: #1f6fd6; --more: #17703a; --fewer: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8eb; --soft: #9aa5ae; --page: #14181c; --panel: #1d2329; --line: #36404a; --accent: #6eaaf5;
    --more: #6fcf91; --fewer: #f2938c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .3rem; }
table { border-collapse: collapse; font-size: .9rem; } .overview { width: 100%; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } a { color: var(--accent); }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.more { color: var(--more); } .fewer { color: var(--fewer); } .soft { color: var(--soft); font-size: .9rem; }
.bar { width: 22%; min-width: 6rem; } .bar i { display: block; height: .7rem; margin-top: .35rem; background: var(--accent);
  border-radius: 2px; min-width: 1px; }
.graph { overflow: auto; max-height: 90vh; margin: .6rem 0; padding: .5rem; border: 1px solid var(--line); border-radius: 6px;
  background: #ffffff; }
.graph svg { display: block; margin: 0 auto; max-width: 100%; height: auto; }
.graph.whole svg { max-width: none; }
details summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
pre { padding: .8rem 1rem; background: var(--panel); white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 6px;
  font: 13px/1.45 ui-monospace, monospace; }
"""


def page(stages: Sequence[Stage], title: str, note: str) -> str:
    """The stages as one HTML page; `note`: what else there is to say, as `explain()` has it."""
    body = overview(stages) if stages else "<p>No first call was watched: it had been compiled before.</p>"
    body += "".join(section(number, stage) for number, stage in enumerate(stages) if stage.changes or stage.picture)
    said = f"<h2>What came of it</h2><pre>{escape(note)}</pre>" if note else ""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}{said}\n</body></html>\n"
    )


def overview(stages: Sequence[Stage]) -> str:
    """One row for each pass: milliseconds, a bar, what it made."""
    longest = max(stage.seconds for stage in stages) or 1.0
    rows = [
        f"<tr><td>{linked(number, stage)}</td><td class='number'>{stage.seconds * 1e3:.2f}</td>"
        f"<td class='bar'><i style='width:{100 * stage.seconds / longest:.1f}%'></i></td>"
        f"<td>{escape(stage.said)}<br><span class='soft'>{escape(changed(stage))}</span></td></tr>"
        for number, stage in enumerate(stages)
    ]
    heads = "".join(f"<th scope='col'>{name}</th>" for name in ("pass", "ms", "", "what there is after it"))
    return f"<table class='overview'><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def linked(number: int, stage: Stage) -> str:
    name = escape(stage.name)
    return f"<a href='#stage{number}'>{name}</a>" if stage.changes or stage.picture else name


def changed(stage: Stage) -> str:
    more = sum(n for n in stage.changes.values() if n > 0)
    fewer = -sum(n for n in stage.changes.values() if n < 0)
    counts = [f"{more} more calls" if more else "", f"{fewer} fewer" if fewer else ""]
    return ", ".join(filter(None, counts))


def section(number: int, stage: Stage) -> str:
    """One pass: what it does, the changes by op and place, the picture."""
    note = f" Framed: what holds new or moved calls ({stage.new})." if stage.new else ""
    picture = f"<div class='graph' tabindex='0'>{bare(stage.picture)}</div>" if stage.picture else ""
    table = changes(stage)
    table = f"<details{'' if stage.picture else ' open'}><summary>changes by op</summary>{table}</details>" if table else ""
    return (
        f"<section id='stage{number}'><h2>{escape(stage.name)}: {stage.seconds * 1e3:.2f} ms</h2>"
        f"<p class='soft'>{escape(stage.does)}. {escape(stage.said)}.{note}</p>{table}{picture}</section>\n"
    )


def changes(stage: Stage) -> str:
    """How many calls of each op came or went, one column for each place, the largest changes first."""
    if not stage.changes:
        return ""
    places = list(dict.fromkeys(place for place, _ in stage.changes))
    ops = sorted({op for _, op in stage.changes}, key=lambda op: (-sum(abs(stage.changes.get((p, op), 0)) for p in places), op))
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in ("op", *places))
    rows = "".join(f"<tr><td>{escape(op)}</td>{cells(stage, op, places)}</tr>" for op in ops[:ROWS])
    rest = f"<p class='soft'>and {len(ops) - ROWS} more ops</p>" if len(ops) > ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}"


def cells(stage: Stage, op: str, places: Iterable[str]) -> str:
    """`before -> after` for each place where an op's count changed."""
    found = []
    for place in places:
        more, now = stage.changes.get((place, op), 0), stage.counts.get((place, op), 0)
        kind = "more" if more > 0 else "fewer"
        found.append(f"<td class='number {kind}'>{now - more} &rarr; {now}</td>" if more else "<td></td>")
    return "".join(found)


def bare(picture: str) -> str:
    """An SVG element for use beside others inside HTML: without namespaces, and without ids, which would come twice."""
    picture = re.sub(r' id="[^"]*"', "", picture)
    for namespace in (' xmlns="http://www.w3.org/2000/svg"', ' xmlns:xlink="http://www.w3.org/1999/xlink"'):
        picture = picture.replace(namespace, "")
    return picture
