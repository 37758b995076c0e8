"""The commands that look at a plan: explain, draw, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from fxsolve.cli.subject import compiled_of, subject_of
from fxsolve.cli.target import UsageError
from fxsolve.visualize.graph import FORMATS, TEXT


def explain(options: argparse.Namespace) -> None:
    fast = compiled_of(subject_of(options), options)
    print(fast.explain(options.devices))
    print(f"\nlast call:\n{fast.solution}")


def draw(options: argparse.Namespace) -> None:
    path = writable(options, ".svg", *FORMATS, *TEXT)
    print(compiled_of(subject_of(options), options).draw(path))


def report(options: argparse.Namespace) -> None:
    path = writable(options, ".html", ".html", ".htm")
    print(compiled_of(subject_of(options), options).report(path))


def writable(options: argparse.Namespace, *suffixes: str) -> Path:
    """Where the picture goes; by default in this folder, by the target's name and with the first suffix."""
    path = Path(options.output or options.target.rpartition(":")[2] + suffixes[0])
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"--output {path}: the name must end in {', '.join(dict.fromkeys(suffixes))}")
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: there is no folder {path.parent}; make it first")
    return path
