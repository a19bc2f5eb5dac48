"""Files of ours: seen whole or not at all when written, read strictly, and what errors say of them.

What is written is on the disk before it counts: the content is synced, then the name is changed,
then the folder is synced. Every JSON object and every JSON line that undrift writes carries
`format: N`; a reader takes it off again, and refuses a number that it does not know. What another
reader could understand otherwise, such as a key that stands twice, is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from undrift.errors import RunDirError
from undrift.untrusted import NotJson, json_parser

FORMAT = 1
"""The format of every file that undrift writes. A reader takes this one and all before it."""

TEMPORARY = ".writing"
_REPLACED, _REMOVED = f".replaced{TEMPORARY}", f".removed{TEMPORARY}"
_LEFT = re.compile(
    r"(?P<name>.*)\.(?P<process>\d+)(-(?P<host>[0-9a-f]{4}(?=[0-9a-f]{8}\.))?[0-9a-f]+)?"
    rf"(?P<kind>|\.replaced|\.removed){re.escape(TEMPORARY)}"
)
_HALF = "half a character (U+D800 to U+DFFF)"
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:4]
_HOUR, _DAY = 3600.0, 86400.0  # seconds

NAME_RULE = (
    "a name is made of letters, digits, '_', '.' and '-', beginning with a letter or a digit, and "
    "is none that Windows keeps for devices"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
SNAPSHOT = re.compile(r"checkpoint-(\d+)")
_TASK = re.compile(r"(\d+)-.+")
_TURN: ContextVar[Callable[[], AbstractContextManager[bool]] | None]
_TURN = ContextVar("_TURN", default=None)  # of several processes, which one writes
_SWEPT: set[Path] = set()  # folders in which this process has written
SHORT = 12  # digits of a fingerprint that are shown


def is_name(text: str) -> bool:
    """Tell whether a text can be the name of a file or folder, and of nothing outside it."""
    plain = _NAME.fullmatch(text) is not None and not text.endswith(".")
    return plain and _DEVICE.fullmatch(text) is None


def short_hash(text: str) -> str:
    """Return a name for a text: 12 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT]


def damaged(path: Path, what: str) -> RunDirError:
    """Make (not raise) the one-line error for a file that holds something else than it should."""
    return RunDirError(f"{path} is damaged: {' '.join(what.split())}; {way_out(path)}")


def unwritable(path: Path, error: OSError) -> RunDirError:
    """Make (not raise) the one-line error for a file or folder that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    mend = "free some space" if full else "see that it may be written there"
    return RunDirError(
        f"cannot write {path}: {error.strerror or error}; {mend} and run the same command again: "
        "what was there before is untouched"
    )


def way_out(path: Path) -> str:
    """Say in half a sentence how to go on without a file of ours."""
    for folder in path.parents:
        if (here := SNAPSHOT.fullmatch(folder.name)) is not None:
            before = _snapshot_before(folder, int(here[1]))
            then = f"goes on from {before}" if before else "of this task begins again"
            return f"delete the folder {folder}: training {then}"
        if folder.name == "adapter" and folder.parent.parent.name == "tasks":
            before = _adapter_before(folder.parent)
            use = f"use the adapter of the task before, {before}, or " if before else ""
            return f"{use}delete {folder.parent} and run the same command again"
        if folder.name == "diagnose":
            return f"delete it and run `undrift diagnose {folder.parent}` again"
    if (path.parent / "adapter_config.json").exists():
        return "get the adapter's files anew from where they come from"
    return "delete the file and run the same command again"


def _snapshot_before(folder: Path, step: int) -> Path | None:
    """Find the latest whole snapshot before one; most often there is none."""
    found = {
        int(number[1]): each
        for each in folder.parent.glob("checkpoint-*")
        if (number := SNAPSHOT.fullmatch(each.name)) and (each / "trainer_state.json").is_file()
    }
    return found.get(max((number for number in found if number < step), default=-1))


def _adapter_before(task: Path) -> Path | None:
    """Find the adapter of the task before one in a run's folder."""
    here = _TASK.fullmatch(task.name)
    number = int(here[1]) - 1 if here else 0
    before = sorted(task.parent.glob(f"{number:02d}-*/adapter")) if number > 0 else []
    return before[0] if before else None


@contextmanager
def writing_together(turn: Callable[[], AbstractContextManager[bool]] | None) -> Generator[None]:
    """Within this context a write is what several processes do together.

    Args:
        turn: Entered around each write; it tells whether this process is the one that writes. The
            others write to nowhere. None: every process writes for itself.
    """
    before = _TURN.set(turn)
    try:
        yield
    finally:
        _TURN.reset(before)


