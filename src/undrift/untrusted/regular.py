"""Only regular files are read: a fifo would be waited for, a device read without end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

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
    """Open a file for reading, if it is a regular one or a link to one; nothing is waited for.

    Args:
        path: The file.

    Returns:
        The file, opened for reading bytes.

    Raises:
        NotAFile: If it is a fifo, a device, a socket or a folder.
        OSError: If it is not there or cannot be opened; also for a name that cannot be a file's.
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
    """Tell whether something is a regular file, or a link to one; of no name it raises."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Tell whether something is a folder, or a link to one; of no name it raises."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def strange_kind(path: Path) -> str | None:
    """Say what a path is that is neither file nor folder, such as "a fifo"; None otherwise."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    ordinary = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return None if ordinary else _KINDS.get(stat.S_IFMT(mode), "no file")


def read_regular(path: Path, most: int = MAX_BYTES) -> bytes:
    """Read a regular file.

    Args:
        path: The file.
        most: How many bytes it may have.

    Returns:
        Its content.

    Raises:
        NotAFile: If it is no regular file, or larger.
        OSError: See `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most + 1) if size <= most else None
    if content is None or len(content) > most:  # files of the kernel do not say how large they are
        raise NotAFile(errno.EFBIG, f"it has more than {most:,} bytes, and is not read", str(path))
    return content


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """Read a regular file of UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        most: How many bytes it may have.

    Returns:
        Its text.

    Raises:
        NotAFile: If it is no regular file, or larger.
        OSError: See `open_regular`; also if it is not UTF-8.
    """
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
