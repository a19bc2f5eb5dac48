"""The desk: six text tasks on real data, for a real language model of 135 million parameters.

Nothing is drawn and nothing kept: the examples are read from installed packages each time. See
`docs/desk.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from undrift.data.desk.general import general
from undrift.data.desk.tasks import IN_ORDER, DeskTask
from undrift.data.types import Benchmark, chosen
from undrift.errors import missing_extra

VERSION = "1"  # changes whenever a question or an answer changes
TASKS: Mapping[str, DeskTask] = {task.name: task for task in IN_ORDER}
ORDERS = {
    "second": ("records", "births", "orders", "atoms", "languages", "goods"),
    "tune-1": ("goods", "languages", "records", "orders", "atoms", "births"),  # drawn; for settings
}
LICENCE = (
    "read from installed packages: films (Wikidata, CC0), Superstore (CC0), Gapminder (CC-BY), NCI "
    "molecules (rdkit, BSD-3)"
)
_PACKAGES = {"bokeh_sampledata": "bokeh-sampledata", "rdkit": "rdkit", "sklearn": "scikit-learn"}


def benchmark(
    root: Path | None = None, *, progress: bool = True, only: Sequence[str] | None = None
) -> Benchmark:
    """Return the desk.

    Args:
        root: Not used: there are no files.
        progress: Not used: it takes seconds.
        only: Read only these tasks.

    Returns:
        The benchmark, the same on every machine with the same package versions.

    Raises:
        MissingExtra: If a package of the extra `desk` is not installed.
        UnknownName: If `only` names a task that does not exist.
    """
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise missing_extra(package, "desk", "the benchmark desk")
    tasks = tuple(task.task() for task in chosen(IN_ORDER, only))
    splits = [split for t in tasks for split in (t.train, t.validation, t.test)]
    content = [[e.id, e.system, e.question, e.answers] for split in splits for e in split]
    digest = hashlib.sha256(json.dumps([VERSION, content]).encode()).hexdigest()[:16]
    orders = ORDERS if only is None else {}
    return Benchmark("desk", VERSION, tasks, LICENCE, orders, digest, general())
