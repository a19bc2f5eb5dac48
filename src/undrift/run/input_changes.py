"""What a run was begun with: resumed with other rows, pictures, weights or settings, it says so.

ROOT/data.json keeps a digest of every row that is learned or asked, of the content of every picture
and of every file of the adapter, or of the remembered base, that is gone on from. A file is read
again only if its size or one of its times is another than then; whatever is written changes the
last of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from undrift.data.types import Example, Task
from undrift.errors import RunDirError
from undrift.run.backbone import Backbone
from undrift.run.config import RunConfig
from undrift.run.progress import Progress
from undrift.rundir import RunDir, read_record, write_json
from undrift.rundir.files import remove
from undrift.rundir.paths import settings_of
from undrift.rundir.records import LEARNED_FROM, Begun, Change, Manifest

ADAPTER, REMEMBERED = LEARNED_FROM, "what is remembered of the base"
_PLACES = ("backbone_folder",)
_SIZES = ("train.global_batch", "train.batch_size", "train.accumulation")
_SAME_STEPS = (
    *_SIZES,
    *("train.checkpoint_steps", "train.log_steps", "train.activation_checkpointing"),
    "eval.batch_size",
)
"""What changes no step, as long as a step takes as many examples."""
_NAMED = 3  # rows and files that a message names
_DIGITS = 16
_AT_ONCE = 256  # files a round

Rows = Mapping[str, Sequence[str]]
"""By its id, the digest of a row's texts, then that of each of its pictures."""


