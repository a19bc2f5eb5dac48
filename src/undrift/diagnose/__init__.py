"""What drifted: questions put to the adapters that a run has saved, with the examples of its tasks.

Each question is a file here, and its answer one in RUN/diagnose/, which the report reads: `routes`,
does the router send old inputs elsewhere? `experts`, do they answer them otherwise? `causes`, which
of the two costs how much? `reroute`, what could a router that was trained anew still get out of
them? Drift of form alone needs no adapter, see `undrift.scoring.rules_of`.
"""

from __future__ import annotations

from undrift.diagnose.adapter_series import AdapterSeries, Scope, nothing_later
from undrift.diagnose.causes import causes
from undrift.diagnose.experts import expert_drift
from undrift.diagnose.questions import diagnose
from undrift.diagnose.routes import route_drift

__all__ = [
    "AdapterSeries",
    "Scope",
    "causes",
    "diagnose",
    "expert_drift",
    "nothing_later",
    "route_drift",
]
