"""Processes side by side, each with a log that is locked while it runs.

The lock is the child's as well as ours. So a second study on the same folder, or one begun again
after its parent was killed, leaves alone what is still running.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no such lock: one study a folder there
    fcntl = None

_PATIENCE = 10.0  # seconds that a stopped child gets before it is killed


@dataclass
class Process:
    """A command that runs.

    Args:
        name: What it is called.
        child: The process.
        log: Where its output goes.
        start: When it was started.
    """

    name: str
    child: subprocess.Popen[bytes]
    log: IO[bytes]
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.start

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.child.poll()

    def tail(self, lines: int) -> str:
        """Return the last lines of its output."""
        text = Path(self.log.name).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.strip().splitlines()[-lines:])


def begin(name: str, argv: Sequence[str], log: Path) -> Process | None:
    """Start a command with one thread, and its output in a log.

    Args:
        name: What it is called.
        argv: The command.
        log: The file; its folder must exist.

    Returns:
        The process, or None if one with the same log is running already, whoever started it.
    """
    file = log.open("ab")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
    )
    return Process(name, child, file)


def stop(processes: Iterable[Process]) -> None:
    """End processes, gently at first; a run stands that, and goes on from its files."""
    alive = [process.child for process in processes if process.status is None]
    for child in alive:
        child.terminate()
    deadline = time.monotonic() + _PATIENCE
    for child in alive:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def stopped_with_us(processes: Sequence[Process]) -> Iterator[None]:
    """End the processes if the block ends early: by Ctrl-C, by a polite kill, by an error.

    Args:
        processes: The list of those that run, as it is when the block ends.

    Yields:
        Nothing.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the command line has its own
    )
    before = signal.signal(signal.SIGTERM, interrupt) if ours else None
    try:
        yield
    finally:
        stop(processes)
        if ours:
            signal.signal(signal.SIGTERM, before)
