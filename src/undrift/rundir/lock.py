"""One command at a time in a folder: whoever writes there holds a lock that ends with the process.

The lock is the operating system's (`flock`, on Windows `LockFile`) on the file `undrift.lock`, in
which its holder says who it is. So there is no stale lock: when a process has died, however it
died, the next one takes the file over. Who ends in order deletes it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from undrift.errors import RunDirError
from undrift.rundir.files import FORMAT, check_regular, unwritable
from undrift.rundir.paths import LOCK
from undrift.rundir.records import Holder, read_record

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_HELD: ContextVar[frozenset[Path]] = ContextVar("_HELD", default=frozenset())


@contextmanager
def held(folder: Path) -> Generator[None]:
    """Within this context no other process, and no other thread, works in a folder.

    A thread that holds it already goes on. The folder is made if it is not there; if nothing was
    written into it, it is gone afterwards.

    Args:
        folder: The folder.

    Yields:
        Nothing.

    Raises:
        RunDirError: If another one works there, or if the folder cannot be locked.
    """
    place = folder.resolve()
    if place in _HELD.get():
        yield
        return
    file = place / LOCK
    _check_ours(file)
    made = [each for each in (place, *place.parents) if not each.exists()]
    lock = FileLock(file, fallback_to_soft=False, on_acquired=partial(_sign, file))
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except (Timeout, OSError) as error:
        _remove_empty(made)
        raise _refusal(folder, file, error) from error
    ours, before = file.stat(), _HELD.set(_HELD.get() | {place})
    try:
        yield
    finally:
        _HELD.reset(before)
        with suppress(OSError):  # not that of another one, where the folder was moved away
            if os.path.samestat(ours, file.stat()):
                file.unlink()
        lock.release()
        _remove_empty(made)


def _check_ours(file: Path) -> None:
    """Refuse to write over a file of that name which is somebody else's."""
    if not os.path.lexists(file):
        return
    try:
        check_regular(file)
        ours = not file.is_symlink() and (not file.stat().st_size or bool(_holder(file)))
    except RunDirError:
        ours = False
    if not ours:
        raise RunDirError(
            f"{file} is there, and was not written by undrift; move it away, or choose another "
            "folder"
        )


def _sign(file: Path, number: int) -> None:
    """Write into the file, which is locked and open, who holds it."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"format": FORMAT, "host": socket.gethostname(), "pid": os.getpid(), "since": since}
    try:
        os.ftruncate(number, 0)
        os.write(number, json.dumps(holder).encode())
    except OSError:  # a full disk
        with suppress(OSError):
            file.unlink()
        raise


def _holder(file: Path) -> str:
    """Say who holds a lock, as far as its file can be read."""
    try:
        who = read_record(file, Holder)
    except RunDirError:
        return ""
    return f"process {who['pid']} on {who['host']} has worked there since {who['since']}"


def _refusal(folder: Path, file: Path, error: Timeout | OSError) -> RunDirError:
    if isinstance(error, Timeout):
        holder = _holder(file) or "another process works there"
        return RunDirError(
            f"{folder} is in use: {holder}; wait until it has ended, or choose another folder"
        )
    if error.errno in _NO_LOCKS:
        return RunDirError(
            f"cannot lock {folder}: {error.strerror}; its file system has no locks, which keep two "
            "commands out of one folder; choose a folder on one that has (flock)"
        )
    return unwritable(folder, error)


def _remove_empty(folders: list[Path]) -> None:
    for each in folders:
        with suppress(OSError):
            each.rmdir()
