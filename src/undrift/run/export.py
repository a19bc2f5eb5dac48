"""`undrift export`: an adapter as what servers load, and the same questions asked of it afterwards.

What is exported is loaded afresh, as anybody would load it, and asked before its folder appears.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from undrift.data.instructions import read_examples
from undrift.data.picture_folder import PictureFolder, existing_path
from undrift.data.processor import text_only
from undrift.data.row_layouts import AnswerReader
from undrift.data.subset import subset
from undrift.data.types import Example, Task
from undrift.errors import ConfigError, RunDirError, unknown
from undrift.methods.base import Method
from undrift.methods.shared.adapter import peft_model, put_on
from undrift.methods.shared.plain_lora import PlainLora, about_serving, write_lora
from undrift.methods.shared.task_matcher import MatchedPool
from undrift.run.adapters import SavedAdapter, find_adapter, open_adapter, origin_of
from undrift.run.backbone import Backbone
from undrift.run.compare_answers import Agreement, Key, Said, agreement, said, scores
from undrift.run.config import located
from undrift.run.fit_lora import MOST, fit_lora
from undrift.run.gguf_files import check_converters, write_gguf
from undrift.run.learned_tasks import find_again, relocated
from undrift.run.load_model import source
from undrift.run.merged_folder import base_folder, copy_readers, write_merged
from undrift.run.progress import Progress
from undrift.run.session import Session, make_method
from undrift.rundir import atomic_folder, atomic_write

Kind = Literal["merged", "peft", "gguf"]
_CARD = "README.md"


@dataclass(frozen=True)
class Asked:
    """What is exported, and how.

    Args:
        adapter: An adapter's folder, a task's or a run's.
        to: What it becomes.
        out: The folder that it becomes.
        task: The task whose own LoRA is exported, of a method that has one a task.
        backbone: Another place of the adapter's base.
        device: Where models go.
        batch_size: Prompts at a time.
        questions: A file of rows to ask in the place of what the adapter has learned.
        images: What pictures' names in it are relative to; its folder where not given.
        without: Tasks that are not asked.
        test_of: By task, where its test questions lie now.
        limit: How many questions of a task are asked at most; 0 asks nothing.
        distil: Fit a plain LoRA where the adapter is none.
        rank: The rank of the fitted LoRA; that of all experts together where not given.
        converters: llama.cpp's folder, for GGUF.
    """

    adapter: Path
    to: Kind
    out: Path
    task: str | None = None
    backbone: str | None = None
    device: str = "auto"
    batch_size: int = 16
    questions: Path | None = None
    images: Path | None = None
    without: Sequence[str] = ()
    test_of: Mapping[str, Path] = field(default_factory=dict)
    limit: int = 64
    distil: bool = False
    rank: int | None = None
    converters: Path | None = None


@dataclass
class Exported:
    """What was exported, and how its answers compare.

    Args:
        out: Where it is.
        to: What it is.
        method: The method that trained the adapter; empty where that is not known.
        quantize: How the base was quantised while the adapter was trained.
        fitted: Whether a plain LoRA was fitted to an adapter that is none.
        rank: The rank of the LoRA.
        notes: What has to be known to use it.
        same: The adapter's answers against those of what was exported; None if nothing was asked.
        changed: The bare base's answers against those of what was exported.
        scores: By task, of the bare base, the adapter and what was exported, in percent.
    """

    out: Path
    to: Kind
    method: str
    quantize: str
    fitted: bool = False
    rank: int = 0
    notes: list[str] = field(default_factory=list)
    same: Agreement | None = None
    changed: Agreement | None = None
    scores: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def as_expected(self) -> bool:
        """Whether the answers are the adapter's, but for near-ties, where they should be."""
        exact = not self.fitted and self.quantize == "none"
        return self.same is None or not exact or self.same.beyond == 0


@dataclass
class _Before:
    """What is known of the adapter once it was asked, and its model is let go."""

    base: str
    dtype: str
    asks: list[Task]
    adapter: dict[Key, Said]
    bare: dict[Key, Said]


def export(asked: Asked, progress: Progress | None = None) -> Exported:
    """Export an adapter, and ask it and what was exported the same questions.

    Args:
        asked: What and how.
        progress: Told about every batch.

    Returns:
        What was exported, and how its answers compare.

    Raises:
        ConfigError: If the adapter cannot be exported so; the message says how it can.
        DataError: If the questions cannot be read.
        RunDirError: If the folder cannot be written, or holds something.
        AdapterMismatch: If the base is not the one that the adapter was trained on.
    """
    told = progress or Progress()
    check_free(asked.out)
    if asked.to == "gguf":
        check_converters(asked.converters)
    tasks = _tasks(asked, told)
    with atomic_folder(asked.out) as folder:
        made, before, weights = _write(asked, tasks, folder, told)
        gc.collect()
        if before.asks:
            _ask_again(asked, made, before, weights, folder, told)
        if asked.to == "gguf" and asked.converters is not None:
            write_gguf(folder, asked.converters, weights, made.notes)
    return made


