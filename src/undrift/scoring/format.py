"""Errors of form: right but for the case of its letters.

A model that has learned a lower-case task may answer `a` where an earlier task wants `A`: the
knowledge is there, the answer is scored wrong. The share of such errors tells how much of what
looks like forgetting is a change of form.
"""

from __future__ import annotations

from collections.abc import Iterable

from undrift.scoring.answers import Score


def is_case_only(score: Score) -> bool:
    """Tell whether a prediction is wrong, and would be right if letter case did not count.

    Args:
        score: A prediction's two scores.

    Returns:
        True for an error of letter case only.
    """
    return score.strict < 1.0 <= score.caseless


def share_case_only(scores: Iterable[Score]) -> float | None:
    """Compute which percentage of all errors are errors of letter case only.

    Args:
        scores: The scores of any number of predictions.

    Returns:
        A percentage, or None where there is no error.
    """
    errors = [score for score in scores if score.strict < 1.0]
    if not errors:
        return None
    return 100.0 * sum(map(is_case_only, errors)) / len(errors)
