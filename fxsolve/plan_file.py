"""Choices that outlive the process: what the first call found quickest, in a JSON file, to be taken up without trials.

A choice is found again by a hash of the program (its graphs, shapes and lengths) and of what speed depends on: device, number
of threads, versions. It says what to run, never what is true: proofs, probes, certificates and the first call's comparison
with eager are made as ever, so a stale or edited file costs speed at most.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fxsolve.errors import FxsolveError
from fxsolve.ir import FixedPoint, Program, to_text
from fxsolve.plan import Candidate, Plan
from fxsolve.solvers import GaussSeidel, GSJacobi, Jacobi, JacobiGS

FORMAT = 1
SOLVERS = {s.__name__: s for s in (GaussSeidel, GSJacobi, Jacobi, JacobiGS)}


@dataclass(frozen=True)
class Choice:
    """One program's choice: the plans of its blocks, or why the original runs; and what the original took, in seconds."""

    plans: Mapping[str, Plan]
    original: str | None
    seconds: float | None


class PlanFile:
    """The choices in one file. A file that is not there yet is made with the first choice.

    Raises FxsolveError where the file is something else, and where its folder is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FxsolveError(f"plans cannot be kept in {self.path}: there is no folder {self.path.parent}; make it first")
        self.choices = self.read()

    def read(self) -> dict[str, Choice]:
        if not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']}, and this version of fxsolve reads {FORMAT}")
            return {key: decoded(choice) for key, choice in content["programs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, OSError, FxsolveError) as error:
            raise FxsolveError(
                f"{self.path} is no file of plans ({type(error).__name__}: {error}); delete it or name another one"
            ) from error

    def keep(self, key: str, choice: Choice) -> None:
        """Adds a choice; what other processes have added since is kept. Raises OSError or FxsolveError if that fails."""
        self.choices = self.read() | {key: choice}
        content = {"format": FORMAT, "programs": {key: encoded(choice) for key, choice in self.choices.items()}}
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(file.name, self.path)  # nobody ever reads half a file


def program_key(program: Program, exactness: str) -> str:
    """The hash under which a program's choice is kept."""
    devices = dict.fromkeys(str(leaf.tensor.device) for leaf in program.leaves)
    cuda = [torch.cuda.get_device_name(device) for device in devices if device.startswith("cuda")]
    parts = [version("fxsolve"), torch.__version__, str(torch.get_num_threads()), exactness, *devices, *cuda]
    parts.append(to_text(program.graph))
    for name, block in program.blocks.items():
        assert not isinstance(block, FixedPoint)  # the scheduler finds these in recurrences
        parts += [name, block.kind, str(block.length), to_text(block.body)]
    return hashlib.sha256("\n\n".join(parts).encode()).hexdigest()


def encoded(choice: Choice) -> dict[str, Any]:
    plans = {
        name: asdict(plan) | {"solver": {"name": type(plan.solver).__name__, **asdict(plan.solver)}}
        for name, plan in choice.plans.items()
    }
    return {"original": choice.original, "seconds": choice.seconds, "plans": plans}


def decoded(content: Any) -> Choice:
    """Raises KeyError, TypeError, ValueError or AttributeError for what `encoded` did not write."""
    plans = {}
    for name, fields in content["plans"].items():
        solver = dict(fields["solver"])
        candidates = tuple(Candidate(**candidate) for candidate in fields["candidates"])
        kept = SOLVERS[solver.pop("name")](**solver)
        plans[name] = plan = Plan(**{**fields, "solver": kept, "candidates": candidates})
        if not all(isinstance(n, int | None) for n in (plan.limit, plan.threads)):
            raise TypeError(f"limit and threads of {name} are whole numbers or null")
    return Choice(plans, content["original"], content["seconds"])
