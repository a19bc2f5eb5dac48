"""Sweeps over many alike cases: which of them the default suite runs, the others being slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

# One method of each make: one LoRA, experts, gates by features, a pool, prompts, a foreign tuner.
METHODS_OF_EACH_MAKE = ("ewc", "same", "disco", "hide", "modalprompt", "osf")


def mostly_slow(cases: Iterable[Any], kept: Iterable[Any]) -> list[Any]:
    """Mark as slow what is not in `kept`; a tuple is the arguments of a case."""
    found, wanted = [], list(kept)
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marks = () if case in wanted or values[0] in wanted else pytest.mark.slow
        found.append(pytest.param(*values, marks=marks))
    assert any(not param.marks for param in found), "nothing is left for the default suite"
    return found
