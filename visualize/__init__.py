"""Pictures of what a compiled program is and how it was solved. The core imports nothing of this."""

from fxsolve.visualize.graph import draw
from fxsolve.visualize.report import report

__all__ = ["draw", "report"]