class Inputs:
    """The rows, pictures and weights of a run, and what has become of them since it was begun.

    Args:
        files: The run's folder, its configuration written.
        splits: What is learned and what is asked, by a name such as "digits, train".
        base: Where the backbone comes from; files are looked at if it is a folder.
        folders: What is gone on from, the folder of ADAPTER or of REMEMBERED.
        force: Go on although something has changed.
        progress: Told about pictures that are read, and what was gone on with.
        keep: Write down what is new; without, changes are refused all the same.

    Attributes:
        force: As given.
        changes: What has changed since the run was begun, and was gone on with.

    Raises:
        RunDirError: If rows, pictures or files of a folder have changed, without `force`.
    """

    def __init__(
        self,
        files: RunDir,
        splits: Mapping[str, Sequence[Example]],
        base: str | None = None,
        folders: Mapping[str, Path] = MappingProxyType({}),
        *,
        force: bool = False,
        progress: Progress | None = None,
        keep: bool = True,
    ) -> None:
        self._files, self.force, self._progress = files, force, progress or Progress()
        self._file = files.root / "data.json"
        before = read_record(self._file, Begun) if self._file.is_file() else None
        manifest = self._manifest()
        self.changes: list[Mapping[str, Any]] = list(manifest.get("changes", ()))
        self._base = _looks(Path(base)) if base is not None and Path(base).is_dir() else {}
        known = before["files"] if before else {}
        self._now, paths = digests(splits, folders, known, self._progress)
        self._told = False
        self._settle_settings()
        if before is not None:
            found = differences(before["rows"], self._now["rows"], paths)
            said = [_summary(rows, found) for rows in (before["rows"], self._now["rows"])]
            self._settle("data", [line for lines in found.values() for line in lines], *said)
            self._told = bool(found)
        elif manifest:
            text = "begun by an older undrift: changes of rows and pictures since cannot be told"
            self._progress.event("begun", text)
        if len(self.changes) > len(manifest.get("changes", ())) and manifest:
            write_json(files.manifest_file, {**manifest, "changes": self.changes})
        if files.asked_anew is not None:
            files.write_config(files.asked_anew)
        self._now["base"] = before["base"] if before else self._base
        if keep and (self._told or self._now != before):  # an order is no part of that comparison
            write_json(self._file, self._now)

    def enter(self, content: dict[str, Any], before: Mapping[str, Any] | None = None) -> None:
        """Compare a new manifest with the one that is there, and write all changes into the new.

        Args:
            content: The new one.
            before: What is taken for the old one if none is there.

        Raises:
            RunDirError: If data or weights are others, without `force`.
        """
        there = self._manifest() or before or {}
        for part in ("data", "weights"):
            if part not in content or (part == "data" and self._told):
                continue
            is_now = content[part]["fingerprint"]
            was = (there.get(part) or content[part])["fingerprint"]
            if was != is_now:
                line = f"fingerprint {was[:12]} then, {is_now[:12]} now"
                line += " (give its own with --backbone DIR)" if part == "weights" else ""
                self._settle(part, [line], {"fingerprint": was}, {"fingerprint": is_now})
        if self.changes:
            content["changes"] = self.changes
        if self._now["base"] != self._base:
            self._now["base"] = self._base
            write_json(self._file, self._now)

    def check_base(self, config: RunConfig, backbone: Backbone | None = None) -> None:
        """Compare the backbone of a finished run as well, if its files were written since.

        Args:
            config: The run.
            backbone: Its backbone, where it is loaded already.

        Raises:
            RunDirError: If it is another backbone, without `force`.
        """
        if self._now["base"] != self._base:
            content = self._manifest()
            backbone = backbone or Backbone.load_for(config)
            self.enter(content | {"weights": {"fingerprint": backbone.fingerprint}})
            if self.changes:
                write_json(self._files.manifest_file, {**content, "changes": self.changes})

    def _manifest(self) -> dict[str, Any]:
        there = self._files.manifest_file
        return read_record(there, Manifest) if there.is_file() else {}

    def _settle_settings(self) -> None:
        """Take note of other settings of the training, which the folder lets pass by force only.

        A task that is half learned begins again, unless its steps are the same with them.
        """
        if self._files.asked_anew is None:
            return
        was, is_now = map(settings_of, (self._files.config_text(), self._files.asked_anew))
        names = [n for n in {**was, **is_now} if was.get(n) != is_now.get(n) and n not in _PLACES]
        before, after = ({n: each.get(n, "not given") for n in names} for each in (was, is_now))
        told = [f"{name} {before[name]} then, {after[name]} now" for name in names]
        if _step(was) != _step(is_now) or any(n not in _SAME_STEPS for n in names):
            for half in self._files.snapshots():
                remove(half)
                told.append(f"what was half learned in {half} begins again")
        self._settle("settings", told, before, after)

    def _settle(self, part: str, told: Sequence[str], before: Any, now: Any) -> None:
        """Refuse to go on, or take note."""
        if not told:
            return
        if not self.force:
            raise RunDirError(
                f"the {part} of the run in {self._files.root} were others when it was begun: "
                f"{'; '.join(told)}; put them back, or go on all the same with --force "
                "(manifest.json and the adapter's record will tell), or begin again with "
                "--replace or in another folder with --out"
            )
        root = self._files.root
        adapters = (*root.glob("tasks/*/adapter"), root / "adapter")
        change = Change(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            what=[f"{part}: {line}" for line in told],
            before=before,
            after=now,
            learned_before=sorted(str(p.relative_to(root)) for p in adapters if p.is_dir()),
        )
        self.changes.append(change.model_dump())
        text = f"going on, though the {part} have changed since it was begun: {'; '.join(told)}"
        self._progress.event("changed", text, what=change.what)


def _step(settings: Mapping[str, str]) -> int:
    """Say how many examples a step takes."""
    whole, most, pieces = (settings.get(name) for name in _SIZES)
    return int(whole or int(most or 0) * int(pieces or 1))


def digests(
    splits: Mapping[str, Sequence[Example]],
    folders: Mapping[str, Path] = MappingProxyType({}),
    known: Mapping[str, Sequence[Any]] = MappingProxyType({}),
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Mapping[str, Path]]:
    """Digest what is learned, what is asked and what is gone on from.

    Args:
        splits: Examples by a name, see `splits_of`.
        folders: What is gone on from, the folder of ADAPTER or of REMEMBERED.
        known: Sizes, times and digests of files, which are not read again if they look so still.
        progress: Told about pictures that are read.

    Returns:
        `rows` and `files` as in data.json, and which path stands for which digest of a picture.
    """
    parts = {
        name: sorted(p for p in folder.iterdir() if p.is_file()) for name, folder in folders.items()
    }
    pictures = dict.fromkeys(p for split in splits.values() for e in split for p in e.images)
    listed = [path for paths in parts.values() for path in paths]
    files = _contents([*listed, *pictures], known, progress or Progress())
    rows: dict[str, Rows] = {
        name: {e.id: [_texts(e), *(str(files[str(p)][-1]) for p in e.images)] for e in split}
        for name, split in splits.items()
    }
    for name, own in parts.items():
        rows[name] = {path.name: [str(files[str(path)][-1])] for path in own}
    paths = {str(files[str(path)][-1]): path for path in pictures}
    return {"rows": rows, "files": files}, paths


