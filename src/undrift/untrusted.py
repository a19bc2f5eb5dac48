"""Other people's files, and the JSON in them: refused where they could hurt, in one line.

Only regular files are read: a fifo would be waited for, a device read without end. In JSON nothing
is too deep to be walked, no number endless, no character half; in an array, or in a file of JSON
lines, what is refused spoils its own element only.

A file that is none is an OSError (`NotAFile`), a text that is no JSON or that goes beyond a bound
is a ValueError (`NotJson`); callers add the name of the file.
"""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

MAX_BYTES = 2**32
"""Of a file that is read as a whole: 4 GiB, more than any instruction file that was published."""

_KINDS = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}
_OPENED = sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


class NotAFile(OSError):
    """Something that is no regular file, or one that is too large; `strerror` says which."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading bytes, if it is a regular one or a link to one; never wait for it.

    NotAFile says that it is a fifo, a device, a socket or a folder, another OSError that it cannot
    be opened, or that its name cannot be a file's.
    """
    try:
        _refuse_others(path, path.stat().st_mode)  # before it is opened: that may do something
        handle = os.open(path, os.O_RDONLY | _OPENED)
    except ValueError as error:  # a NUL in the name, or half a character
        raise OSError(errno.EINVAL, "this cannot be the name of a file", str(path)) from error
    try:
        _refuse_others(path, os.fstat(handle).st_mode)  # it may have been replaced in between
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def is_regular(path: Path) -> bool:
    """Tell whether something is a regular file, or a link to one."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Tell whether something is a folder, or a link to one."""
    return stat.S_ISDIR(_mode(path))


def strange_kind(path: Path) -> str | None:
    """Say what a path is that is neither file nor folder, such as "a fifo"; None otherwise."""
    mode = _mode(path)
    ordinary = not mode or stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return None if ordinary else _KINDS.get(stat.S_IFMT(mode), "no file")


def _mode(path: Path) -> int:
    """Return the mode of what a path leads to; 0 for nothing, and for no name of a file."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def read_regular(path: Path, most: int = MAX_BYTES) -> bytes:
    """Read a regular file of at most so many bytes; see `open_regular` for what is raised."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most + 1) if size <= most else None
    if content is None or len(content) > most:  # files of the kernel do not say how large they are
        raise NotAFile(errno.EFBIG, f"it has more than {most:,} bytes, and is not read", str(path))
    return content


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """Read a regular file of UTF-8, with or without a byte order mark; other text is an OSError."""
    try:
        return read_regular(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, not_utf8(error), str(path)) from error


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say where a text is not UTF-8, in one line, and what it may be."""
    where = f"it is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start:,})"
    return f"{where}, perhaps it is Latin-1 (Windows-1252); save it as UTF-8"


def why(error: OSError) -> str:
    """Return what an OSError says without the number and the name of the file."""
    return error.strerror or str(error) or type(error).__name__


def _refuse_others(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise NotAFile(errno.EINVAL, f"it is {kind}; expected a regular file", str(path))


MAX_LINE = 2**28
"""Of a line, in bytes: a row with pictures inside it is far below."""
MAX_DEPTH = 100
"""Lists and objects inside one another; Python's own limit is near 1000, and differs by release."""
MAX_DIGITS = 300
"""Of a whole number: every one of these is a float as well."""

_SPACE = re.compile(r"[ \t\n\r]*")
_BRACKET_OR_TEXT = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON writes it; most are halves of a pair
_LONE = re.compile("[\ud800-\udfff]")


class NotJson(ValueError):
    """A text that is no JSON, or JSON that is refused.

    Args:
        reason: What is wrong.
        line: Where, from 1; None where it is the value as a whole.
        column: From 1.
    """

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(reason if line is None else f"{reason} at line {line}, column {column}")
        self.reason, self.line, self.column = reason, line, column


class Refused(NamedTuple):
    """What stands in the place of a row that is refused; `column` where its JSON is damaged."""

    reason: str
    column: int | None = None


def parse_json(text: str, *, unique: bool = False) -> Any:
    """Read a JSON text; NotJson says that it is none, or holds something that is refused.

    Args:
        text: The text.
        unique: Refuse an object that has a key twice; otherwise the last one counts.

    Returns:
        Its value: no deeper than `MAX_DEPTH`, every number finite.
    """
    return json_parser(unique=unique)(text)


def json_parser(*, unique: bool = False) -> Callable[[str], Any]:
    """Return `parse_json` for many texts, one after another: to make a reader takes as long."""
    return partial(_parsed, _Reader(unique=unique))


def _parsed(reader: _Reader, text: str) -> Any:
    value, end = reader.read(text, _past_space(text, 0))
    if (end := _past_space(text, end)) < len(text):
        raise _damage(json.JSONDecodeError("Extra data", text, end))
    if isinstance(value, Refused):
        raise NotJson(value.reason)
    return value


