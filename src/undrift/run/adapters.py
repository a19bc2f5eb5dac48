"""Methods by name, and adapters that a run has saved: opened again, asked, examined."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from undrift.data.types import Example, Task
from undrift.errors import AdapterMismatch, ConfigError, RunDirError, unknown
from undrift.methods.base import Method
from undrift.methods.shared.adapter import put_on
from undrift.methods.shared.budget import check_fits
from undrift.methods.shared.model_card import write_card
from undrift.methods.shared.projector import restore_modules
from undrift.registry import METHODS
from undrift.run.backbone import Backbone
from undrift.run.claimed import check_names, claim, digest
from undrift.run.config import RunConfig, located
from undrift.run.evaluate import Examiner
from undrift.run.generate import answers
from undrift.run.progress import Progress
from undrift.rundir import read_answers, read_record, write_json
from undrift.rundir.records import Origin
from undrift.scoring import mean_score, task_score

_ORIGIN = "undrift.json"
_PEFT = "adapter_config.json"

SCORES = ("strict", "caseless", "official", "lenient", "form")


def make_method(name: str, options: Mapping[str, Any]) -> Method:
    """Make a method.

    Args:
        name: Such as "same", or "same-paper" for one of its settings.
        options: Its options.

    Returns:
        The method.

    Raises:
        UnknownName: If there is no such method, setting or option.
        ConfigError: If an option has a value that cannot be used.
    """
    stem, setting = METHODS.split(name)
    made: type[Method] = METHODS.load(stem)
    known = [f"method.{field.name}" for field in fields(made.Config)]
    kinds = get_type_hints(made.Config)
    for key, value in options.items():
        if f"method.{key}" not in known:
            raise unknown("key", f"method.{key}", known)
        try:
            TypeAdapter(kinds[key]).validate_json(json.dumps(value), strict=True)
        except (ValidationError, TypeError, ValueError) as error:
            expected = getattr(kinds[key], "__name__", kinds[key])
            raise ConfigError(f"method.{key}: expected {expected} (got {value!r})") from error
    return made(setting, **options)


def note_origin(
    folder: Path,
    config: RunConfig,
    backbone: Backbone,
    after: int,
    learned: Sequence[Mapping[str, Any]],
    changes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write beside an adapter what is needed to open it again, and to go on learning.

    Args:
        folder: The adapter's folder.
        config: The run.
        backbone: What the adapter belongs to.
        after: How many tasks it has learned.
        learned: A note of each task, see `undrift.run.learned`.
        changes: What has changed while it was made, see `undrift.run.input_changes`.
    """
    content = {
        "backbone": config.backbone,
        "backbone_folder": config.backbone_folder and str(config.backbone_folder),
        "fingerprint": backbone.fingerprint,
        "dtype": config.dtype,
        "quantize": config.quantize,
        "method": config.method.name,
        "options": config.method.options,
        "benchmark": config.benchmark,
        "after": after,
        "learned": list(learned),
        "run": yaml.safe_load(config.text()),
    }
    if changes:
        content["changes"] = list(changes)
    write_json(folder / _ORIGIN, content)
    write_card(folder)  # once more: it names the tasks


@dataclass
class Learned:
    """An adapter on its backbone, ready to answer.

    Args:
        folder: The adapter's folder.
        backbone: The backbone.
        model: The model with the adapter, in evaluation mode.
        method: The method that made it.
        origin: What was written beside the adapter.
    """

    folder: Path
    backbone: Backbone
    model: Any
    method: Method
    origin: Mapping[str, Any]


def open_adapter(
    path: Path, backbone: str | Backbone | None = None, device: str = "auto"
) -> Learned:
    """Open an adapter that a run has saved.

    Args:
        path: An adapter's folder, a task's, or a run's (its last adapter).
        backbone: Another place of the same backbone, such as a local copy; needed for an adapter
            that a user's own trainer has saved.
        device: Where to put the model.

    Returns:
        The adapter on its backbone.

    Raises:
        RunDirError: If there is no adapter.
        ConfigError: If the backbone is not known.
        AdapterMismatch: If the backbone is not the one that the adapter was trained on.
    """
    folder = find_adapter(path)
    if not (folder / _ORIGIN).is_file():
        return _open_foreign(folder, backbone, device)
    origin = origin_of(folder)
    if not isinstance(backbone, Backbone):
        quantize = origin.get("quantize", "none")  # an older adapter does not say
        place = backbone or located(origin["backbone"], origin.get("backbone_folder"))
        backbone = Backbone.load(place, origin["dtype"], device, quantize)
    if backbone.fingerprint != origin["fingerprint"]:
        raise AdapterMismatch(
            f"the adapter in {folder} was trained on the backbone {origin['backbone']!r} "
            f"({origin['fingerprint'][:12]}), and {backbone.name!r} is another one "
            f"({backbone.fingerprint[:12]}); give its own with --backbone"
        )
    method = make_method(origin["method"], origin["options"])
    check_fits(method, backbone.model, folder)
    backbone.encode_with(getattr(method.config, "encoder", None))
    model: Any = method.attach(backbone.model)
    if method.needs_training:
        restore_modules(model, folder)
    method.load_state(model, folder)
    model.eval()
    return Learned(folder, backbone, model, method, origin)


