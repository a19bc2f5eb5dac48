"""`undrift eval` and `predict`: questions to a saved adapter, and the folder of its answers.

Beside the answers lies asked.json: which adapter was asked, and which files were written. Only
these are ever written anew; what is there of somebody else's stays.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from undrift.data.types import Example, Task
from undrift.errors import RunDirError
from undrift.run.adapters import SavedAdapter
from undrift.run.answer import answered, answers
from undrift.run.input_changes import look
from undrift.run.learned_tasks import examples_digest
from undrift.run.progress import Progress
from undrift.run.ranks import alone_in
from undrift.run.session import Session
from undrift.rundir import is_name, read_record, write_json
from undrift.rundir.files import NAME_RULE, remove, short_hash
from undrift.rundir.records import Asked
from undrift.scoring import mean_score, task_score

SCORES = ("strict", "caseless", "official", "lenient", "form")
_MARK = "asked.json"


def ask(
    adapter: SavedAdapter,
    question: str,
    images: tuple[Path, ...] = (),
    max_new_tokens: int = 32,
    task: int | None = None,
) -> str:
    """Ask one question.

    Args:
        adapter: From `open_adapter`.
        question: The question, its format line included.
        images: Pictures it is about.
        max_new_tokens: Longest answer.
        task: The number of the learned task that it belongs to, from 1, where that is known.

    Returns:
        The answer.
    """
    asked = Example("question", question, ("unknown",), images)
    encoded = adapter.collator.encode([asked], answered=False)
    with adapter.method.predicting(adapter.model, task=task):
        return next(text for _, text in answers(adapter, encoded, max_new_tokens))


def examine(
    adapter: SavedAdapter,
    tasks: Sequence[Task],
    out: Path | None,
    batch_size: int,
    progress: Progress,
    scoring: str = "coin",
) -> dict[str, dict[str, float | None]]:
    """Put test questions to an adapter.

    Args:
        adapter: From `open_adapter`.
        tasks: What is asked.
        out: Where predictions are kept, one file a task; nowhere if not given. What the same
            adapter was asked there already is not asked again.
        batch_size: Prompts at a time.
        progress: Told about every batch.
        scoring: The profile that decides what is strict, see `undrift.scoring.PROFILES`.

    Returns:
        The scores of each task by the names in SCORES, in percent; None where it has none.

    Raises:
        RunDirError: If answers cannot be kept in `out`, or another process works there.
    """
    with alone_in(*([out] if out is not None else [])):
        return _examined(adapter, tasks, out, batch_size, progress, scoring)


def _examined(
    adapter: SavedAdapter,
    tasks: Sequence[Task],
    out: Path | None,
    batch_size: int,
    progress: Progress,
    scoring: str,
) -> dict[str, dict[str, float | None]]:
    examples = [example for task in tasks for example in task.test]
    adapter.backbone.prepare([picture for e in examples for picture in e.images])
    progress.plan(len(examples))
    session = Session(
        adapter.backbone, adapter.model, adapter.method, progress, batch_size, scoring
    )  # its collator takes the kept features
    asked = [task.name for task in tasks]
    if out is None:
        check_names(asked)
    else:
        digests = {task.name: _asked_digest(task, scoring) for task in tasks}
        adapter_is = adapter_digest(adapter.folder, adapter.backbone.fingerprint)
        claim(out, asked, adapter_is, digests)
    scores = {}
    names = [note["name"] for note in adapter.origin.get("learned", ())]
    for task in tasks:
        file = out / f"{task.name}.jsonl" if out is not None else None
        number = names.index(task.name) + 1 if task.name in names else None
        with adapter.method.predicting(adapter.model, task=number):
            rows = answered(session, task, file, f"asking {task.name}")
        means = {key: mean_score(rows, key) for key in SCORES}
        scores[task.name] = {**means, "strict": task_score(rows)}
    return scores


def check_names(names: Sequence[str]) -> None:
    """Refuse the names of tasks that could lead out of a folder."""
    for name in names:
        if not is_name(name):
            raise RunDirError(f"no file can be called after the task {name!r}: {NAME_RULE}")


def adapter_digest(folder: Path, fingerprint: str) -> str:
    """Name an adapter on its backbone by the bytes of its tensors."""
    made = hashlib.sha256(fingerprint.encode())
    for file in sorted(folder.glob("*.safetensors")):
        made.update(file.read_bytes())
    return made.hexdigest()


def _asked_digest(task: Task, scoring: str) -> str:
    """Name what is asked of a task, a picture by its size and times, and how it is scored."""
    pictures = [look(path) for example in task.test for path in example.images]
    rules = [task.scorer, task.max_new_tokens, scoring]
    return short_hash(json.dumps([examples_digest(task.test), pictures, *rules]))


def claim(
    out: Path, names: Sequence[str], adapter: str, digests: Mapping[str, str] | None = None
) -> None:
    """Make sure that answers can be written into a folder without a loss of anything in it.

    What is there of another adapter or of other questions is deleted.

    Args:
        out: The folder; it is made.
        names: The tasks that are asked.
        adapter: From `adapter_digest`.
        digests: By task, what tells whether the same is asked as before.

    Raises:
        RunDirError: If a name cannot be a file's, or if a file of that name is there already which
            `undrift eval` has not written.
    """
    check_names(names)
    mark = out / _MARK
    there = os.path.lexists(mark)
    known: dict[str, Any] = read_record(mark, Asked) if there else {"adapter": adapter}
    ours = set(known.get("files", ()))
    wanted = [f"{name}{suffix}" for name in names for suffix in (".jsonl", ".part")]
    for file in (out / name for name in wanted if name not in ours):
        if os.path.lexists(file):
            raise RunDirError(
                f"{file} is there, and `undrift eval` has not written it (no word of it in "
                f"{mark}); move it away, or choose another folder with --out"
            )
    same = known["adapter"] == adapter
    before = known.get("asked", {}) if same else {}
    asked = {name: (digests or {}).get(name, "") for name in names}
    for name, digest in asked.items():
        again = bool(digest) and before.get(name) == digest
        finished = os.path.lexists(out / f"{name}.jsonl")
        if not again:
            remove(out / f"{name}.jsonl")
        if not (again or (same and (finished or name not in before))):
            remove(out / f"{name}.part")
    for name in () if same else ours:
        if name.endswith(".part"):
            remove(out / name)
    content = {"adapter": adapter, "files": sorted({*ours, *wanted})}
    write_json(mark, {**content, "asked": {**before, **asked}})
