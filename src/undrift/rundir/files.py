"""Files that are seen whole or not at all, and the JSON in them.

What is written is on the disk before it counts: the content is synced, then the name is changed,
then the folder is synced. Every JSON object and every JSON line that undrift writes carries
`format: N`; a reader takes it off again, and refuses a number that it does not know.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from undrift.errors import RunDirError
from undrift.rundir.damage import damaged, unwritable
from undrift.rundir.strict import parsed, short, text_of

FORMAT = 1
"""The format of every file that undrift writes. A reader takes this one and all before it."""

TEMPORARY = ".writing"
_REPLACED = f".replaced{TEMPORARY}"


@contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Fill a file that appears at `path` only if the block ends without an error.

    Args:
        path: The file; missing parent folders are made, and an older file is replaced at the end.

    Yields:
        An empty file beside it, to be filled.

    Raises:
        RunDirError: If it cannot be written.
    """
    temporary = _beside(path, TEMPORARY)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)  # noqa: PTH105 (this and os.rename are watched by tests)
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that it is seen whole or not at all, replacing an older one.

    Args:
        path: The file; missing parent folders are made.
        content: Text (written as UTF-8) or bytes.

    Raises:
        RunDirError: If it cannot be written.
    """
    try:
        written = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise RunDirError(f"cannot write {path}: half a character (U+D800 to U+DFFF)") from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(written)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Within this context what the system says of a file is told as one of our errors.

    Args:
        path: The file that is written.

    Yields:
        Nothing.

    Raises:
        RunDirError: If it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def atomic_folder(path: Path, *, sync: bool = True) -> Generator[Path]:
    """Fill a folder that appears at `path` only if the block ends without an error.

    A folder that is there already is moved aside, and deleted when the new one stands in its place.

    Args:
        path: The folder.
        sync: Bring every file in it to the disk first; not worth the wait for what is made again.

    Yields:
        An empty folder beside it, to be filled.

    Raises:
        RunDirError: If it cannot be written.
    """
    temporary, aside = _beside(path, TEMPORARY), _beside(path, _REPLACED)
    try:
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
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        remove(temporary)
        remove(aside)


def remove(path: Path) -> None:
    """Delete a file or a folder as far as that can be done; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, atomically, with its format.

    Args:
        path: The file.
        value: Anything JSON can hold; not-a-number and infinity are refused.

    Raises:
        RunDirError: If JSON cannot hold the value, or the file cannot be written.
    """
    atomic_write(path, _text(path, value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its value, of an object all but the format.

    Raises:
        RunDirError: If the file is missing, is not JSON, or was written by a newer undrift.
    """
    return known_format(path, parsed(path, text_of(path)))


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as JSON lines, atomically, each with its format.

    Args:
        path: The file.
        rows: One mapping a line.

    Raises:
        RunDirError: If JSON cannot hold a row, or the file cannot be written.
    """
    atomic_write(path, "".join(_text(path, row) + "\n" for row in rows))


def line_of(path: Path, row: Mapping[str, object]) -> str:
    """Return the line that `write_lines` writes of a row."""
    return _text(path, row) + "\n"


def read_line(path: Path, line: str, number: int) -> Any:
    """Parse one line of a file of JSON lines.

    Args:
        path: The file, for the message.
        line: The line.
        number: Its number.

    Returns:
        Its value, of an object all but the format.

    Raises:
        RunDirError: If it is no JSON, or was written by a newer undrift.
    """
    return known_format(path, parsed(path, line, number))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines.

    Args:
        path: The file.

    Returns:
        One dictionary a line, without the format.

    Raises:
        RunDirError: If the file is missing, a line of it is no JSON object, or it was written by a
            newer undrift.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line:
            value = read_line(path, line, number)
            if not isinstance(value, dict):
                raise damaged(path, f"line {number}: expected an object, not {short(value)}")
            rows.append(value)
    return rows


def known_format(path: Path, value: Any) -> Any:
    """Take the format off what a file holds.

    Args:
        path: The file, for the message.
        value: What it holds.

    Returns:
        An object without its format; anything else as it is.

    Raises:
        RunDirError: If the format is none, or of a newer undrift.
    """
    if not isinstance(value, Mapping) or "format" not in value:
        return value
    check_format(path, value["format"])
    return {key: inner for key, inner in value.items() if key != "format"}


def check_format(path: Path, number: Any) -> None:
    """Refuse a file whose format is not known.

    Args:
        path: The file, for the message.
        number: What it says under `format`.

    Raises:
        RunDirError: If that is no format, or a newer one.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise damaged(path, f"format: expected a whole number from 1, not {short(number)}")
    if number > FORMAT:
        raise RunDirError(
            f"{path} was written by a newer undrift (format {number}, this one reads up to "
            f"{FORMAT}); pip install -U undrift"
        )


def _text(path: Path, value: Mapping[str, Any], indent: int | None = None) -> str:
    whole = {"format": FORMAT, **value, "format": FORMAT}  # noqa: F601 (first, whatever comes)
    try:
        return json.dumps(whole, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RunDirError(f"cannot write {path} as JSON: {error}") from error


def _beside(path: Path, suffix: str) -> Path:
    """Name something new beside a path, that nobody can have put there before."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{suffix}")


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
