"""The base remembered as task zero: from its own answers to prompts, or from its weights.

```
FOLDER/
├── remembered.json      where it comes from, of which base, which linears share a history
├── history.safetensors  the histories
└── answers.jsonl        the prompts with the base's own answers, where there were prompts
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undrift.core import Metrics
from undrift.core.moment import History
from undrift.data.collate import Encoded
from undrift.data.types import Example, Task
from undrift.errors import AdapterMismatch, ConfigError, DataError, RunDirError
from undrift.methods.base import Method
from undrift.methods.shared.history import HistoryMethod
from undrift.methods.shared.task_zero import TaskZero, of_inputs, of_weights
from undrift.methods.shared.tensor_files import load_tensors, save_tensors
from undrift.run.answer import answered
from undrift.run.backbone import Backbone
from undrift.run.config import RunConfig
from undrift.run.input_changes import REMEMBERED
from undrift.run.progress import Progress
from undrift.run.session import Session, make_method
from undrift.rundir import atomic_folder, read_record, write_json, write_lines
from undrift.rundir.records import Remembered
from undrift.tuner import find_targets

NONE, PROMPTS, WEIGHTS = "none", "prompts", "weights"
LENGTH = 32  # tokens of the base's answer to a prompt, at most
RECORD, HISTORY, ANSWERS = "remembered.json", "history.safetensors", "answers.jsonl"
_PARTS = tuple(field.name for field in fields(History))  # V and s first
_FILE = "general_prompts.txt"
_UNKNOWN = "(the base's own answer counts)"


def own_prompts() -> tuple[Example, ...]:
    """Return undrift's own prompts, text only; none of them is a question of a benchmark."""
    text = resources.files("undrift.data").joinpath(_FILE).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(Example(f"prompt-{i:03}", line, (_UNKNOWN,)) for i, line in enumerate(lines))


def check_remember(given: str, method: Method) -> None:
    """Refuse what cannot be remembered, before anything is loaded.

    Args:
        given: The setting `remember` of a run.
        method: The run's method.

    Raises:
        ConfigError: If the method keeps no history.
        RunDirError: If there is no such folder.
    """
    if given == NONE:
        return
    if not isinstance(method, HistoryMethod) or not getattr(method, "observes", True):
        raise ConfigError(
            f"remember: {method.name} keeps no history, as it is set; give --method same or "
            "steadylora, or leave out --remember"
        )
    if any(not (folder / RECORD).is_file() for folder in folder_given(given).values()):
        raise RunDirError(
            f"{given} holds no {RECORD}; give --remember a folder that `undrift remember` has "
            f"written, or {PROMPTS}, {WEIGHTS} or {NONE}"
        )


def folder_given(given: str) -> dict[str, Path]:
    """Name the folder that a run begins with, if the setting `remember` is one."""
    return {} if given in (NONE, PROMPTS, WEIGHTS) else {REMEMBERED: Path(given)}


def begin_with(
    config: RunConfig,
    method: Method,
    backbone: Backbone,
    folder: Path,
    prompts: Sequence[Example],
    progress: Progress,
) -> None:
    """Let a method's history begin with the base, as a run's setting `remember` says.

    Args:
        config: The run.
        method: Its method, not attached yet.
        backbone: The base, without adapters.
        folder: Where a run keeps what it remembers by itself.
        prompts: Those of the run's benchmark; undrift's own where there are none.
        progress: What is told meanwhile.

    Raises:
        AdapterMismatch: If a folder is of another base.
        ConfigError: If a folder was made for other linears.
    """
    if config.remember == NONE or not isinstance(method, HistoryMethod):
        return
    if own_folder := folder_given(config.remember).get(REMEMBERED):
        folder = own_folder
    elif not (folder / RECORD).is_file():
        asked = (prompts or own_prompts()) if config.remember == PROMPTS else ()
        own, batch = method.config, config.train.batch_size
        remember(backbone, asked, folder, progress, own, own.targets, batch)
    method.remember(read_task_zero(folder, backbone))


