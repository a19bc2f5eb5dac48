"""Pure strings and numbers: is an answer right, is only its form wrong, and how much was forgotten.

`scores_of` scores a prediction of any task and `rules_of` judges a kept one by content and by form;
`score_file` serves whole files of predictions and `metrics` the accuracy matrix. Which rule serves
which kind of answer stands in `kinds`, which rules a published task has in `published_tasks`.
Works without torch.
"""

from __future__ import annotations

from undrift.scoring.answer_form import ERROR_KINDS, AnswerStyle, ErrorKind
from undrift.scoring.captions import caption_scores, mean_of_seven
from undrift.scoring.kinds import KINDS, SCORERS, Kind, Score, error_kind, find_scorer, form, score
from undrift.scoring.matrix import FORMULAS, metrics, stage_averages
from undrift.scoring.predictions_file import FileScores, read_predictions, score_file
from undrift.scoring.published_tasks import PROFILES, TASKS, Scores, find_task, score_all
from undrift.scoring.scores import (
    Rules,
    check_scorer,
    copy_fault,
    form_share,
    in_other_units,
    kind_of_answer,
    mean_score,
    needs_extra,
    rules_of,
    scores_of,
    share_case_only,
    task_score,
)

__all__ = [
    "ERROR_KINDS",
    "FORMULAS",
    "KINDS",
    "PROFILES",
    "SCORERS",
    "TASKS",
    "AnswerStyle",
    "ErrorKind",
    "FileScores",
    "Kind",
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
    "kind_of_answer",
    "mean_of_seven",
    "mean_score",
    "metrics",
    "needs_extra",
    "read_predictions",
    "rules_of",
    "score",
    "score_all",
    "score_file",
    "scores_of",
    "share_case_only",
    "stage_averages",
    "task_score",
]
