"""How alike two texts are: one minus their edit distance over the length of the longer.

The common ground of ANLS in its two versions, Prism's and the official one.
"""

from __future__ import annotations


def edit_distance(left: str, right: str) -> int:
    """Count the insertions, deletions and replacements that turn one text into the other.

    Args:
        left: A text; may be empty.
        right: Another; may be empty.

    Returns:
        The Levenshtein distance in characters, each edit counting 1.
    """
    if len(left) < len(right):
        left, right = right, left
    previous = list(range(len(right) + 1))
    for row, a in enumerate(left, start=1):
        current = [row]
        for column, b in enumerate(right, start=1):
            replaced = previous[column - 1] + (a != b)
            current.append(min(replaced, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


def similarity(left: str, right: str) -> float:
    """Compute how alike two texts are.

    Args:
        left: A text; may be empty.
        right: Another; may be empty.

    Returns:
        1 for equal texts (two empty ones as well), 0 for texts that share nothing.
    """
    longer = max(len(left), len(right))
    return 1.0 - edit_distance(left, right) / longer if longer else 1.0