def remember(
    backbone: Backbone,
    prompts: Sequence[Example],
    folder: Path,
    progress: Progress,
    options: Metrics,
    targets: str | Sequence[str],
    batch_size: int = 16,
    max_new_tokens: int = LENGTH,
) -> dict[str, Any]:
    """Remember a base, and keep it.

    Args:
        backbone: The base, without adapters.
        prompts: What it is asked; its weights are remembered where there are none.
        folder: Where it is kept; what was there is replaced.
        progress: What is told meanwhile.
        options: How a history is kept.
        targets: Which linears, as `method.targets` says.
        batch_size: Examples at a time.
        max_new_tokens: How long its answers may get.

    Returns:
        The content of remembered.json.

    Raises:
        ConfigError: If it has answered nothing, is quantised, or has no such linears.
    """
    model, rows = backbone.model.eval(), list[dict[str, Any]]()
    find_targets(model, targets)  # what is nowhere is told before hundreds of prompts are answered
    if prompts:
        session = Session(backbone, model, make_method("zeroshot", {}), progress, batch_size)
        asked = tuple(replace(e, answers=e.answers or (_UNKNOWN,)) for e in prompts)
        task = Task("prompts", asked, (), asked, "exact", max_new_tokens)
        rows = answered(session, task, None, "what the base answers")
        said = {row["id"]: row["prediction"] for row in rows if row["prediction"].strip()}
        examples = [replace(e, answers=(said[e.id],)) for e in prompts if e.id in said]
        encoded = list(_readable(session, examples))
        if not encoded:
            raise ConfigError("the base answered no prompt with a word; give other prompts")
        if left := len(prompts) - len(encoded):
            text = f"{left} of {len(prompts)} prompts are left out: answered with nothing, or with "
            progress.event("left out", f"{text}what stands for a picture", left=left)
        progress.stage("remembering what the base reads", len(encoded))
        zero = of_inputs(model, targets, _losses(session, encoded, batch_size), options)
    else:
        with torch.no_grad():
            zero = of_weights(model, targets, options)
    owners = _shared(zero)
    content = {
        "source": PROMPTS if prompts else WEIGHTS,
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "prompts": len(prompts),
        "measured": zero.measured,
        "linears": owners,
    }
    with atomic_folder(folder) as temporary:
        if prompts:
            lines = [{"question": r["question"], "answer": r["prediction"]} for r in rows]
            write_lines(temporary / ANSWERS, lines)
        _save(zero, owners, temporary / HISTORY)
        write_json(temporary / RECORD, content)
    count = f"{len(prompts)} prompts" if prompts else "its weights"
    text = f"task zero: {len(owners)} linears of {backbone.name} remembered from {count}"
    progress.event("remembered", text, source=content["source"], prompts=len(prompts))
    return content


def read_task_zero(folder: Path, backbone: Backbone) -> TaskZero:
    """Read what is remembered of a base.

    Args:
        folder: As `remember` has written it.
        backbone: The base.

    Returns:
        The histories.

    Raises:
        AdapterMismatch: If it is of another base.
        RunDirError: If a file is damaged.
    """
    content = read_record(folder / RECORD, Remembered)
    if content["fingerprint"] != backbone.fingerprint:
        raise AdapterMismatch(
            f"{folder} remembers {content['backbone']!r} ({content['fingerprint'][:12]}), and this "
            f"base is {backbone.name!r} ({backbone.fingerprint[:12]}); run `undrift remember` again"
        )
    tensors, made = load_tensors(folder / HISTORY), dict[str, History]()
    for owner in set(content["linears"].values()):
        own = {name: tensors.get(f"{owner}.history_{name}") for name in _PARTS}
        shapes = [None if each is None else each.shape for each in own.values()]
        V = own["V"]
        if V is None or V.dim() != 2 or shapes != [V.shape, V.shape[1:], (), (), (), ()]:
            raise RunDirError(f"{folder / HISTORY} has no history of {owner}; remember it again")
        made[owner] = History(**own)  # pyright: ignore[reportArgumentType]
    histories = {name: made[owner] for name, owner in content["linears"].items()}
    return TaskZero(histories, content["measured"])


def _readable(session: Session, examples: Sequence[Example]) -> Iterator[Encoded]:
    """Encode prompts with the base's answers, but for answers that no model could be taught."""
    for example in examples:
        with suppress(DataError):  # not of the prompt: that was read before it was answered
            yield from session.collator.encode([example], answered=True)


def _losses(session: Session, encoded: Sequence[Encoded], size: int) -> Iterator[Tensor]:
    for start in range(0, len(encoded), size):
        part = encoded[start : start + size]
        with (
            torch.enable_grad(),
            session.backbone.reading(session.collator.collate(part)) as inputs,
        ):
            yield session.model(**inputs, use_cache=False).loss
        session.progress.advance(len(part))


def _shared(zero: TaskZero) -> dict[str, str]:
    """Name for every linear the one whose history it reads, itself or one with the same input."""
    owners: dict[int, str] = {}
    return {name: owners.setdefault(id(each.V), name) for name, each in zero.histories.items()}


def _save(zero: TaskZero, owners: dict[str, str], file: Path) -> None:
    tensors = {
        f"{owner}.history_{name}": getattr(zero.histories[owner], name)
        for owner in dict.fromkeys(owners.values())
        for name in _PARTS
    }
    save_tensors(tensors, file)
