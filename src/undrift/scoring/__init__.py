"""Pure strings and numbers: is an answer right, is only its form wrong, and how much was forgotten.

`scores_of` scores a line of any task. `score` serves the pocket; `score_all` and `score_file` (a
whole file) serve the published benchmarks, whose rules are in `public`, `domains`, `official` and
`lenient`. `rules_of` judges a kept line by content and by form. Works without torch.
"""

from __future__ import annotations

from undrift.scoring.answers import SCORERS, Score, find_scorer, score
from undrift.scoring.caption import caption_scores, mean_of_seven
from undrift.scoring.drift import Rules, form_share, kind_of_answer, rules_of, worn
from undrift.scoring.format import is_case_only, share_case_only
from undrift.scoring.forms import ERROR_KINDS, MIF, ErrorKind, error_kind, form
from undrift.scoring.lines import (
    check_scorer,
    copy_fault,
    in_other_units,
    mean_score,
    scores_of,
    task_score,
)
from undrift.scoring.matrix import FORMULAS, metrics, stage_averages
from undrift.scoring.predictions import FileScores, read_predictions, score_file
from undrift.scoring.published import KINDS, PROFILES, TASKS, Scores, find_task, score_all

__all__ = [
    "ERROR_KINDS",
    "FORMULAS",
    "KINDS",
    "MIF",
    "PROFILES",
    "SCORERS",
    "TASKS",
    "ErrorKind",
    "FileScores",
    "Rules",
    "Score",
    "Scores",
    "caption_scores",
    "check_scorer",
    "copy_fault",
    "error_kind",
    "find_scorer",
    "find_task",
    "form",
    "form_share",
    "in_other_units",
    "is_case_only",
    "kind_of_answer",
    "mean_of_seven",
    "mean_score",
    "metrics",
    "read_predictions",
    "rules_of",
    "score",
    "score_all",
    "score_file",
    "scores_of",
    "share_case_only",
    "stage_averages",
    "task_score",
    "worn",
]