def check_free(out: Path) -> None:
    """Refuse a folder that holds something; an empty one, or none, is what is needed."""
    if os.path.lexists(out) and (not out.is_dir() or out.is_symlink() or any(out.iterdir())):
        raise RunDirError(
            f"{out} is there already, and an export replaces nothing; choose another folder with "
            "--out, or move it away"
        )


# ---------------------------------------------------------------- what is asked


def _tasks(asked: Asked, progress: Progress) -> list[Task]:
    """Read the questions: those of a file, or of the tasks that the adapter has learned."""
    if asked.questions is not None:
        file = existing_path(asked.questions)
        pictures = PictureFolder(existing_path(asked.images) if asked.images else file.parent)
        examples = read_examples(file, pictures, answers=AnswerReader("exact", ""))
        return [Task(file.stem, examples, (), examples, "exact", 64)]
    if not (asked.limit or asked.distil):
        return []
    folder = find_adapter(asked.adapter)
    origin = origin_of(folder)
    there = relocated(origin.get("learned", ()), folder, asked.test_of)
    names = [note["name"] for note in there]
    for name in (*asked.without, *([] if asked.task is None else [asked.task])):
        if name not in names:
            raise unknown("task of the adapter", name, names)
    notes = [note for note in there if note["name"] not in asked.without]
    if asked.task is not None:
        notes = [note for note in notes if note["name"] == asked.task]
    if not notes:
        first = "" if origin or asked.backbone else "name its base with --backbone, and "
        raise ConfigError(
            f"{folder} names no task that could be asked; {first}give questions with --questions "
            "FILE, or export without asking: --limit 0"
        )
    if unasked := asked.test_of.keys() - {note["name"] for note in notes}:
        raise ConfigError(f"--test-of: {min(unasked)} is not asked; leave it out")
    base = asked.backbone or located(origin["backbone"], origin.get("backbone_folder"))
    return [task for task, _ in find_again(notes, progress, base, adapter=folder)]


