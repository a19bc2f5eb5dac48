"""What the machine refuses, in one line: a full disk, missing rights, no memory, a closed pipe.

Only what the operating system or an allocator said counts. Any other error is a fault of undrift's
or a library's, and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from undrift.errors import first_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_FILES = (errno.EMFILE, errno.ENFILE)
_OTHERS = (errno.EIO, errno.ESTALE, errno.ELOOP, errno.EAGAIN, errno.ENXIO, errno.ENOTEMPTY)
_DEEP = (*_FULL, *_CLOSED, *_FILES, *_OTHERS, errno.ENOMEM)
"""What counts in whatever error a library makes of it."""
_IN_TEXT = {os.strerror(number): number for number in (*_FULL, *_CLOSED[:3], *_FILES, errno.EIO)}
_IN_TEXT |= {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
    "disk I/O error": errno.EIO,
    "can't start new thread": errno.EAGAIN,
}
_RUST = re.compile(r"\(os error (\d+)\)")
_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator|not enough memory|bad_alloc|can(?:no|')t allocate memory",
    re.IGNORECASE,
)
_LEFT = re.compile(r"closed by peer|reset by peer|remote process exited", re.IGNORECASE)
GOES_ON = {"run", "learn", "study", "eval", "diagnose"}
"""The commands that, begun again, go on where they were."""
_STEP = "train.batch_size times train.accumulation"
_PIECES = f"--set train.batch_size=4 --set train.global_batch=16 (or what {_STEP} is)"
_SMALLER = {
    "run": f"{_PIECES} --set eval.batch_size=4 --force",
    "learn": f"{_PIECES} --set eval.batch_size=4 --force",
    "study": "train: {batch_size: 4, global_batch: 16} under `run:` of the study's file (or what "
    f"{_STEP} is), or fewer --jobs",
    "eval": "--batch-size 4",
    "diagnose": "--limit 100",
}
_BEFORE_BATCHES = {
    ("undrift.run.load_model", "read_model"): "the base alone does not fit; take a smaller one",
    ("undrift.methods", "attach"): "the adapter alone does not fit; set a smaller method.rank",
}
"""Where memory can run out before there are batches, by the package and the function."""


def refusal(error: BaseException, command: str) -> str | None:
    """Say in one line what the machine refused.

    Args:
        error: What ended a command.
        command: Its name, such as "run".

    Returns:
        The line; None if the machine has refused nothing.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    for each in _chain(error):
        if several and isinstance(each, RuntimeError) and _LEFT.search(str(each)):
            return f"another process has ended, see what it said{_then(command)}"
        if isinstance(each, MemoryError) or _of_memory(each):
            if large := _too_large(error):
                return f"out of memory: {first_line(each)}; {large}"
            smaller = f"; try smaller pieces: {_SMALLER[command]}" * (command in _SMALLER)
            return f"out of memory: {first_line(each)}{smaller}{_then(command)}"
    for each in _chain(error):
        number = _number(each)
        if number in _DEEP:
            return _told(each, number, command)
    if isinstance(error, OSError):
        return _told(error, error.errno, command)
    if isinstance(error, ImportError) and not (error.name or "").startswith("undrift"):
        return f"{first_line(error)}; a package is missing or damaged: install it again with pip"
    return None


def advice(error: BaseException, command: str) -> str:
    """Say how to go on where one of our own errors comes from a full disk.

    Args:
        error: The error.
        command: What was run.

    Returns:
        What to put behind its message; nothing where there is nothing to add.
    """
    full = any(_number(each) in _FULL for each in _chain(error))
    if not full or "same command" in str(error):
        return ""
    return f"; free some space or choose another place{_then(command)}"


def _told(error: BaseException, number: int | None, command: str) -> str:
    said = os.strerror(number) if number else first_line(error)
    file = getattr(error, "filename", None) or getattr(error, "filename2", None)
    what = str(file) if file else f"a file (in {_where(error)})"
    task, how = "use", ""
    if number in _FULL:
        task, how = "write", "; free some space, or choose another place"
    elif number in _CLOSED:
        how = "; choose another place, or ask for the right to use this one"
    elif number in _FILES:
        task, how = "open", "; raise the limit with ulimit -n"
    return f"cannot {task} {what}: {said}{how}{_then(command)}"


def _then(command: str) -> str:
    if command in GOES_ON:
        return "; what is finished is kept, and the same command then goes on"
    return "; then run the same command again"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and those that it was made of, itself first."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _number(error: BaseException) -> int | None:
    """Find the operating system's number in an error, whichever language it comes from."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return None
    text = str(error)
    if found := _RUST.search(text):
        return int(found[1])
    return next((number for said, number in _IN_TEXT.items() if said in text), None)


def _of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for that
    return named or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


def _too_large(error: BaseException) -> str | None:
    """Say what does not fit where no batch was at fault."""
    met = [place for each in _chain(error) for place in _places(each)]
    for (package, function), said in _BEFORE_BATCHES.items():
        if any(name.startswith(package) and called == function for name, called in met):
            return said
    return None


def _where(error: BaseException) -> str:
    """Name the package whose code met the error."""
    return [("?", ""), *_places(error)][-1][0].partition(".")[0]


def _places(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield modules and functions, from the one that was called first to the one that failed."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        yield str(frame.f_globals.get("__name__", "?")), frame.f_code.co_name
        trace = trace.tb_next
