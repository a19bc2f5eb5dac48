"""Adapters that a run has saved: the record beside them, finding one, opening it again."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveInt, TypeAdapter

from undrift.errors import AdapterMismatch, ConfigError, RunDirError, UndriftError
from undrift.methods.base import Method
from undrift.methods.shared.adapter import put_on
from undrift.methods.shared.budget import check_fits
from undrift.methods.shared.model_card import write_card
from undrift.methods.shared.projector import restore_modules
from undrift.run.backbone import Backbone
from undrift.run.config import RunConfig, load_yaml, located
from undrift.run.load_model import BUILT_IN
from undrift.run.session import Session, make_method
from undrift.rundir import read_record, write_json
from undrift.rundir.paths import LearnDir
from undrift.rundir.records import Name, Origin, Place, Record, check

_ORIGIN = "undrift.json"
_PEFT = "adapter_config.json"
_DEFAULTS_THEN = {"same": {"lambda_par": 0.1, "mu": 0.1}, "nearlora": {"rank": 8}}
"""What has another default now, of adapters that do not say all of their options."""
_MANY = 20  # folders that are looked into for a message


def note_origin(
    folder: Path,
    config: RunConfig,
    method: Method,
    backbone: Backbone,
    after: int,
    learned: Sequence[Mapping[str, Any]],
    changes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write beside an adapter what is needed to open it again, and to go on learning.

    Args:
        folder: The adapter's folder.
        config: The run.
        method: What has learned it.
        backbone: What the adapter belongs to.
        after: How many tasks it has learned.
        learned: A note of each task, see `undrift.run.learned_tasks`.
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
        "settings": asdict(method.config),
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
class SavedAdapter(Session):
    """A session with an adapter that was opened again, ready to answer.

    Args:
        folder: The adapter's folder.
        origin: What was written beside the adapter; nothing if a user's own trainer saved it.
    """

    folder: Path = Path()
    origin: Mapping[str, Any] = field(default_factory=dict)


def open_adapter(
    path: Path, backbone: str | Backbone | None = None, device: str = "auto"
) -> SavedAdapter:
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
    method = make_method(origin["method"], origin["options"], origin.get("settings", {}))
    check_fits(method, backbone.model, folder)
    backbone.encode_with(getattr(method.config, "encoder", None))
    model: Any = method.attach(backbone.model)
    if method.needs_training:
        restore_modules(model, folder)
    method.load_state(model, folder)
    model.eval()
    return SavedAdapter(backbone, model, method, folder=folder, origin=origin)


def _open_foreign(folder: Path, backbone: str | Backbone | None, device: str) -> SavedAdapter:
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
    return SavedAdapter(backbone, model, make_method("zeroshot", {}), folder=folder)


def origin_of(folder: Path) -> dict[str, Any]:
    """Read what `note_origin` wrote; nothing if the adapter was not saved by a run."""
    file = folder / _ORIGIN
    found = read_record(file, Origin) if file.exists() else {}
    if "settings" not in found and found.get("method") in _DEFAULTS_THEN:
        found["settings"] = _DEFAULTS_THEN[found["method"]]
    return found


class _Taught(Record):
    name: Name


class _TrainFile(Record):
    file: Place


class _Guard(Record):
    name: Name
    test: Place
    images: Place
    scorer: str
    max_new_tokens: PositiveInt
    booleans: str = ""
    skip_bad: bool


class Lesson(Record):
    """learn.yaml of `undrift learn`: what was asked for.

    Attributes:
        start: The adapter or model that was gone on from; in YAML it is called `from`.
        task: What is learned.
        train: Its training rows; older ones do not say.
        without: Earlier tasks that are not asked.
        guards: Questions that are no task.
        run: The configuration, which `undrift.run.config` checks.
    """

    start: Place = Field(alias="from")
    task: _Taught
    train: _TrainFile | None = None
    without: list[str] = Field(default=[])
    guards: list[_Guard] = Field(default=[])
    run: dict[str, Any]


def lesson_of(files: LearnDir) -> dict[str, Any]:
    """Read what was asked of `undrift learn` in a folder.

    Args:
        files: The folder.

    Returns:
        The content of learn.yaml, without its format.

    Raises:
        ConfigError: If it is no YAML, or of a newer undrift.
        RunDirError: If something is missing in it, or is of another kind.
    """
    content = dict(load_yaml(files.config_file))
    try:
        check(files.config_file, content, TypeAdapter(Lesson))
    except RunDirError as error:
        said = str(error).rpartition("; ")[0]  # it cannot be deleted and made again
        raise RunDirError(
            f"{said}; get it from where {files.root} comes from, or learn the task again with "
            "--replace"
        ) from error
    return content


def start_before(adapter: Path, task: str) -> str | None:
    """Find what an adapter was before it learned one of its tasks.

    Args:
        adapter: Its folder, in that of a run or of `undrift learn`.
        task: The task.

    Returns:
        The adapter or model that the task was learned from; None if it is not there any more, or a
        record on the way to it cannot be read.
    """
    folder, seen = adapter.absolute(), set[Path]()
    while (folder / _ORIGIN).is_file() and folder not in seen:
        seen.add(folder)
        learned = [note["name"] for note in origin_of(folder).get("learned", ())]
        if (folder.parent / LearnDir.config_name).is_file():
            try:
                came_from = str(lesson_of(LearnDir(folder.parent))["from"])
            except UndriftError:  # whoever asks has something else to say
                return None
        else:  # in a run
            number = len(learned) - 1
            earlier = sorted(folder.parents[1].glob(f"{number:02d}-*/adapter"))
            came_from = str(earlier[0]) if earlier else origin_of(folder)["backbone"]
        if learned[-1:] == [task]:
            return came_from
        folder = Path(came_from)
    return None


def refuse_two_meanings(given: str) -> None:
    """Refuse a name of a built-in backbone that a folder with a model or an adapter has as well.

    Args:
        given: What was typed for a model or an adapter.

    Raises:
        ConfigError: If both are there; the message says how to name the folder.
    """
    folder = Path(given)
    if given not in BUILT_IN or not folder.is_dir():
        return
    try:
        find_adapter(folder)
    except RunDirError:
        if not (folder / "config.json").is_file():
            return
    raise ConfigError(
        f"{given} is a backbone that undrift knows, and a folder here with a model or an adapter; "
        f"give ./{given} for the folder, or call undrift from elsewhere for the backbone"
    )


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
    raise RunDirError(f"{path} holds no adapter (no {_PEFT}); {_near(path)}")


def _near(path: Path) -> str:
    """Say where there is an adapter, if one lies near."""
    if path.is_file() and (path.parent / _PEFT).is_file():
        return f"give the folder that it lies in: {path.parent}"
    here = next((each for each in (path, *path.absolute().parents) if each.is_dir()), Path())
    patterns = (f"*/{_PEFT}", f"*/adapter/{_PEFT}", f"*/*/adapter/{_PEFT}")
    found = (file.parent for pattern in patterns for file in islice(here.glob(pattern), _MANY))
    named = sorted({str(each.parent if each.name == "adapter" else each) for each in found})[:3]
    if named:
        return f"there is one in {', one in '.join(named)}"
    return (
        "give the folder of a run, such as runs/pocket-same-s0, one of its tasks/*/adapter, or an "
        "adapter saved by PEFT"
    )
