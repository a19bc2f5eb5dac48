"""The bars that the layer holds on a CPU; run `python -m benchmarks`, with `counts` or `times`."""

from __future__ import annotations