@contextmanager
def own_folder() -> Generator[Path]:
    """Yield an empty folder of this process alone, which is gone afterwards."""
    with temporary_folder() as folder, writing_together(None):
        yield folder


@contextmanager
def temporary_folder() -> Generator[Path]:
    """Yield an empty folder outside, which is gone afterwards; one left by a kill is found."""
    folder = beside(Path(tempfile.gettempdir(), "undrift"), TEMPORARY)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        _remove(folder)


@contextmanager
def our_turn() -> Generator[bool]:
    """Tell whether this process writes; what is written inside belongs to the same write."""
    turn = _TURN.get()
    if turn is None:
        yield True
        return
    with turn() as ours, writing_together(None):
        yield ours


@contextmanager
def _replacing(
    path: Path, replace: Callable[[Path], AbstractContextManager[Path]]
) -> Generator[Path]:
    """Yield what `replace` yields for a path, or for one that is gone afterwards."""
    with our_turn() as ours:
        if ours:
            with replace(path) as temporary:
                yield temporary
        else:
            with (
                temporary_folder() as nowhere,
                replace(nowhere / path.name) as made,
            ):
                yield made


def atomic_file(path: Path) -> AbstractContextManager[Path]:
    """Yield an empty file beside `path`; it replaces `path` if the block ends without an error."""
    return _replacing(path, _atomic_file)


@contextmanager
def _atomic_file(path: Path) -> Generator[Path]:
    temporary = beside(path, TEMPORARY)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)  # noqa: PTH105 (this and os.rename are watched by tests)
            _sync(path.parent)
    finally:
        _remove(temporary)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) that is seen whole or not at all, replacing an older one."""
    try:
        written = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise RunDirError(f"cannot write {path}: {_HALF}") from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(written)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn what the system says while a file is written into one of our errors."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def atomic_folder(path: Path, *, sync: bool = True) -> AbstractContextManager[Path]:
    """Yield an empty folder beside `path`; it appears at `path` if the block ends without an error.

    A folder that is there already is moved aside, and deleted when the new one stands in its place.

    Args:
        path: The folder.
        sync: Bring every file in it to the disk first; not worth the wait for what is made again.

    Returns:
        A context that yields the empty folder.

    Raises:
        RunDirError: If it cannot be written.
    """
    return _replacing(path, partial(_atomic_folder, sync=sync))


@contextmanager
def _atomic_folder(path: Path, sync: bool) -> Generator[Path]:
    temporary, aside = beside(path, TEMPORARY), beside(path, _REPLACED)
    try:
        with writing(path):
            _put_back(path)
            temporary.mkdir(parents=True)
            yield temporary
            if sync:
                _sync_all(temporary)
            if os.path.lexists(path):
                os.rename(path, aside)  # noqa: PTH104
            try:
                os.rename(temporary, path)  # noqa: PTH104
            except OSError:
                _put_back(path)
                raise
            _sync(path.parent)
    finally:
        _remove(temporary)
        if os.path.lexists(path):  # or else the only copy is the one that was moved aside
            _remove(aside)


def remove(path: Path) -> None:
    """Delete a file or a folder as far as that can be done; of a link the link alone."""
    with our_turn() as ours:
        if ours:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        if not path.name.endswith(TEMPORARY):  # never seen half deleted under its own name
            gone = beside(path, _REMOVED)
            with suppress(OSError):
                path = path.rename(gone)
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    """Name something new beside a path, that nobody can have put there before."""
    if path.parent not in _SWEPT:
        _SWEPT.add(path.parent)
        sweep(path.parent, deep=False)
    unique = f"{os.getpid()}-{_HOST}{secrets.token_hex(4)}"
    return path.with_name(f"{path.name}.{unique}{suffix}")


def sweep(folder: Path, *, deep: bool = True) -> None:
    """Clear away what processes that were killed have left half written or half deleted.

    A folder that was being replaced is put back. What a living process writes stays.

    Args:
        folder: Where to look.
        deep: In the folders below as well, all of which are undrift's own; there names as older
            versions gave them count, too.
    """
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            left = _LEFT.fullmatch(name) if name.endswith(TEMPORARY) else None
            if left is not None and (deep or left["host"] is not None):
                path = Path(place, name)
                if not _being_written(path, left):
                    _clear(path, left)
        folders[:] = [name for name in folders if deep and not name.endswith(TEMPORARY)]


def _being_written(path: Path, left: re.Match[str]) -> bool:
    """Tell whether the process that is named in a temporary name may still be at it."""
    try:
        touched = path.lstat().st_mtime
    except OSError:
        return True  # it is gone meanwhile
    if left["host"] not in (None, _HOST):
        return time.time() - touched < _DAY  # whether its process lives is not known here
    try:
        process = psutil.Process(int(left["process"]))
        dead = process.status() == psutil.STATUS_ZOMBIE
        # one that is much younger has got the number of another; file servers' clocks differ
        return not dead and process.create_time() < touched + _HOUR
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _clear(path: Path, left: re.Match[str]) -> None:
    own = path.with_name(left["name"])
    if left["kind"] == ".replaced" and not os.path.lexists(own):
        with suppress(OSError):
            path.rename(own)
    else:
        _remove(path)


def _put_back(path: Path) -> None:
    """Undo the replacing of a folder that a killed process had moved aside."""
    left = [] if os.path.lexists(path) else list(path.parent.glob(f"*{_REPLACED}"))
    for aside in left:
        if aside.name.rsplit(".", 3)[0] == path.name:
            os.rename(aside, path)  # noqa: PTH104
            return


def _sync_all(folder: Path) -> None:
    """Bring a folder's files to the disk, then the folders that name them, the inner ones first."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows keeps names by itself
    file = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def text_of(path: Path) -> str:
    """Return the content of a regular UTF-8 file; anything else is a RunDirError."""
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunDirError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise damaged(path, f"no text in UTF-8 (byte {error.start})") from error


