"""Pictures of what a compiled program is and how it was solved. The core imports nothing of this.

`draw` needs graphviz' `dot`; the others need matplotlib (`pip install fxsolve[viz]`), which is imported when one is drawn.
"""

from fxsolve.visualize.compare import compare
from fxsolve.visualize.convergence import heat_map, images
from fxsolve.visualize.dependence import dependence
from fxsolve.visualize.figure import drawn
from fxsolve.visualize.graph import draw
from fxsolve.visualize.heat_svg import heat_svg
from fxsolve.visualize.record import Record, record
from fxsolve.visualize.report import Told, report
from fxsolve.visualize.stages import passes, watch_passes
from fxsolve.visualize.timeline import timeline

__all__ = [
    "Record",
    "Told",
    "compare",
    "dependence",
    "draw",
    "drawn",
    "heat_map",
    "heat_svg",
    "images",
    "passes",
    "record",
    "report",
    "timeline",
    "watch_passes",
]
