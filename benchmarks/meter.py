"""How time is compared on a busy machine, and what a bar is.

CPU time of one thread, not wall time: what other processes do hardly touches it. The variants run
in turn, each round in another order, and only ratios WITHIN a round are used, so a clock that
drifts touches all of them alike. The median over rounds counts.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Round = Mapping[str, float]


@dataclass(frozen=True)
class Bar:
    """A number, and the limit it is held to."""

    name: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def holds(self) -> bool:
        """Whether the number is on the right side of its limit."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "holds" if self.holds else "FALLS SHORT"
        return f"{self.name:<58} {self.value:>9.4g}  {sign} {self.limit:<7g} {verdict}"


def measure(variants: Mapping[str, Callable[[], object]], rounds: int) -> list[Round]:
    """Run every variant once a round, in rotating order.

    Args:
        variants: What to run, by name.
        rounds: How many rounds, after one that does not count.

    Returns:
        Per round the CPU seconds of each variant.
    """
    names, taken = list(variants), []
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds + 1):
            seconds = {}
            start = number % len(names)
            for name in names[start:] + names[:start]:
                begin = time.process_time()
                variants[name]()
                seconds[name] = time.process_time() - begin
            taken.append(seconds)
    finally:
        gc.enable()
    return taken[1:]


def median(rounds: list[Round], ratio: Callable[[Round], float]) -> float:
    """Take the median over rounds of a ratio within a round."""
    return statistics.median(ratio(seconds) for seconds in rounds)
