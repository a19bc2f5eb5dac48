"""One file, one benchmark: a function from a folder to a `Benchmark`."""

from __future__ import annotations

import sys
from typing import Any

from undrift.registry import BENCHMARKS

DRAWN = ("pocket", "desk")
"""Benchmarks that are made of installed packages, the same on any machine, wherever it is kept."""


def beside_benchmark(name: str, attribute: str) -> Any:
    """Return what a benchmark's file offers beside `benchmark`, such as `sources`; None if not."""
    load = BENCHMARKS.load(name)
    module = sys.modules.get(f"{BENCHMARKS.package}.{name}") or sys.modules[load.__module__]
    return getattr(module, attribute, None)
