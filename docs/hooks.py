"""What mkdocs does besides reading pages: the benchmark page is made from benchmarks/results, at every build."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
HEAD = """---
hide: [toc]
---

# Benchmarks

Every line compares a program as it is with the same program compiled, from the same seed, on the same inputs. The two run in
turns in one process, so that both meet the same machine. Times hold everything that a call does, stopping tests and
certificates included. Where the original is the better choice, fxsolve runs it, and the line says so.

```sh
make bench
```

measures again; `python -m fxsolve bench` does the same with a program of yours
([the command line](how-to/command-line.md)).
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "benchmarks.md", content=benchmark_page()))
    return files


def benchmark_page() -> str:
    """Every report of benchmarks/results that holds cases, as a section."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.table import markdown

    parts = [HEAD]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if all("over_eager" in case for case in report.get("cases", {}).values()) and report.get("cases"):
            parts.append(f"## {path.stem.upper()}\n\n<div class='figures' markdown>\n\n{markdown(report)}\n</div>\n")
    if len(parts) == 1:
        raise FileNotFoundError("benchmarks/results holds no report to make the benchmark page from; run make bench")
    return "\n".join(parts)
