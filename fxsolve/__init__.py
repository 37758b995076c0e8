"""fxsolve: makes sequential PyTorch programs parallel without changing what they compute."""

from fxsolve.api import compile
from fxsolve.errors import CaptureError, FallbackWarning, FxsolveError, ScheduleError, VerificationError
from fxsolve.solution import BlockSolution, Solution
from fxsolve.solvers import GaussSeidel, GSJacobi, Jacobi, JacobiGS

__all__ = [
    "BlockSolution",
    "CaptureError",
    "FallbackWarning",
    "FxsolveError",
    "GSJacobi",
    "GaussSeidel",
    "Jacobi",
    "JacobiGS",
    "ScheduleError",
    "Solution",
    "VerificationError",
    "compile",
]
