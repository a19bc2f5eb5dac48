"""Things that lie where a file should, made cheaply, and a limit to how long one waits for them."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("fifo", "link to a fifo", "device", "socket")
SAID = {"fifo": "fifo", "link to a fifo": "fifo", "device": "device", "socket": "socket"}


def put(path: Path, kind: str) -> Path:
    """Put something that is no file in the place of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to a fifo":
        beside = path.with_name(f"{path.stem}-behind")
        os.mkfifo(beside)
        path.symlink_to(beside)
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        with tempfile.TemporaryDirectory() as short:  # a socket's address has 108 characters
            made = socket.socket(socket.AF_UNIX)
            made.bind(f"{short}/s")
            made.close()
            os.link(f"{short}/s", path)
    return path


@contextmanager
def at_once(seconds: int = 10) -> Iterator[None]:
    """Fail if the block waits for something; only on the main thread."""

    def stop(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
