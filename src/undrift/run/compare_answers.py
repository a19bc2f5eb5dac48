"""The same questions to two models: which answers differ, and whether by a near-tie alone.

A greedy answer is a row of choices. Where two models choose differently, the first one's
log-probabilities say by how much: rounding turns a choice between equals, never a clear one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undrift.data.collate import Encoded, fitting
from undrift.data.types import Task
from undrift.run.answer import decode, greedy, scored
from undrift.run.session import Session
from undrift.scoring import task_score

_KEPT = 16  # of the most probable tokens of each step
TIES = {torch.float32: 0.01, torch.float64: 0.01}
"""By the dtype of the weights: up to how many nats a choice counts as one between equals."""
TIES_OF_HALVES = 0.25

Key = tuple[str, str]
"""A task's name, and an example's id."""


@dataclass(frozen=True)
class Said:
    """What a model answered to one question.

    Args:
        text: The answer.
        tokens: It, with the token that ended it.
        best: The most probable tokens of each step.
        scores: Their log-probabilities.
    """

    text: str
    tokens: list[int]
    best: list[list[int]]
    scores: list[list[float]]


@dataclass(frozen=True)
class Agreement:
    """How far the answers of two models agree.

    Args:
        asked: How many questions were asked.
        differ: How many answers are others.
        beyond: How many of these differ by more than a near-tie.
        margin: By how much the first model preferred its own choice, where that was clearest, in
            nats; 0 where no answer differs.
        moved: By how much the log-probability of an answer's first token has moved at most.
    """

    asked: int
    differ: int
    beyond: int
    margin: float
    moved: float


def said(session: Session, tasks: Sequence[Task], title: str) -> dict[Key, Said]:
    """Put the test questions of tasks to a model.

    Args:
        session: The model, in evaluation mode.
        tasks: Whose test examples are asked.
        title: For the progress bar.

    Returns:
        Every answer, by task and id.
    """
    found: dict[Key, Said] = {}
    origin: Mapping[str, Any] = getattr(session, "origin", {})
    learned = [note["name"] for note in origin.get("learned", ())]
    for task in tasks:
        number = learned.index(task.name) + 1 if task.name in learned else None
        session.progress.stage(f"{title}: {task.name}", len(task.test), len(task.test))
        prompts = sorted(session.prompts(task), key=lambda e: (-len(e.images), -len(e.prompt)))
        with session.method.predicting(session.model, task=number):
            for start in range(0, len(prompts), session.batch_size):
                part = prompts[start : start + session.batch_size]
                for one, answer in zip(
                    part, _said(session, part, task.max_new_tokens), strict=True
                ):
                    found[task.name, one.id] = answer
                session.progress.advance(len(part))
    return found


def _said(session: Session, part: Sequence[Encoded], max_new_tokens: int) -> list[Said]:
    backbone = session.backbone
    batch = fitting(session.collator.collate(part), part, backbone.model.config)
    with _watched(backbone.model) as steps:
        made = greedy(backbone, session.model, batch, max_new_tokens)
    texts, rows = decode(backbone, made), made.tolist()
    answers: list[Said] = []
    for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
        ends = [n for n, token in enumerate(row, 1) if token in backbone.stop_ids]
        tokens = row[: ends[0] if ends else len(row)]
        kept = [(ids[place].tolist(), values[place].tolist()) for ids, values in steps]
        kept = kept[: len(tokens)]
        answers.append(Said(text, tokens, [i for i, _ in kept], [v for _, v in kept]))
    return answers


@contextmanager
def _watched(model: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield a list that gets, of every step, the most probable tokens and their scores."""
    steps: list[tuple[Tensor, Tensor]] = []

    def note(module: object, inputs: object, logits: Tensor) -> None:
        scores = logits[:, -1].float().log_softmax(-1)
        best = scores.topk(min(_KEPT, scores.shape[1]))
        steps.append((best.indices.cpu(), best.values.cpu()))

    handle = model.get_output_embeddings().register_forward_hook(note)
    try:
        yield steps
    finally:
        handle.remove()


def agreement(
    mine: Mapping[Key, Said], theirs: Mapping[Key, Said], dtype: torch.dtype
) -> Agreement:
    """Compare the answers of two models to the same questions.

    Args:
        mine: Of the first model, whose preferences count.
        theirs: Of the second.
        dtype: Of the weights, which says how near a near-tie is.

    Returns:
        The comparison.
    """
    near = TIES.get(dtype, TIES_OF_HALVES)
    others = [key for key in mine if mine[key].text != theirs[key].text]
    margins = [_margin(mine[key], theirs[key]) for key in others]
    moved = (_moved(mine[key], theirs[key]) for key in mine)
    return Agreement(
        len(mine),
        len(others),
        sum(margin > near for margin in margins),
        max(margins, default=0.0),
        max(moved, default=0.0),
    )


def _margin(mine: Said, theirs: Said) -> float:
    """By how much the first model preferred its own choice where the two part."""
    for step, (own, other) in enumerate(zip(mine.tokens, theirs.tokens, strict=False)):
        if own != other:
            known = dict(zip(mine.best[step], mine.scores[step], strict=True))
            return known[own] - known.get(other, mine.scores[step][-1])
    return float("inf")  # one ends in the middle of the other, with no token that ends it


def _moved(mine: Said, theirs: Said) -> float:
    known = dict(zip(theirs.best[0], theirs.scores[0], strict=True))
    own = mine.best[0][0]
    return abs(mine.scores[0][0] - known.get(own, theirs.scores[0][-1]))


def scores(tasks: Sequence[Task], answers: Mapping[Key, Said], scoring: str) -> dict[str, float]:
    """Score answers by task, in percent, by a profile's strict rules."""
    return {
        task.name: task_score(
            [scored(task.scorer, e, answers[task.name, e.id].text, scoring) for e in task.test]
        )
        for task in tasks
    }