def check_regular(path: Path) -> None:
    """Refuse what is missing or has no beginning and end: folders, pipes, devices."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise RunDirError(f"cannot read {path}: {said}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise damaged(path, f"it is {kind} and no file")


def parsed(path: Path, text: str, line: int = 1, parse: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON strictly.

    Args:
        path: Where it comes from, for the message.
        text: The JSON.
        line: The number of its first line.
        parse: From `json_parser`, where there are many texts.

    Returns:
        Its value.

    Raises:
        RunDirError: If it is no JSON, holds a key twice, half a character, a number that is none
            or has hundreds of digits, or is nested too deep.
    """
    try:
        return (parse or json_parser(unique=True))(text)
    except NotJson as error:
        where = "" if error.line is None else f"line {line + error.line - 1}: "
        raise damaged(path, f"{where}{error.reason}") from error


def short(value: Any) -> str:
    """Show the beginning of a value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON with its format; nan and infinity are refused."""
    encoder = json.JSONEncoder(indent=1, ensure_ascii=False, allow_nan=False)
    with (
        atomic_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
        _as_json(path),
    ):
        file.writelines(encoder.iterencode(_with_format(value)))  # never whole in memory
        file.write("\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, of an object all but the format."""
    return known_format(path, parsed(path, text_of(path)))


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as JSON lines, atomically, each with its format."""
    atomic_write(path, "".join(_text(path, row) + "\n" for row in rows))


def line_of(path: Path, row: Mapping[str, object]) -> str:
    """Return the line that `write_lines` writes of a row."""
    return _text(path, row) + "\n"


def read_line(path: Path, line: str, number: int, parse: Callable[[str], Any] | None = None) -> Any:
    """Parse one line of a file of JSON lines, without the format of an object, see `parsed`."""
    return known_format(path, parsed(path, line, number, parse))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines, without their format."""
    rows: list[dict[str, Any]] = []
    parse = json_parser(unique=True)
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line:
            value = read_line(path, line, number, parse)
            if not isinstance(value, dict):
                raise damaged(path, f"line {number}: expected an object, not {short(value)}")
            rows.append(value)
    return rows


def known_format(path: Path, value: Any) -> Any:
    """Return what a file holds without its format, if that is one we know."""
    if not isinstance(value, Mapping) or "format" not in value:
        return value
    check_format(path, value["format"])
    return {key: inner for key, inner in value.items() if key != "format"}


def check_format(path: Path, number: Any) -> None:
    """Refuse what a file says under `format` if it is no format, or of a newer undrift."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise damaged(path, f"format: expected a whole number from 1, not {short(number)}")
    if number > FORMAT:
        raise RunDirError(
            f"{path} was written by a newer undrift (format {number}, this one reads up to "
            f"{FORMAT}); pip install -U undrift"
        )


def _text(path: Path, value: Mapping[str, Any]) -> str:
    with _as_json(path):
        return json.dumps(_with_format(value), ensure_ascii=False, allow_nan=False)


def _with_format(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, **value, "format": FORMAT}  # noqa: F601 (first, whatever comes)


@contextmanager
def _as_json(path: Path) -> Generator[None]:
    """Turn what cannot be written as JSON into one of our errors."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise RunDirError(f"cannot write {path}: {_HALF}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RunDirError(f"cannot write {path} as JSON: {error}") from error