def _open_foreign(folder: Path, backbone: str | Backbone | None, device: str) -> Learned:
    """Open an adapter that a user's own trainer has saved: PEFT's files, and nothing of ours."""
    if backbone is None:
        raise ConfigError(
            f"{folder} does not say which backbone it belongs to (no {_ORIGIN}: it was not saved "
            "by `undrift run`); name it with --backbone"
        )
    if not isinstance(backbone, Backbone):
        backbone = Backbone.load(backbone, device=device)
    for tuner in ("moe_lora", "pool_lora", "soft_prompt"):  # each tells PEFT about its type
        importlib.import_module(f"undrift.tuner.{tuner}")
    try:
        model = put_on(backbone.model, folder).eval()
    except (RuntimeError, ValueError) as error:
        raise AdapterMismatch(f"{folder} does not fit {backbone.name!r}: {error}") from error
    return Learned(folder, backbone, model, make_method("zeroshot", {}), {})


def origin_of(folder: Path) -> dict[str, Any]:
    """Read what `note_origin` wrote.

    Args:
        folder: An adapter's folder, from `find_adapter`.

    Returns:
        backbone, fingerprint, dtype, quantize, method, options, benchmark, after, learned, run;
        nothing if the adapter was not saved by a run.
    """
    file = folder / _ORIGIN
    return read_record(file, Origin) if file.exists() else {}


def find_adapter(path: Path) -> Path:
    """Find the adapter meant by a folder.

    Args:
        path: An adapter's folder, a task's, or a run's.

    Returns:
        The adapter's folder; of a run, that of the last task learned.

    Raises:
        RunDirError: If there is none.
    """
    candidates = [path, path / "adapter", *sorted(path.glob("tasks/*/adapter"), reverse=True)]
    for folder in candidates:
        if (folder / _PEFT).is_file():
            return folder
    raise RunDirError(
        f"{path} holds no adapter (no {_PEFT}); give the folder of a run, such as "
        "runs/pocket-same-s0, one of its tasks/*/adapter, or an adapter saved by PEFT"
    )


def ask(
    learned: Learned, question: str, images: tuple[Path, ...] = (), max_new_tokens: int = 32
) -> str:
    """Ask one question.

    Args:
        learned: From `open_adapter`.
        question: The question, its format line included.
        images: Pictures it is about.
        max_new_tokens: Longest answer.

    Returns:
        The answer.
    """
    collator = learned.backbone.collator()
    asked = Example("question", question, ("unknown",), images)
    encoded = collator.encode([asked], answered=False)
    with learned.method.predicting(learned.model):
        stream = answers(
            learned.backbone, learned.model, collator, encoded, max_new_tokens, batch_size=1
        )
        return next(text for _, text in stream)


def examine(
    learned: Learned,
    tasks: Sequence[Task],
    out: Path | None,
    batch_size: int,
    progress: Progress,
    scoring: str = "coin",
) -> dict[str, dict[str, float | None]]:
    """Put test questions to an adapter.

    Args:
        learned: From `open_adapter`.
        tasks: What is asked.
        out: Where predictions are kept, one file a task; nowhere if not given. An examination of
            the same adapter that was cut off there goes on.
        batch_size: Prompts at a time.
        progress: Told about every batch.
        scoring: The profile that decides what is strict, see `undrift.scoring.PROFILES`.

    Returns:
        The scores of each task by the names in SCORES, in percent; None where it has none.
    """
    examples = [example for task in tasks for example in task.test]
    learned.backbone.prepare([picture for e in examples for picture in e.images])
    progress.plan(len(examples))
    collator = learned.backbone.collator()
    examiner = Examiner(learned.backbone, learned.model, collator, batch_size, progress, scoring)
    asked = [task.name for task in tasks]
    if out is None:
        check_names(asked)
    else:
        claim(out, asked, digest(learned.folder, learned.backbone.fingerprint))
    scores = {}
    names = [note["name"] for note in learned.origin.get("learned", ())]
    with tempfile.TemporaryDirectory() as temporary:
        for task in tasks:
            file = (out or Path(temporary)) / f"{task.name}.jsonl"
            file.unlink(missing_ok=True)
            number = names.index(task.name) + 1 if task.name in names else None
            with learned.method.predicting(learned.model, task=number):
                examiner.cell(task, file, f"asking {task.name}", len(task.test))
            rows = read_answers(file)
            means = {key: mean_score(rows, key) for key in SCORES}
            scores[task.name] = {**means, "strict": task_score(rows)}
    return scores


def options(method: str) -> dict[str, Any]:
    """Return a method's learning rate, its options with their defaults, and its settings' names.

    Args:
        method: Its name.

    Returns:
        By option.
    """
    made: type[Method] = METHODS.load(method)
    own = {"learning_rate": made.learning_rate, **asdict(made().config)}
    return own | ({"(settings)": ", ".join(made.settings)} if made.settings else {})
