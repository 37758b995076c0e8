"""`demo NAME` runs an example of the repository. Which there are, its folder `examples` says."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

import fxsolve
from fxsolve.cli.target import UsageError

CHECKOUT = Path(fxsolve.__file__).parents[1]
ELSEWHERE = (
    "the demos are in the repository's folder examples, which an installed fxsolve does not have. Get the repository, and in "
    "its folder: make demo, or python -m fxsolve demo NAME after pip install -e '.[examples]'"
)


def demos(root: Path) -> dict[str, str]:
    """The folders of examples that can be run, and what the first line of each one's script says.

    root: the folder that holds pyproject.toml and examples, where fxsolve runs from a checkout. Raises UsageError elsewhere.
    """
    if not (root / "pyproject.toml").is_file() or not (root / "examples").is_dir():
        raise UsageError(ELSEWHERE)
    return {
        script.parent.name: script.read_text(encoding="utf-8").splitlines()[0].strip('"')
        for script in sorted((root / "examples").glob("*/run.py"))
    }


def demo(options: argparse.Namespace) -> None:
    """Runs the example's script with the rest of the command line; without a name, says which there are."""
    found = demos(CHECKOUT)
    if options.name is None:
        print("\n".join(f"{name:12} {line}" for name, line in found.items()))
        return
    if options.name not in found:
        raise UsageError(f"there is no demo {options.name!r}; there is {', '.join(found)}")
    sys.path.insert(0, str(CHECKOUT))
    sys.argv = [f"examples/{options.name}/run.py", *options.rest]
    try:
        runpy.run_module(f"examples.{options.name}.run", run_name="__main__")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("examples"):
            raise
        raise UsageError(f"the demo needs {error.name}, which is not installed: pip install -e '.[examples]'") from None
