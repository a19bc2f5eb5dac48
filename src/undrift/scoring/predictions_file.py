"""A whole predictions file against its examples, matched by id, never by line.

A prediction is `question_id` and `text`, as LLaVA's evaluation writes them, or `id`, `question` and
`answer`, as `undrift predict --out` does; the question must then be that of the example, for rows
without ids of their own are numbered in every file. A key that is there twice is refused.

`17` and `"17"` are one id. A row whose text is null is a question without an answer: it is wrong by
every score (the public rule for ImageNet would call an empty text right). A file that leaves
examples out is refused, unless it is called partial: some public codes divide by the number of
predictions, so that a run which broke off looks better than it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from undrift.errors import DataError, brief
from undrift.scoring.answer_form import ErrorKind
from undrift.scoring.captions import caption_scores
from undrift.scoring.kinds import error_kind
from undrift.scoring.published_tasks import TASKS, Scores, score_all
from undrift.scoring.scores import check_scorer, in_other_units, rules_of, scores_of
from undrift.untrusted import NotJson, Refused, is_folder, json_lines, open_regular, why


class _Question(Protocol):
    """What is needed of an example; `undrift.data.Example` is one."""

    @property
    def id(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answers(self) -> tuple[str, ...]: ...
    @property
    def extra(self) -> Mapping[str, Any]: ...


_PREDICTED = {"id", "question", "answer"}
"""The keys of a row of `undrift predict --out`, and no other: a row of data has more of them."""
_WANTED = "expected question_id and text, or id, question and answer as undrift predict writes them"


@dataclass(frozen=True)
class FileScores:
    """What a predictions file is worth; averages are percentages over `scored` examples.

    Args:
        strict: By the profile's rule, or None for captions.
        official: By the data set's metric, or None where it is not known for every line. For
            captions CIDEr.
        lenient: Content only, or None for captions.
        form: The share of answers in the right form.
        lucky: How many predictions the strict rule likes better than the lenient one does: empty
            texts and parts of words on ImageNet, for instance.
        errors: How many predictions have which error of form.
        captions: The metrics of `captions.METRICS`; empty but for captions.
        units: What to know of boxes in other units than their answers; most often nothing.
        lines: Each scored example's own scores, by id, in the examples' order.
        scored: How many examples the averages are over.
        examples: How many examples there are.
    """

    strict: float | None
    official: float | None
    lenient: float | None
    form: float
    lucky: int
    errors: Mapping[ErrorKind, int]
    captions: Mapping[str, float]
    units: str
    lines: Mapping[str, Scores]
    scored: int
    examples: int

    @property
    def partial(self) -> bool:
        """Whether examples were left out; averages are then not the benchmark's."""
        return self.scored < self.examples


def score_file(
    task: str,
    rows: Iterable[Mapping[str, Any]],
    examples: Sequence[_Question],
    profile: str,
    *,
    partial: bool = False,
) -> FileScores:
    """Score all predictions for one task.

    Args:
        task: A key of `published_tasks.TASKS`, or a scorer's name.
        rows: The parsed lines: `question_id`, a text or an integer, and `text`, a text or null; or
            `id`, `answer` and `question`. Other keys are ignored, and so is the order.
        examples: The task's test examples.
        profile: One of `published_tasks.PROFILES`; a scorer has none.
        partial: Take the average over the predictions that there are, instead of refusing; CIDEr
            then weighs words by the references of these only.

    Returns:
        The averages, with the scores of every line.

    Raises:
        UnknownName: If there is no such task or profile.
        DataError: If a row has no id or no text, if an id occurs twice or is no example's, if a
            question is not the example's, or if examples have no prediction and `partial` is not
            set (or none has one).
    """
    check_scorer(task)
    texts, questions = _texts_by_id(rows)
    asked = _examples_by_id(examples)
    strange = [key for key in texts if key not in asked]
    if strange:
        raise DataError(
            f"{len(strange)} predictions are for questions that {task} has not got, the first of "
            f"them {strange[0]!r}; is the file of another task or split?"
        )
    for key, question in questions.items():
        if question != asked[key].question:
            raise DataError(
                f"the prediction for {key!r} answers {brief(question)}, and {task} asks "
                f"{brief(asked[key].question)} there; is the file of another task or split?"
            )
    missing = [key for key in asked if key not in texts]
    if missing and (not partial or not texts):
        raise DataError(
            f"{len(missing)} of {len(asked)} examples of {task} have no prediction, the first of "
            f"them {missing[0]!r}; predict them, or pass --partial to average over the "
            f"{len(texts)} that are there"
        )
    answered = {key: example for key, example in asked.items() if key in texts}
    judged = {key: _scored(task, texts[key], each, profile) for key, each in answered.items()}
    lines = {key: scores for key, (scores, _) in judged.items()}
    said = {key: texts[key] or "" for key in lines}
    accepted = {key: example.answers for key, example in answered.items()}
    captions: dict[str, float] = {}
    if task in TASKS and TASKS[task].kind == "caption":
        captions = caption_scores(said, accepted)
    return FileScores(
        strict=_percent([line.strict for line in lines.values()]),
        official=captions.get("cider", _percent([line.official for line in lines.values()])),
        lenient=_percent([line.lenient for line in lines.values()]),
        form=100 * sum(line.form for line in lines.values()) / len(lines),
        lucky=sum((line.strict or 0.0) > (line.lenient or 0.0) for line in lines.values()),
        errors=Counter(error for _, error in judged.values() if error is not None),
        captions=captions,
        units=in_other_units(task, ({"prediction": said[k], "answers": accepted[k]} for k in said)),
        lines=lines,
        scored=len(lines),
        examples=len(asked),
    )


