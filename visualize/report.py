"""The report of a compiled callable: one self-contained HTML page, the certificate first.

Nothing is fetched, which the page's own Content-Security-Policy makes sure of: styles, script, pictures and text are in it.
It follows the reader's light or dark setting, and all of it can be read without its script.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from fxsolve.codegen import Executable
from fxsolve.solution import Solution
from fxsolve.visualize.convergence_tab import convergence
from fxsolve.visualize.environment import environment
from fxsolve.visualize.highlight import highlighted
from fxsolve.visualize.markup import Markup, element, pane, section
from fxsolve.visualize.picture import both_schemes, picture
from fxsolve.visualize.plans import schedule
from fxsolve.visualize.summary import summary

HERE = Path(__file__).parent
TRIED = "From the trial of the compiled program, not from the last call: the original ran there."


@dataclass(frozen=True)
class Told:
    """What a report tells of: the last call of one compiled callable.

    executable: its program, also where the original was preferred; None where nothing was compiled. choice: what runs, and
    why. timings: the stages of the first call, in seconds. memory: the most bytes that a run held at a time in its trial.
    explanation: what `explain()` says. signature: the last call's.
    """

    name: str
    explanation: str
    executable: Executable | None = None
    solution: Solution | None = None
    choice: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    signature: Hashable | None = None


def report(told: Told, path: str | os.PathLike[str]) -> Path:
    """Writes the page; returns the path."""
    path = Path(path)
    path.write_text(page(told), encoding="utf-8")
    return path


def page(told: Told) -> str:
    executable, solution = told.executable, told.solution
    runners = list(executable.runners.values()) if executable is not None else []
    first = summary(solution, runners, told.choice, told.timings, told.memory, told.explanation)
    sections = {"summary": ("Summary", first)}
    if executable is not None:
        tried = solution is None or solution.fallback is not None
        note = element("p", TRIED, "soft") if tried and any(r.solution for r in runners) else Markup("")
        code = Markup(f"<pre><code>{highlighted(executable.source())}</code></pre>")
        sections |= {
            "dataflow": ("Dataflow", picture(executable)),
            "schedule": ("Schedule", Markup(note + schedule(runners))),
            "convergence": ("Convergence", Markup(note + convergence(runners))),
            "source": ("Source", pane("generated source", code, "code")),
        }
    sections["environment"] = ("Environment", environment(executable, told.signature))
    return document(f"fxsolve: {told.name}", sections)


def document(title: str, sections: Mapping[str, tuple[str, Markup]]) -> str:
    links = "".join(f"<a href='#{key}'>{escape(heading)}</a>" for key, (heading, _) in sections.items())
    body = "\n".join(section(key, heading, content) for key, (heading, content) in sections.items())
    script = (HERE / "report.js").read_text(encoding="utf-8")
    style = (HERE / "report.css").read_text(encoding="utf-8") + both_schemes(body)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1></header>\n<nav aria-label='sections'>{links}</nav>\n"
        f"<main>\n{body}\n</main>\n<script>{script}</script></body></html>\n"
    )
