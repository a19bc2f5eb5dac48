"""The same pictures and answers, asked alike: `reading.questions=shared`.

Three prompts serve ten tasks, so that the text names three of them at best:

- words, posters, forms, counties, grounding: "What does it say? Value 2." or "What is shown? ..."
- digits, satellite, molecules: "How many are there?"
- charts, biopsy: "Which letter is it? Value 1."

The value's number says which one is asked for where a picture has several: the field of a form from
the top, 1 the longest bar and 2 the shortest. Elsewhere it is drawn by the example's id and means
nothing, so that it does not name a task either. Grounding has the format line of the others here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from undrift.data.pocket.tasks import LETTER, WORD

COUNTED = ("digits", "satellite", "molecules")
LETTERED = ("charts", "biopsy")
_SHOWN = ("What does it say?", "What is shown?")
_VALUES: Mapping[str, int] = {
    "What is the segment?": 1,
    "What is the region?": 2,
    "What is the category?": 3,
    "What is the sub-category?": 4,
    "Which bar is the longest? A, B, C or D?": 1,
    "Which bar is the shortest? A, B, C or D?": 2,
}
"""Which value a task's own question asks for, where there are several."""


def shared_question(task: str, identity: str, question: str) -> str:
    """Ask a question of the benchmark in the words that tasks share.

    Args:
        task: The pocket task.
        identity: The example's id, which draws what means nothing.
        question: The task's own question, with or without its format line.

    Returns:
        The question with its format line.
    """
    if task in COUNTED:
        return f"How many are there?\n{WORD}"
    drawn = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=4).digest(), "big")
    own = question.split("\n")[0]
    if task in LETTERED:
        return f"Which letter is it? Value {_VALUES.get(own, 1 + drawn % 2)}.\n{LETTER}"
    value = _VALUES.get(own, 1 + drawn % 4)
    return f"{_SHOWN[drawn // 4 % 2]} Value {value}.\n{WORD}"
