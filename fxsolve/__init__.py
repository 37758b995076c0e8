"""fxsolve: makes sequential PyTorch programs parallel without changing what they compute."""

import gc

_collecting = gc.isenabled()
gc.disable()  # a collection would go through all objects of torch, which takes as long as these imports
try:
    from fxsolve.api import compile
    from fxsolve.errors import CaptureError, FallbackWarning, FxsolveError, ScheduleError, VerificationError
    from fxsolve.solution import BlockSolution, Solution
    from fxsolve.solvers import GaussSeidel, GSJacobi, Jacobi, JacobiGS
finally:
    if _collecting:
        gc.enable()

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