def _scored(
    task: str, given: str | None, example: _Question, profile: str
) -> tuple[Scores, ErrorKind | None]:
    """Score one text and name its error of form; where there is none, zeros stand for scores."""
    text, answers = given or "", example.answers
    extra = {"question": example.question, **example.extra}
    if task in TASKS:
        error = error_kind(TASKS[task].kind, text, answers)
        scores = score_all(task, text, answers, extra, profile)
    else:
        kept = scores_of(task, text, answers, extra, profile)
        strict, lenient, form, error = rules_of(
            task, {"prediction": text, "answers": answers, **kept}
        )
        scores = Scores(strict, None, lenient, form)
    if given is None:
        scores = Scores(*(None if score is None else 0.0 for score in scores[:3]), form=0.0)
    return scores, error


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Read a predictions file as LLaVA's evaluation writes it, or the folder that it lies in.

    Of a folder, `merge.jsonl` is read, or else all its `*.jsonl`, which are then the parts that
    several processes have written. What is no file of JSON objects, or has a key twice in one, is a
    DataError.
    """
    merged = path / "merge.jsonl"
    files = sorted(path.glob("*.jsonl")) if is_folder(path) else [path]
    files = [merged] if merged in files else files
    if not files:
        raise DataError(f"{path} holds no predictions; expected merge.jsonl or other .jsonl files")
    return [row for file in files for row in _rows(file)]


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with open_regular(file) as opened:
            for number, row in json_lines(opened, unique=True):
                if isinstance(row, Refused):
                    place, reason = f"{file}, line {number}", row.reason
                    if row.column is not None:
                        place, reason = f"{place}, column {row.column}", f"no JSON ({reason})"
                    raise DataError(
                        f"{place}: {reason}; expected one prediction a line: "
                        '{"question_id": ..., "text": ...}'
                    )
                if not isinstance(row, dict):
                    raise DataError(
                        f"{file}, line {number}: expected an object, found {str(row)[:40]!r}"
                    )
                yield cast("dict[str, Any]", row)
    except OSError as error:
        raise DataError(f"cannot read {file}: {why(error)}") from error
    except NotJson as error:
        raise DataError(f"cannot read {file}: {error}") from error


def _texts_by_id(
    rows: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Return the predictions by id, and the questions that they say they answer."""
    texts, questions = dict[str, str | None](), dict[str, Any]()
    for number, row in enumerate(rows, start=1):
        predicted = {*row} == _PREDICTED
        identity, held = ("id", "answer") if predicted else ("question_id", "text")
        key, text, keys = row.get(identity), row.get(held), brief(sorted(row))
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise DataError(
                f"prediction {number} has the {identity} {key!r}, no text or integer: its keys are "
                f"{keys}; {_WANTED}"
            )
        if held not in row:
            raise DataError(
                f"prediction {number} ({identity} {key!r}) has no text: its keys are {keys}; "
                f"{_WANTED}"
            )
        if not isinstance(text, str | None):
            raise DataError(
                f"prediction {number} ({identity} {key!r}) has no text: {held!r} is {brief(text)}; "
                "expected a text or null"
            )
        if str(key) in texts:
            raise DataError(
                f"prediction {number} is the second for the {identity} {str(key)!r}; keep one; "
                "were the files of several processes joined twice?"
            )
        texts[str(key)] = text
        if predicted:
            questions[str(key)] = row["question"]
    return texts, questions


def _examples_by_id(examples: Sequence[_Question]) -> dict[str, _Question]:
    asked = {str(example.id): example for example in examples}
    if len(asked) < len(examples):
        twice = Counter(str(example.id) for example in examples).most_common(1)[0][0]
        raise DataError(f"two examples have the id {twice!r}; predictions are matched by id")
    if not asked:
        raise DataError("there are no examples to score predictions against")
    return asked


def _percent(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return 100 * sum(known) / len(known) if known and len(known) == len(scores) else None
