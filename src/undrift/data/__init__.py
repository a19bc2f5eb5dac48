"""What is learned: examples, tasks, benchmarks, and how an example becomes a batch."""

from __future__ import annotations

from undrift.data.types import Benchmark, Example, Task

__all__ = ["Benchmark", "Example", "Task"]
