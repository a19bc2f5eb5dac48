"""The bars that the layer holds on a CPU; run `python -m benchmarks`."""

from __future__ import annotations
