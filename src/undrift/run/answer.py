"""Greedy answers in batches, and a cell of the matrix: a task's test examples answered and scored.

Prompts are padded on the left and sorted by length; the answers are the same whatever the batch.
Where image features are kept, a short loop over the model's own forward and cache is used: on a
small model `generate` costs as much again as the model itself. Every other model goes through
`generate`. Tests hold the two to the same answers.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from undrift.data.collate import Encoded, fitting
from undrift.data.processor import REFUSALS
from undrift.data.types import Example, Task
from undrift.run.backbone import Backbone
from undrift.run.ranks import facts_together, of_all
from undrift.run.refused_examples import blame_example
from undrift.run.session import Session
from undrift.rundir import atomic_write, read_answers, text_of, write_json, write_lines
from undrift.rundir.files import line_of, read_line, remove, writing
from undrift.rundir.records import Said, check
from undrift.scoring import in_other_units, scores_of, task_score
from undrift.tuner.distributed import processes, rank
from undrift.tuner.forward import cache_of


def measure_cell(
    session: Session, task: Task, file: Path, title: str, *, facts: bool = False
) -> float:
    """Measure one cell of the matrix, unless its file is there already.

    Predictions are noted batch by batch in a file beside it, from which a killed run goes on.

    Args:
        session: What answers.
        task: What is asked.
        file: Where every prediction and its scores go.
        title: For the progress bar.
        facts: Also write what the method tells of its answers, into a .json beside the file.

    Returns:
        The strict score in percent; for captions CIDEr.
    """
    return task_score(answered(session, task, file, title, facts=facts))


def answered(
    session: Session, task: Task, file: Path | None, title: str, *, facts: bool = False
) -> list[dict[str, Any]]:
    """Return the lines of a cell, see `scored`: read if they are there, else measured.

    Args:
        session: As for `measure_cell`.
        task: As for `measure_cell`.
        file: As for `measure_cell`; None to keep nothing.
        title: As for `measure_cell`.
        facts: As for `measure_cell`.

    Returns:
        A line a question.
    """
    notes = file.with_suffix(".part") if file is not None else None
    if file is not None and notes is not None and file.is_file():
        remove(notes)  # a kill in between leaves both
        return read_answers(file)
    session.progress.stage(title, len(task.test), len(task.test))
    predictions, told = _predictions(session, task, notes)
    rows = [scored(task.scorer, e, predictions[e.id], session.scoring) for e in task.test]
    if file is not None and notes is not None:
        if facts and told:  # before the answers, which say that all is there
            write_json(file.with_suffix(".json"), told)
        write_lines(file, rows)
        remove(notes)
    if units := in_other_units(task.scorer, rows):
        session.progress.event("units", f"task {task.name}: {units}", task=task.name)
    return rows


def _predictions(
    session: Session, task: Task, notes: Path | None
) -> tuple[dict[str, str], dict[str, Any]]:
    """Answer what has no note yet, noting every batch.

    Return all answers by the examples' ids, and what the method tells of them.
    """
    if notes is None:
        return dict(answers(session, session.prompts(task), task.max_new_tokens)), {}
    ids = {example.id for example in task.test}
    noted = [said for said in _whole_batches(_noted(notes)) if said["id"] in ids]
    known = {said["id"] for said in noted}
    session.progress.resume(len(known))
    waiting = [prompt for prompt in session.prompts(task) if prompt.id not in known]
    atomic_write(notes, "".join(line_of(notes, said) for said in noted))
    place = notes if rank() == 0 else Path(os.devnull)
    batch: list[dict[str, Any]] = []
    with writing(notes), place.open("a", encoding="utf-8") as file:

        def note(facts: dict[str, Any]) -> None:
            batch[-1] |= {"facts": facts} if facts else {}
            file.write("".join(line_of(notes, said) for said in batch))
            file.flush()  # what a kill leaves
            batch.clear()

        for key, text in answers(session, waiting, task.max_new_tokens, note):
            batch.append({"id": key, "prediction": text})
            noted.append(batch[-1])
    told = [said["facts"] for said in noted if said.get("facts")]
    return {said["id"]: said["prediction"] for said in noted}, facts_together(told)


def scored(scorer: str, example: Example, prediction: str, scoring: str = "coin") -> dict[str, Any]:
    """Return the line that is kept of one prediction, with its scores.

    Args:
        scorer: The scorer's name.
        example: What was asked.
        prediction: What was answered.
        scoring: The profile that decides what is strict.

    Returns:
        id, question, answers, prediction, and the scores of `undrift.scoring.scores_of`.
    """
    extra = {"question": example.question, **example.extra}
    return {
        "id": example.id,
        "question": example.question,
        "answers": list(example.answers),
        "prediction": prediction,
        **scores_of(scorer, prediction, example.answers, extra, scoring),
    }


def _whole_batches(noted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out a batch that was cut off, where what the method tells stands behind each."""
    ends = [number for number, said in enumerate(noted, 1) if said.get("facts")]
    return noted[: ends[-1]] if ends else noted


