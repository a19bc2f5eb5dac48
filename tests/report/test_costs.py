"""What learning cost, read from the budgets of manifests."""

from __future__ import annotations

from undrift.report import load, sections
from undrift.rundir.study_results import cost

from .conftest import FORGETS, HOLDS

SIZES = {"trainable": 1, "active": 2, "stored": 3, "state_bytes": 4}
FIRST = {**SIZES, "steps": 10, "seconds": 2.0, "cpu_seconds": 3.0}
NEW = {"tokens": 1000, "peak_bytes": 300 * 2**20, "resting": None}
RESUMED = {**SIZES, "steps": 10, "seconds": None, "cpu_seconds": None, "tokens": 999_999,
           "peak_bytes": None, "resting": None}  # fmt: skip
TITLE = "Learning: time and memory"


def test_rates_are_of_what_was_timed_and_the_peak_is_the_highest():
    second = {**FIRST, **NEW, "seconds": 3.0, "tokens": 500, "peak_bytes": 310 * 2**20}
    found = cost({"budget": [{**FIRST, **NEW}, second, RESUMED]})
    assert found == {
        **SIZES,
        "step_cpu_ms": 300.0,  # 6 seconds, 20 steps
        "tokens_per_second": 300.0,  # 1500 tokens in 5 seconds
        "peak_bytes": 310 * 2**20,
    }


def test_what_is_not_known_is_none():
    unknown = {"tokens_per_second": None, "peak_bytes": None}
    assert cost({"budget": [FIRST]}) == {**SIZES, "step_cpu_ms": 300.0, **unknown}
    assert cost({"budget": [RESUMED]}) == {**SIZES, "step_cpu_ms": None, **unknown}
    assert cost({"budget": []}) is None and cost({}) is None


def test_a_comparison_tells_time_and_memory_where_they_are_known(write_run):
    known = load(write_run("a", "same", HOLDS, budget=[{**FIRST, **NEW}]))
    unknown = load(write_run("b", "moelora", FORGETS))
    (told,) = (section for section in sections([known, unknown]) if section.title == TITLE)
    assert told.rows == [
        ["tokens a second", "500.0", ""],
        ["CPU milliseconds a step", "300.0", ""],
        ["peak memory, MiB", "300.0", ""],
    ]
    assert TITLE not in [section.title for section in sections([unknown])]