def _contents(
    paths: Sequence[Path], known: Mapping[str, Sequence[Any]], progress: Progress
) -> dict[str, list[Any]]:
    """Return size, times and digest of files; those that look as they did are not read."""
    found = {str(path): [*look(path), ""] for path in paths}
    for key, there in found.items():
        if list(known.get(key, ()))[:-1] == there[:-1] != []:
            there[-1] = known[key][-1]
    unread = [key for key, there in found.items() if not there[-1]]
    many = len(unread) > _AT_ONCE
    if many:
        progress.stage("looking at pictures", len(unread))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 32)) as pool:
        for start in range(0, len(unread), _AT_ONCE):
            part = unread[start : start + _AT_ONCE]
            for key, digest in zip(part, pool.map(_content, part), strict=True):
                found[key][-1] = digest
            if many:
                progress.advance(len(part))
    return found


def splits_of(tasks: Sequence[Task], asked: Sequence[Task] = ()) -> Mapping[str, Sequence[Example]]:
    """Name what is learned and what is asked.

    Args:
        tasks: What is learned, and asked.
        asked: What is asked only.

    Returns:
        Examples by a name such as "digits, train".
    """
    learned = {f"{task.name}, train": task.train for task in tasks}
    return learned | {f"{task.name}, test": task.test for task in (*tasks, *asked)}


def _texts(example: Example) -> str:
    names = [path.name for path in example.images]
    system = [example.system] if example.system else []
    return _digest(json.dumps([example.question, example.answers, names, *system]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _content(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
    except OSError:
        return "unreadable"


def look(path: Path) -> list[int]:
    """Size and times of a file; nothing if it is not there."""
    try:
        about = path.stat()
    except OSError:
        return []
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def _looks(folder: Path) -> dict[str, list[int]]:
    return {path.name: look(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _summary(rows: Mapping[str, Rows], found: Mapping[str, Any]) -> dict[str, Any]:
    """Say in few words what the splits that differ held."""
    return {
        name: {"rows": len(rows[name]), "digest": _digest(json.dumps(list(rows[name].items())))}
        for name in found
        if name in rows
    }


def differences(
    before: Mapping[str, Rows], now: Mapping[str, Rows], paths: Mapping[str, Path]
) -> dict[str, list[str]]:
    """Say what differs between rows then and rows now.

    Args:
        before: Their digests then, by split.
        now: Their digests now, by split.
        paths: By its digest, the path of a picture that is there now.

    Returns:
        Lines of text, by split.
    """
    found = {}
    for name in dict.fromkeys([*before, *now]):
        was, is_now = before.get(name, {}), now.get(name, {})
        lines = list(_of_rows(name, was, is_now))
        pictures = dict.fromkeys(
            str(paths.get(new, new))
            for key, (text, *shown) in was.items()
            if key in is_now and is_now[key][0] == text
            for old, new in zip(shown, is_now[key][1:], strict=True)
            if old != new
        )
        if pictures:
            count = f"{len(pictures)} picture{'s' * (len(pictures) > 1)}"
            lines.append(f"{name}: other content in {count} ({_few(list(pictures))})")
        if lines:
            found[name] = lines
    return found


def _of_rows(name: str, was: Rows, is_now: Rows) -> Iterator[str]:
    changes = {
        "changed": [key for key in was if key in is_now and was[key][0] != is_now[key][0]],
        "added": [key for key in is_now if key not in was],
        "removed": [key for key in was if key not in is_now],
    }
    said = [f"{len(keys)} {how} ({_few(keys)})" for how, keys in changes.items() if keys]
    if not said and list(was) != list(is_now):
        said = ["in another order"]
    if said:
        kind = "files" if name in (ADAPTER, REMEMBERED) else "rows"
        yield f"{name}: {len(was)} {kind} then, {len(is_now)} now: {', '.join(said)}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
