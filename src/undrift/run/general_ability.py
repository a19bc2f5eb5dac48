"""What the base could do before: measured of it and after the last task, kept in general.json.

Nothing measured here is trained on or remembered. The answers lie in RUN/general, so that a run
that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from undrift.data.subset import subset
from undrift.data.types import Example, General, Task
from undrift.run.answer import answered
from undrift.run.config import Profile
from undrift.run.load_tasks import spaced
from undrift.run.session import Session
from undrift.run.token_loss import answer_loss, text_loss
from undrift.rundir import RunDir, read_answers, read_record, write_json
from undrift.rundir.files import remove
from undrift.rundir.records import General as Record
from undrift.scoring import mean_score

Stage = Literal["before", "after"]
EXAMPLES, TEXT, PROMPTS, EXACT = "examples", "text:", "prompts", "prompts_exact"
"""The parts: accuracy in percent, the loss a token of each kind of text, that of the base's own
answers to prompts, and how many of those are still given."""
_NAME = "general/ability"  # no task can be called so


def cut_general(general: General, profile: Profile) -> General:
    """Return the part of the questions that a profile uses, as `load_tasks.cut` does of a task."""
    chosen = {"limit": profile.limit, "fraction": profile.fraction, "seed": profile.draw}

    def part(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        kept = subset(examples, **chosen) if examples else ()
        return spaced(kept, max(1, round(len(kept) * profile.test_share))) if kept else ()

    return replace(general, examples=part(general.examples), prompts=part(general.prompts))


def asked_of(general: General | None) -> tuple[Example, ...]:
    """Return every question that is put to a model, for whoever keeps image features."""
    return () if general is None else (*general.examples, *general.prompts)


def note(session: Session, general: General, files: RunDir, stage: Stage) -> dict[str, Any]:
    """Measure one stage, unless it is known, and keep it in general.json.

    Args:
        session: The model as it is at that stage.
        general: What is asked.
        files: The run.
        stage: "before" of the base, "after" of the model that has learned the last task.

    Returns:
        The content of general.json.
    """
    content = _known(general, files)
    if not content.get(stage):
        content[stage] = measure(session, general, files, stage)
        if stage == "after":
            content["loss"] = general_loss(content["before"], content["after"])
        write_json(files.general_file, content)
    return content


def _known(general: General, files: RunDir) -> dict[str, Any]:
    """Read what is kept; what is of other questions is deleted."""
    file = files.general_file
    content = read_record(file, Record) if file.is_file() else {}
    if content.get("fingerprint") == general.fingerprint:
        return content
    remove(files.general_answers)
    content = {"fingerprint": general.fingerprint, "before": {}}
    write_json(file, content)  # from here on answers are of these questions
    return content


def measure(session: Session, general: General, files: RunDir, stage: Stage) -> dict[str, float]:
    """Measure what a model can do in general.

    Args:
        session: The model.
        general: What is asked.
        files: Where answers are kept.
        stage: Which model it is.

    Returns:
        The parts that there are: "examples", the share of right answers in percent; "text:KIND",
        the loss a token; "prompts", that of the base's own answers; "prompts_exact", the share of
        answers that are the base's, letter for letter, in percent.
    """
    session.model.eval()
    parts: dict[str, float] = {}

    def asked(examples: tuple[Example, ...], file: Path) -> list[dict[str, Any]]:
        task = Task(_NAME, examples, (), examples, general.scorer, general.max_new_tokens)
        return answered(session, task, file, f"general ability, {stage} learning")

    with session.method.predicting(session.model):
        if general.examples:
            rows = asked(general.examples, files.general_answers / f"{stage}.jsonl")
            parts[EXAMPLES] = mean_score(rows, "strict") or 0.0
        for kind, texts in general.texts.items():
            parts[TEXT + kind] = text_loss(session, texts)
        if general.prompts:
            rows = asked(general.prompts, prompts_file(files, stage))
            own = read_answers(prompts_file(files, "before"))
            parts[EXACT] = share_alike(own, rows)
            said = [row["prediction"] for row in own]
            if any(map(str.strip, said)):
                parts[PROMPTS] = answer_loss(session, general.prompts, said)
    return parts


def prompts_file(files: RunDir, stage: Stage) -> Path:
    """Return where the answers to prompts lie."""
    return files.general_answers / f"{stage}-prompts.jsonl"


def share_alike(own: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> float:
    """Compute the percentage of answers that are the base's, letter for letter."""
    pairs = zip(own, rows, strict=True)
    return 100 * fmean(first["prediction"] == second["prediction"] for first, second in pairs)


def general_loss(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Compute how much of the general ability is lost, in percent; below 0 where there is more.

    Args:
        before: The parts of the base.
        after: The parts after the last task.

    Returns:
        100 (a0 - a) / a0 of the accuracy on examples; where there are losses a token (of texts and
        of the base's own answers), the mean of their relative rises. None where nothing was
        measured, or the base could do nothing.
    """
    losses = [key for key in before if key.startswith(TEXT) or key == PROMPTS]
    if losses:
        return fmean(100 * (after[key] - before[key]) / before[key] for key in losses)
    start = before.get(EXAMPLES)
    return 100 * (start - after[EXAMPLES]) / start if start else None
