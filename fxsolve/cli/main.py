"""What the command line takes, and how it ends.

Exit codes: 0 all went well; 1 the program was not compiled (with --no-fallback), or it raised; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fxsolve.api import EXACTNESS
from fxsolve.cli.bench import bench
from fxsolve.cli.demo import demo
from fxsolve.cli.show import draw, explain, report
from fxsolve.cli.target import UsageError
from fxsolve.errors import FallbackWarning, FxsolveError

OWN = [Path(p) for name in ("fxsolve", "fxsolve.passes", "fxsolve.visualize") for p in sys.modules[name].__path__]
TARGET = (
    "module:name or path/to/file.py:name: a module, a function, a class that takes no arguments, or something inside one of "
    "these, as models:Made.sample"
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m fxsolve",
        description="Compile a PyTorch program, and look at what became parallel and how quick it is.",
        epilog="exit codes: 0 fine, 1 not compiled (with --no-fallback) or the program raised, 2 a wrong command line",
    )
    commands = top.add_subparsers(dest="command", required=True, title="commands", metavar="COMMAND")

    one = command(commands, "explain", explain, "print the plan: what became parallel, what did not, and why")
    one.add_argument("--devices", type=positive, default=1, help="also simulate the same sweeps on so many devices")
    one = command(commands, "draw", draw, "draw the dataflow graph with its equation blocks")
    one.add_argument("-o", "--output", help="a .svg, .png, .pdf or .dot file (NAME.svg)")
    one = command(commands, "report", report, "write one HTML page: certificate, plan, convergence, graph, source")
    one.add_argument("-o", "--output", help="an .html file (NAME.html)")
    one = command(commands, "bench", bench, "time the original and the compiled program in turns")
    one.add_argument("--runs", type=positive, default=15, help="runs of each (15)")
    one.add_argument("--seconds", type=float, default=60.0, help="start no further run after so many seconds, past three (60)")
    one.add_argument("--json", metavar="FILE", help="also write the figures as JSON")

    show = commands.add_parser("demo", help="run an example of the repository", description="Run an example of the repository.")
    show.add_argument("name", nargs="?", help="which; without it, a list")
    show.add_argument("rest", nargs=argparse.REMAINDER, help="what the example's own script takes, as --small")
    show.set_defaults(do=demo)
    return top


def command(commands: Any, name: str, do: Any, what: str) -> argparse.ArgumentParser:
    """A command on one program, with what all of these take."""
    one = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    one.add_argument("target", help=TARGET)
    one.add_argument(
        "--inputs",
        metavar="EXPR",
        help='the arguments, as a Python expression that is evaluated, with torch at hand: "torch.randn(4096, 1, 64)"; a tuple '
        "gives several arguments; without it there are none",
    )
    one.add_argument("--seed", type=int, default=0, help="of torch's generators, before weights, inputs and each run (0)")
    one.add_argument("--solver", default="auto", help='as in Python: "Jacobi()", "JacobiGS(block=32)", .. (auto)')
    one.add_argument("--exactness", choices=EXACTNESS, default="auto", help="what is promised about the result (auto)")
    one.add_argument("--grad", action="store_true", help="with gradients: each run goes forward and backward")
    one.add_argument("--train", action="store_true", help="leave modules in training mode; without it they are in eval mode")
    one.add_argument("--no-fallback", action="store_true", help="an error where the program cannot be compiled")
    one.set_defaults(do=do)
    return one


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (sys.argv's by default) and returns its exit code."""
    try:
        options = parser().parse_args(argv)
    except SystemExit as end:  # argparse has said why
        return int(end.code or 0)
    with warnings.catch_warnings():
        warnings.simplefilter("always", FallbackWarning)
        warnings.showwarning = shown(warnings.showwarning)
        try:
            options.do(options)
        except UsageError as error:
            say(error)
            return 2
        except FxsolveError as error:
            say(error)
            return 1
        except BrokenPipeError:  # the reader, `head` for example, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except Exception as error:
            say_raised(error)
            return 1
    return 0


def shown(other: Callable[..., None]) -> Callable[..., None]:
    """How warnings are shown: one of fxsolve's as a message, all others as they were."""

    def show(message: Warning, category: type[Warning], *where: Any) -> None:
        if issubclass(category, FallbackWarning):
            say(str(message).removeprefix("fxsolve "))
        else:
            other(message, category, *where)

    return show


def say(message: object) -> None:
    print(f"fxsolve: {message}", file=sys.stderr)


def say_raised(error: Exception) -> None:
    """The traceback of what the user's program raised, without the frames of fxsolve that lie around it and between."""
    told = traceback.TracebackException.from_exception(error)
    theirs = [frame for frame in told.stack if not ours(frame.filename)]
    if theirs:
        told.stack = traceback.StackSummary.from_list(theirs)
    print("".join(told.format()), end="", file=sys.stderr)
    say("this was raised by the program itself, with these inputs" if theirs else "a mistake of fxsolve's: please report it")


def ours(filename: str) -> bool:
    path = Path(filename)
    return filename.startswith("<frozen ") or path.parent.name == "importlib" or any(path.is_relative_to(own) for own in OWN)
