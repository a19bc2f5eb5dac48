"""How alike two texts are: one minus their edit distance over the length of the longer.

The common ground of ANLS in its two versions, Prism's and the official one.
"""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

COMPARED = 2**13
"""Characters of a text, its first, that are compared one by one: far more than any answer has, and
a hundredth of a second for two texts of that length. The time grows with the square."""


def edit_distance(left: str, right: str) -> int:
    """Count the characters inserted, deleted or replaced from one text to the other (Levenshtein).

    Of different texts, all that stands behind the first `COMPARED` characters counts as edited, in
    the longer of the two.
    """
    if left == right:
        return 0
    longer = max(len(left), len(right))
    compared = Levenshtein.distance(left[:COMPARED], right[:COMPARED])
    return compared + max(longer - COMPARED, 0)


def similarity(left: str, right: str) -> float:
    """1 for equal texts (two empty ones as well), 0 for texts that share nothing."""
    longer = max(len(left), len(right))
    return 1.0 - edit_distance(left, right) / longer if longer else 1.0
