"""Pure strings and numbers: is an answer right, is only its form wrong, and how much was forgotten.

Needs the standard library only.
"""

from __future__ import annotations

from undrift.scoring.answers import SCORERS, Score, find_scorer, score
from undrift.scoring.format import is_case_only, share_case_only
from undrift.scoring.matrix import FORMULAS, metrics

__all__ = [
    "FORMULAS",
    "SCORERS",
    "Score",
    "find_scorer",
    "is_case_only",
    "metrics",
    "score",
    "share_case_only",
]