def _noted(notes: Path) -> list[dict[str, Any]]:
    """Read the predictions of a cell that was not finished; a last line cut off is left out."""
    if not notes.is_file():
        return []
    found: list[dict[str, Any]] = []
    *lines, _ = text_of(notes).split("\n")
    for number, line in enumerate(lines, 1):
        row: Any = read_line(notes, line, number)
        if isinstance(row, list):  # as it was before there was a format
            row = dict(zip(("id", "prediction"), row, strict=False))
        check(notes, row, TypeAdapter(Said), (f"line {number}",))
        found.append(row)
    return found


def answers(
    session: Session,
    examples: Sequence[Encoded],
    max_new_tokens: int,
    behind: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Iterator[tuple[str, str]]:
    """Answer every example, batch by batch; of several processes each takes the next batch.

    Args:
        session: What answers, its model in evaluation mode.
        examples: Encoded prompts, without answers.
        max_new_tokens: Longest answer.
        behind: Called after what all processes have answered at once was taken, with what the
            method tells of it.

    Yields:
        (id, answer text), most pictures first, then longest prompts.
    """
    backbone = session.backbone
    parts = _parts(session, examples, max_new_tokens)
    session.method.facts()  # of what was read before
    for start in range(0, len(parts), processes()):
        own = []
        for part in parts[start : start + processes()][rank() :][:1]:
            batch = _collated(session, part)
            try:
                tokens = greedy(backbone, session.model, batch, max_new_tokens)
            except REFUSALS as error:
                blame_example(backbone, session.model, session.collator, part, error)
                raise
            own = [(e.id, text) for e, text in zip(part, decode(backbone, tokens), strict=True)]
        found = [each for (each,) in of_all([(own, session.method.facts())])]
        for answered, _ in found:
            yield from answered
        behind(facts_together(facts for _, facts in found))
        session.progress.advance(sum(len(answered) for answered, _ in found))


@torch.inference_mode()
def read(
    session: Session,
    examples: Sequence[Encoded],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Let the model read prompts without answering them, always in the same batches.

    What it makes of them is for whoever watches, such as `undrift.tuner.route_recorder.recorded`.

    Args:
        session: The model, in evaluation mode.
        examples: Encoded prompts, without answers.
        progress: Called with the number of examples just read.
    """
    backbone = session.backbone
    for part in _parts(session, examples):
        batch = _collated(session, part)
        try:
            with backbone.reading(batch) as inputs:
                session.model(**inputs, **_last(backbone), use_cache=False)
        except REFUSALS as error:
            blame_example(backbone, session.model, session.collator, part, error)
            raise
        progress(len(part))


def _parts(session: Session, examples: Sequence[Encoded], new: int = 0) -> list[list[Encoded]]:
    """Divide prompts into batches, most pictures first, then the longest.

    No batch takes more memory than `batch_size` of the longest prompts with `new` tokens each, and
    as many pictures: of shorter ones it has more.
    """
    order = sorted(examples, key=lambda e: (-len(e.images), -len(e.prompt), e.text, e.id))
    tokens = session.batch_size * (max((len(e.prompt) for e in order), default=0) + new)
    pictures = session.batch_size * max((len(e.images) for e in order), default=0)
    parts: list[list[Encoded]] = []
    longest = shown = 0
    for example in order:
        longest, shown = max(longest, len(example.prompt)), shown + len(example.images)
        if parts and (len(parts[-1]) + 1) * (longest + new) <= tokens and shown <= pictures:
            parts[-1].append(example)
        else:
            parts.append([example])
            longest, shown = len(example.prompt), len(example.images)
    return parts


def _collated(session: Session, part: list[Encoded]) -> dict[str, Any]:
    return fitting(session.collator.collate(part), part, session.backbone.model.config)


@torch.inference_mode()
def greedy(backbone: Backbone, model: Any, batch: dict[str, Any], max_new_tokens: int) -> Tensor:
    """Extend each prompt by its most probable tokens.

    Args:
        backbone: The backbone.
        model: The model with its adapters.
        batch: A collated batch of prompts, padded on the left.
        max_new_tokens: How many tokens at most.

    Returns:
        New token ids (B, at most max_new_tokens); what follows a stop token means nothing.
    """
    with backbone.reading(batch) as inputs:
        return _greedy(backbone, model, inputs, max_new_tokens)


def _greedy(backbone: Backbone, model: Any, inputs: dict[str, Any], max_new_tokens: int) -> Tensor:
    if "inputs_embeds" not in inputs:
        return _generate(backbone, model, inputs, max_new_tokens)
    stops = torch.tensor(backbone.stop_ids, device=backbone.device)
    mask, positions = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    out = model(**inputs, **_last(backbone), use_cache=True)
    tokens: list[Tensor] = []
    finished = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    while True:
        tokens.append(out.logits[:, -1].argmax(-1))
        finished |= torch.isin(tokens[-1], stops)
        if len(tokens) == max_new_tokens or finished.all():
            return torch.stack(tokens, dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions + 1
        out = model(
            inputs_embeds=backbone.embed(tokens[-1][:, None]),
            attention_mask=mask,
            position_ids=positions,
            **cache_of(out),
            use_cache=True,
        )


def decode(backbone: Backbone, tokens: Tensor) -> list[str]:
    """Turn new tokens into texts, each ending before its first stop token.

    Of the special tokens only those that begin, end and pad are left out: `<ref>`, `<box>` and the
    like are part of an answer.

    Args:
        backbone: Whose tokenizer and stop tokens are used.
        tokens: Token ids (B, n).

    Returns:
        B texts, stripped of surrounding space.
    """
    tokenizer, stops = backbone.tokenizer, set(backbone.stop_ids)
    around = {tokenizer.bos_token_id, tokenizer.pad_token_id}
    rows = []
    for row in tokens.tolist():
        end = next((place for place, token in enumerate(row) if token in stops), len(row))
        rows.append([token for token in row[:end] if token not in around])
    texts = tokenizer.batch_decode(
        rows, skip_special_tokens=False, spaces_between_special_tokens=False
    )
    return [text.strip() for text in texts]


def _generate(
    backbone: Backbone, model: Any, inputs: dict[str, Any], max_new_tokens: int
) -> Tensor:
    tokenizer = backbone.tokenizer
    inputs.pop("position_ids", None)  # `generate` makes them from the mask
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else backbone.stop_ids[0]
    made = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(backbone.stop_ids),
        pad_token_id=pad,
        **_last(backbone),
    )
    return made[:, inputs["input_ids"].shape[1] :]


def _last(backbone: Backbone) -> dict[str, Tensor]:
    """The last position as an index: of a slice, the product with the head is not contiguous."""
    takes = "logits_to_keep" in inspect.signature(backbone.model.forward).parameters
    return {"logits_to_keep": torch.tensor([-1], device=backbone.device)} if takes else {}
