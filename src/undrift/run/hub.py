"""An adapter on the Hugging Face Hub: what is sent, and that nothing else is.

Sent are the adapter's weights, its configuration, records and card. No test question, answer,
picture or prediction is, and the records are sent without the folders of this machine: a path
becomes its last part. The questions that were kept go along where that is asked for.
"""

from __future__ import annotations

import json
import ntpath
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from undrift.errors import ConfigError, RunDirError, first_line
from undrift.methods.shared.model_card import MethodState, is_ours, write_card
from undrift.registry import METHODS
from undrift.run.adapters import origin_of
from undrift.run.kept_tests import TESTS
from undrift.rundir import atomic_write, read_json, read_record
from undrift.rundir.files import SNAPSHOT, parsed, temporary_folder, text_of

_CARD = "README.md"
_RECORDS = ("adapter_config.json", "undrift.json", "undrift_state.json")
_LEFT_OUT = ("seen_from_here",)


@contextmanager
def to_send(adapter: Path, *, with_tests: bool = False) -> Generator[Path]:
    """Yield a folder with exactly what is sent of an adapter.

    Args:
        adapter: The adapter's folder.
        with_tests: Add the test questions that were kept beside it, with their pictures.

    Yields:
        The folder, which is gone afterwards.

    Raises:
        ConfigError: If the adapter itself holds examples, and `with_tests` was not given.
    """
    method = origin_of(adapter).get("method", "")
    keeps = method in METHODS.names() and METHODS.load(method).keeps_examples
    if keeps and not with_tests:
        raise ConfigError(
            f"the adapter in {adapter} holds examples that it was trained on, as {method!r} does; "
            "--with-tests sends them with it"
        )
    with temporary_folder() as folder:
        for file in _files(adapter):
            there = folder / file.relative_to(adapter)
            there.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".json":
                content = parsed(file, text_of(file))
                atomic_write(there, json.dumps(_without_places(content), indent=1) + "\n")
            else:
                shutil.copyfile(file, there)
        if is_ours(folder):  # one of an older undrift may name the folder of the base
            base = str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path"))
            card = folder / _CARD
            if not card.exists() or (Path(base).is_absolute() and base in text_of(card)):
                write_card(folder)
        if with_tests and (tests := adapter.absolute().parent / TESTS).is_dir():
            shutil.copytree(tests, folder / TESTS)
        yield folder


def not_sent(adapter: Path) -> list[str]:
    """Name what lies in an adapter's folder and is not sent.

    Args:
        adapter: The adapter's folder.

    Returns:
        The names, sorted.
    """
    sent = set(_files(adapter))
    there = (path for path in adapter.rglob("*") if path.is_file() and path not in sent)
    return sorted(path.relative_to(adapter).as_posix() for path in there)


def push(folder: Path, repo: str, *, public: bool = False) -> str:
    """Send a folder to the Hub.

    Args:
        folder: From `to_send`.
        repo: Such as "me/invoices-v2"; made if it is not there.
        public: Whether everybody may see a repository that is made.

    Returns:
        The address of what was sent.

    Raises:
        RunDirError: If the Hub cannot be reached or does not take it.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise RunDirError(
            f"cannot send to {repo}: {first_line(error)}; log in with `hf auth login`, see that "
            "HF_HUB_OFFLINE is not set, and send again"
        ) from error


def check_repo(repo: str) -> None:
    """Refuse what cannot be a repository of one's own.

    Args:
        repo: As typed.

    Raises:
        ConfigError: If it is none.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no repository's name: {first_line(error)}") from error
    if "/" not in repo:
        raise ConfigError(f"{repo!r}: expected your name and the repository's, such as me/{repo}")


def _files(adapter: Path) -> Iterator[Path]:
    """List the weights, records and card of an adapter, and the files that its record names."""
    record = adapter / "undrift_state.json"
    state = read_record(record, MethodState) if record.is_file() else {}
    named = {*_RECORDS, _CARD, *state.get("files", ())}
    for path in sorted(adapter.rglob("*")):
        place = path.relative_to(adapter)
        weights = path.suffix == ".safetensors" and len(place.parts) <= 2
        inner = len(place.parts) == 2 and path.name in _RECORDS
        if SNAPSHOT.fullmatch(
            place.as_posix().partition("/")[0]
        ):  # a trainer's, with its optimiser
            continue
        if path.is_file() and not path.is_symlink() and (weights or inner or str(place) in named):
            yield path


def _without_places(value: Any) -> Any:
    """Return a record without the folders of this machine."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in _LEFT_OUT}
        if {"what", "learned_before"} <= kept.keys():  # a change: it names rows and pictures
            kept["what"] = [str(line).partition(":")[0] for line in kept["what"]]
        return {key: _without_places(each) for key, each in kept.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    if isinstance(value, str) and (Path(value).is_absolute() or ntpath.splitdrive(value)[0]):
        return Path(value.replace("\\", "/")).name or "."
    return value