def json_elements(text: str, *, unique: bool = False) -> Iterator[Any]:
    """Read JSON value by value, arrays by their elements, so that a refused one spoils no other.

    Args:
        text: An array, or arrays and other values one after another.
        unique: See `parse_json`.

    Yields:
        Each element and each other value, or a `Refused` in its place.

    Raises:
        NotJson: Where the text is damaged, or if there is nothing in it.
    """
    reader, at = _Reader(unique=unique), _past_space(text, 0)
    while True:
        if text[at : at + 1] == "[":
            at = yield from _elements(reader, text, at + 1)
        else:
            value, at = reader.read(text, at)
            yield value
        if (at := _past_space(text, at)) == len(text):
            return


def _elements(reader: _Reader, text: str, at: int) -> Generator[Any, None, int]:
    """Read the elements of an array from behind its bracket; return where it ends."""
    at = _past_space(text, at)
    if text[at : at + 1] == "]":
        return at + 1
    while True:
        value, at = reader.read(text, at)
        yield value
        at = _past_space(text, at)
        mark, at = text[at : at + 1], at + 1
        if mark == "]":
            return at
        if mark != ",":
            raise _damage(json.JSONDecodeError("Expecting ',' delimiter", text, at - 1))
        at = _past_space(text, at)


def json_lines(file: BinaryIO, *, unique: bool = False) -> Iterator[tuple[int, Any]]:
    """Read JSON lines one by one, so that one that is refused or damaged spoils no other.

    Args:
        file: UTF-8, with or without a byte order mark; blank lines are passed over.
        unique: See `parse_json`.

    Yields:
        The number of each line, from 1, and its value, or a `Refused` in its place.

    Raises:
        NotJson: If a line is longer than `MAX_LINE`, or the file is UTF-16.
    """
    reader, number = _Reader(unique=unique), 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise NotJson(f"it has a line of more than {MAX_LINE:,} bytes, line {number}")
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise NotJson("it is UTF-16; expected UTF-8")
        try:
            text = line.removesuffix(b"\n").decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield number, _parsed(reader, text)
        except UnicodeDecodeError as error:
            yield number, Refused(not_utf8(error))
        except NotJson as error:
            yield number, Refused(error.reason, error.column)


def values_in(value: Any) -> Iterator[Any]:
    """Go through a value and whatever is inside its lists and mappings, keys included."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        yield one
        if isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list | tuple | set):
            waiting += one


def half_character(value: Any) -> bool:
    """Tell whether a text, or any text inside lists and mappings, holds a lone surrogate."""
    texts = (one for one in values_in(value) if isinstance(one, str) and not one.isascii())
    return any(map(_LONE.search, texts))


class _Reader:
    """Python's own scanner of JSON, told to note what is refused and to go on."""

    def __init__(self, *, unique: bool = False) -> None:
        self._wrong = list[str]()
        self._scan = json.JSONDecoder(
            parse_int=self._whole,
            parse_float=self._real,
            parse_constant=self._constant,
            object_pairs_hook=self._object if unique else None,
        ).raw_decode

    def read(self, text: str, start: int) -> tuple[Any, int]:
        """Read the value that starts at a place; return it, or a Refused, and where it ends."""
        self._wrong.clear()
        try:
            value, end = self._scan(text, start)
        except json.JSONDecodeError as error:
            raise _damage(error) from error
        except RecursionError:
            return Refused(f"it holds {_TOO_DEEP}"), _extent(text, start)[0]
        brackets = text.count("[", start, end) + text.count("{", start, end)
        if brackets > MAX_DEPTH and _extent(text, start)[1] > MAX_DEPTH:
            self._wrong.append(_TOO_DEEP)
        if _SURROGATE.search(text, start, end) and half_character(value):
            self._wrong.append("half a character (a lone surrogate such as \\ud800)")
        return (Refused(f"it holds {self._wrong[0]}") if self._wrong else value), end

    def _whole(self, digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            self._wrong.append(f"a number of {len(digits.lstrip('-')):,} digits")
            return 0
        return int(digits)

    def _real(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            self._wrong.append(f"the number {digits[:20]}, which is beyond every float")
        return value

    def _constant(self, name: str) -> float:
        self._wrong.append(f"{name}, which is no number of JSON's; null stands for nothing")
        return 0.0

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            self._wrong.append(f"an object that has the key {twice[:40]!r} twice")
        return made


_TOO_DEEP = f"more than {MAX_DEPTH} lists and objects inside one another"


def _extent(text: str, start: int) -> tuple[int, int]:
    """Find where a value ends, and how many of its lists and objects are inside one another."""
    depth = deepest = 0
    for found in _BRACKET_OR_TEXT.finditer(text, start):
        mark = found.group()
        depth += (mark in "[{") - (mark in "]}")
        deepest = max(deepest, depth)
        if not depth:
            return found.end(), deepest
    raise NotJson(f"it holds {_TOO_DEEP}")


def _past_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _damage(error: json.JSONDecodeError) -> NotJson:
    return NotJson(error.msg, error.lineno, error.colno)