def _parted(asked: Asked, tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """Part the questions into those that are asked, and those that a LoRA is fitted to."""
    asks: list[Task] = []
    fits: list[Task] = []
    for task in tasks:
        half = (len(task.test) + 1) // 2 if asked.distil else len(task.test)
        limit = min(asked.limit, half)
        chosen = subset(task.test, limit=limit) if limit else ()
        taken = {example.id for example in chosen}
        rest = [example for example in task.test if example.id not in taken]
        if chosen:
            asks.append(replace(task, test=chosen))
        if asked.distil and rest:
            fits.append(replace(task, test=subset(rest, limit=MOST)))
    return asks, fits


# ---------------------------------------------------------------- the adapter, asked and written


def _write(
    asked: Asked, tasks: Sequence[Task], folder: Path, progress: Progress
) -> tuple[Exported, _Before, torch.dtype]:
    """Open the adapter, ask it and its base, and write it down as what it becomes."""
    learned = open_adapter(asked.adapter, asked.backbone, asked.device)
    origin, quantize = learned.origin, learned.origin.get("quantize", "none")
    asks, fits = _parted(asked, tasks)
    place = asked.backbone or located(origin["backbone"], origin.get("backbone_folder"))
    session = _prepared(learned, [*asks, *fits], asked, progress)
    made = Exported(asked.out, asked.to, origin.get("method", ""), quantize)
    number = _number(asked, origin)
    lora = _lora(asked, session, fits, made, number)
    made.rank = lora.rank
    work = sum(len(task.test) for task in asks)
    progress.plan(3 * work)
    with _told(session.method, number):
        mine = said(session, asks, "asking the adapter")
    with peft_model(session.model).disable_adapter():
        bare = said(session, asks, "asking the bare base")
    before = _Before(place, origin.get("dtype", "auto"), asks, mine, bare)
    model: Any = peft_model(session.model).get_base_model()
    base, weights = base_folder(source(place)), model.dtype
    if asked.to == "peft":
        where = source(place)
        write_lora(lora, folder, session.model, where, text=text_only(learned.backbone.processor))
        copy_readers(base, folder, model=False)
        made.notes += about_serving(lora)
    else:
        stored = write_merged(lora, base, folder, model)
        weights = min(stored, weights, key=lambda dtype: dtype.itemsize)
    if place == "pocket":
        made.notes.append("the pocket's vision tower comes with undrift: no other engine knows it")
    atomic_write(folder / _CARD, _card(asked, made, origin, place))
    return made, before, weights


def _prepared(
    learned: SavedAdapter, tasks: Sequence[Task], asked: Asked, progress: Progress
) -> SavedAdapter:
    """Make ready for the pictures of tasks; the collator then takes features that were kept."""
    learned.backbone.prepare([path for task in tasks for e in task.test for path in e.images])
    return replace(learned, progress=progress, batch_size=asked.batch_size)


def _told(method: Method, number: int | None) -> AbstractContextManager[None]:
    """Let the adapter answer as the LoRA that is exported does."""
    if number is None or not isinstance(method, MatchedPool):
        return nullcontext()
    return method.answering_for(number)


def _number(asked: Asked, origin: Mapping[str, Any]) -> int | None:
    """The number of the task whose LoRA is exported, from 1; None where all of it is."""
    if asked.task is None:
        return None
    names = [note["name"] for note in origin.get("learned", ())]
    if asked.task not in names:
        raise unknown("task of the adapter", asked.task, names)
    return names.index(asked.task) + 1


def _lora(
    asked: Asked,
    session: SavedAdapter,
    fits: Sequence[Task],
    made: Exported,
    number: int | None,
) -> PlainLora:
    """Name the plain LoRA that the adapter is; or fit one, where that is asked for."""
    try:
        lora = session.method.as_lora(session.model, number)
    except ConfigError as error:
        if not (asked.distil and "--distil" in str(error)):
            name = made.method or "an unknown method"
            raise ConfigError(f"{session.folder} was trained by {name}: {error}") from error
        made.fitted = True
        return fit_lora(session, fits, asked.rank)
    if asked.distil:
        made.notes.append("the adapter is a plain LoRA already: nothing was fitted")
    return lora


# ---------------------------------------------------------------- the exported thing, asked


def _ask_again(
    asked: Asked,
    made: Exported,
    before: _Before,
    weights: torch.dtype,
    folder: Path,
    progress: Progress,
) -> None:
    """Load what was exported as anybody would, ask it, and compare."""
    if asked.to == "peft":
        backbone = Backbone.load(before.base, before.dtype, asked.device)
        model: Any = put_on(backbone.model, folder).eval()
    else:
        backbone = Backbone.load(str(folder), before.dtype, asked.device)
        model = backbone.model
    examples: list[Example] = [e for task in before.asks for e in task.test]
    backbone.prepare([path for e in examples for path in e.images])
    session = Session(backbone, model, make_method("zeroshot", {}), progress, asked.batch_size)
    theirs = said(session, before.asks, "asking the export")
    made.same = agreement(before.adapter, theirs, weights)
    made.changed = agreement(before.bare, theirs, weights)
    rows = [scores(before.asks, each, "coin") for each in (before.bare, before.adapter, theirs)]
    made.scores = {t.name: (rows[0][t.name], rows[1][t.name], rows[2][t.name]) for t in before.asks}


# ---------------------------------------------------------------- what is said in the folder


def _card(asked: Asked, made: Exported, origin: Mapping[str, Any], place: str) -> str:
    """Say what the folder is, and how it is loaded; no path, no question and no answer."""
    base = Path(place).name if Path(place).is_absolute() or place.startswith(".") else place
    tasks = ", ".join(str(note["name"]) for note in origin.get("learned", ())) or "not known"
    what = {"merged": "whole model", "peft": "plain LoRA in PEFT's format", "gguf": "GGUF model"}
    how = {
        "merged": "Load it as any model of its type: the keys are those of the base.",
        "peft": "Load it with PEFT, or any server that takes its LoRA: undrift is not needed.",
        "gguf": "Load it with llama.cpp.",
    }
    made_by = f"undrift's `{made.method}`" if made.method else "undrift"
    fitted = " A plain LoRA was fitted to the adapter: it does not answer exactly as it."
    lines = [
        f"# A {what[asked.to]}, made by undrift export",
        "",
        f"Base: {base}. Trained with {made_by}.{fitted * made.fitted}",
        f"Tasks: {tasks}. Rank {made.rank}.",
        "Licence: nothing is known of the data; what base model and data allow counts.",
        "",
        how[asked.to],
    ]
    return "\n".join([*lines, *(f"- {note}" for note in made.notes), ""])
