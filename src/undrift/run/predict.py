"""`undrift predict`, `chat`: an adapter, or a model without, asked what has no answer yet."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from undrift.data.types import Example, Task
from undrift.errors import ConfigError, DataError, RunDirError, unknown
from undrift.run.adapters import (
    SavedAdapter,
    find_adapter,
    open_adapter,
    origin_of,
    refuse_two_meanings,
)
from undrift.run.answer import answers
from undrift.run.backbone import Backbone
from undrift.run.config import located
from undrift.run.load_model import BUILT_IN, Quantize, source
from undrift.run.load_tasks import without_bad
from undrift.run.progress import Progress
from undrift.run.session import Session, make_method

BASE = "base"
"""The word for the model of an adapter, without adapter."""
LONGEST = 128  # tokens, where nothing has been learned that says otherwise; as of your own tasks


def open_model(
    given: str, backbone: str | Backbone | None = None, device: str = "auto"
) -> SavedAdapter:
    """Open an adapter, or a model as it is.

    Args:
        given: The folder of an adapter or of a run, see `open_adapter`; or a backbone's name.
        backbone: Another place of an adapter's backbone; or one that is loaded already.
        device: Where to put the model.

    Returns:
        What answers; of a model without adapter `folder` is its name as a path.

    Raises:
        RunDirError: If a folder holds neither.
        ConfigError: If there is no such model, or the name is that of a built-in one and a folder.
        AdapterMismatch: If the backbone is not the one that the adapter was trained on.
    """
    if is_adapter(given):
        return open_adapter(Path(given), backbone, device)
    if not isinstance(backbone, Backbone):
        if backbone is not None:
            raise ConfigError(
                f"{given} is no adapter, and --backbone says where an adapter's model lies; leave "
                "out one of the two"
            )
        backbone = Backbone.load(given, device=device)
    return _bare(given, backbone)


def _bare(name: str, backbone: Backbone) -> SavedAdapter:
    return SavedAdapter(backbone, backbone.model, make_method("zeroshot", {}), folder=Path(name))


def is_adapter(given: str) -> bool:
    """Tell an adapter from a model without one; what is neither is refused as `open_model` says."""
    refuse_two_meanings(given)
    path = Path(given)
    try:
        find_adapter(path)
    except RunDirError as error:
        if path.is_dir() and not (path / "config.json").is_file() and given not in BUILT_IN:
            raise RunDirError(f"{error}; it is no model either (no config.json)") from error
        try:
            source(given)
        except ConfigError as other:
            raise ConfigError(f"{given} is no adapter's folder, and no model: {other}") from other
        return False
    return True


def open_several(
    names: Sequence[str], backbone: str | None = None, device: str = "auto"
) -> list[SavedAdapter]:
    """Open several to be asked side by side; the weights of a model that they share are kept once.

    Args:
        names: As `open_model` takes them; `BASE` is the model of the first, without adapter.
        backbone: Another place of the adapters' model.
        device: Where to put the models.

    Returns:
        What answers, in their order.
    """
    loaded: dict[tuple[str, ...], Backbone] = {}
    opened: list[SavedAdapter] = []
    for name in names:
        place, dtype, quantize = _base_of(names[0] if name == BASE else name, backbone)
        base = (source(place), dtype, quantize)
        if base not in loaded:
            loaded[base] = Backbone.load(place, dtype, device, quantize)
        own = twin(loaded[base])
        opened.append(_bare(place, own) if name == BASE else open_model(name, own))
    return opened


def _base_of(name: str, backbone: str | None) -> tuple[str, str, Quantize]:
    """Say which model answers, in which dtype, and how it is quantised."""
    if not is_adapter(name):
        return name, "auto", "none"
    folder = find_adapter(Path(name))
    origin = origin_of(folder)
    if not origin and backbone is None:
        raise ConfigError(
            f"{folder} does not say which backbone it belongs to: name it with --backbone"
        )
    place = backbone or located(origin["backbone"], origin.get("backbone_folder"))
    return place, origin.get("dtype", "auto"), origin.get("quantize", "none")


def twin(backbone: Backbone) -> Backbone:
    """Return a backbone whose modules are its own, and whose weights are those of another.

    Args:
        backbone: The other, without adapters.

    Returns:
        The twin: adapters that are put on one do not change what the other answers.
    """
    tensors = [*backbone.model.parameters(), *backbone.model.buffers()]
    model = copy.deepcopy(backbone.model, {id(tensor): tensor for tensor in tensors})
    return replace(backbone, model=model)


def task_number(adapter: SavedAdapter, task: str | None) -> int | None:
    """Return the number of a task that an adapter has learned, from 1; None of no task.

    Args:
        adapter: From `open_model`.
        task: The task's name, if one is named.

    Returns:
        Its number.

    Raises:
        UnknownName: If the adapter has not learned it.
    """
    names = [note["name"] for note in adapter.origin.get("learned", ())]
    if task is None:
        return None
    if task not in names:
        raise unknown("task", task, names)
    return names.index(task) + 1


def answer_length(adapter: SavedAdapter, task: str | None = None) -> int:
    """Return how long an answer may get, in tokens.

    Args:
        adapter: From `open_model`.
        task: A task that it has learned.

    Returns:
        The length of that task's answers; without a task the longest of what was learned, and
        `LONGEST` where nothing was.

    Raises:
        UnknownName: If the adapter has not learned that task.
        ConfigError: If the adapter's record does not say it.
    """
    number = task_number(adapter, task)
    notes = adapter.origin.get("learned", ())
    lengths = [note.get("max_new_tokens") for note in notes]
    if number is None:
        return max((length for length in lengths if length), default=LONGEST)
    if lengths[number - 1] is None:
        raise ConfigError(
            f"an older undrift has saved {adapter.folder}, without the length of the answers of "
            f"{task!r}; give it with --max-new-tokens"
        )
    return lengths[number - 1]


def answer_all(
    adapter: SavedAdapter,
    questions: Sequence[Example],
    max_new_tokens: int,
    batch_size: int = 32,
    progress: Progress | None = None,
    *,
    task: str | None = None,
    skip_bad: bool = False,
) -> list[dict[str, str]]:
    """Answer questions.

    Args:
        adapter: From `open_model`.
        questions: Such as those of `undrift.data.questions`.
        max_new_tokens: Longest answer.
        batch_size: Prompts at a time.
        progress: Told about every batch.
        task: The learned task that they belong to, for the methods that can be told.
        skip_bad: Leave out, and tell, the questions that cannot be asked.

    Returns:
        id, question and answer of each, in their order.

    Raises:
        DataError: If there are none, or if a picture or a text cannot be used.
        UnknownName: If the adapter has not learned that task.
    """
    number, progress = task_number(adapter, task), progress or Progress()
    if not questions:
        raise DataError("there is no question to answer")
    asked = Task("questions", tuple(questions), (), tuple(questions), "exact", max_new_tokens)
    (good,), bad = without_bad([asked], progress, adapter.backbone)
    bad = [each for each in bad if "test example" in each.where]  # and not once more as `train`
    if bad and not skip_bad:
        where = bad[0].where.rpartition(" ")[2]
        raise DataError(
            f"the question {where!r} cannot be asked: {bad[0].reason}; mend it, or leave out what "
            "cannot be used with --skip-bad"
        )
    for each in bad:
        where = f"question {each.where.rpartition(' ')[2]!r}"
        text = f"left out: {where}: {each.reason}"
        progress.event("skipped", text, where=where, reason=each.reason)
    adapter.backbone.prepare([picture for each in good.test for picture in each.images])
    progress.plan(len(good.test))
    session = Session(adapter.backbone, adapter.model, adapter.method, progress, batch_size)
    progress.stage("answering", len(good.test), len(good.test))
    encoded = session.collator.encode(good.test, answered=False)
    with session.method.predicting(session.model, task=number):
        said = dict(answers(session, encoded, max_new_tokens))
    return [{"id": e.id, "question": e.question, "answer": said[e.id]} for e in good.test]
