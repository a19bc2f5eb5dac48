"""Figures of a report: drawn into a page (`draw`), and written in a paper's size (`export`).

matplotlib takes most of a second to import: import this package where figures are drawn, not at
the top of a module that a command loads.
"""

from __future__ import annotations

from undrift.report.figures.costs import costs
from undrift.report.figures.drawing import Drawn, draw, export
from undrift.report.figures.forms import errors, forms
from undrift.report.figures.losses import shares, task_shares
from undrift.report.figures.matrices import effects, heat_map, use
from undrift.report.figures.sequence import curves, experts, reroute, route_drift

__all__ = [
    "Drawn",
    "costs",
    "curves",
    "draw",
    "effects",
    "errors",
    "experts",
    "export",
    "forms",
    "heat_map",
    "reroute",
    "route_drift",
    "shares",
    "task_shares",
    "use",
]
