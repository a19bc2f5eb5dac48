"""Moments of a command at which it can be killed, or from which on its disk can be full.

Everything that changes a file is a moment, just before it happens: opening for writing, syncing,
renaming, making and deleting, whoever's code does it. So are the parts of a step, a batch of
questions, reading the data and drawing the page. A moment's kind says what was being done. They
are counted in one process and fatal in another.
"""

from __future__ import annotations

import functools
import mmap
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS: dict[str, str] = {  # the first pattern that fits a path below the point's folder
    "temporary": r"^tmp/",
    "features": r"^cache/",
    "snapshot": r"(^|/)training(/|$)",
    "adapter": r"(^|/)adapter[./]|(^|/)adapter$",
    "done": r"/DONE",
    "page": r"(^|/)report\.html",
    "matrix": r"(^|/)(matrix|result)\.json",
    "manifest": r"(^|/)manifest\.json",
    "answers": r"(^|/)eval/|\.part|^out/[^/]*\.jsonl|asked\.json",
    "pictures": r"(^|/)pictures(/|$)",
    "start": r"run\.yaml|learn\.yaml|data\.json|\.undrift",
    "log": r"train\.jsonl|\.log$",
    "results": r"^results",
    "other": r"",
}
MARKS = ("reading", "step", "asking")  # moments that no file tells
PROGRESS = ("steps", "batches")  # what was done, counted when it is
NAMES = (*KINDS, *MARKS, "any", *PROGRESS)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Counters:
    """How often each moment has come, in memory that processes share and a kill does not lose."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * len(NAMES))
        self._numbers = memoryview(self._memory).cast("q")

    def __getitem__(self, name: str) -> int:
        return self._numbers[NAMES.index(name)]

    def add(self, name: str) -> int:
        place = NAMES.index(name)
        self._numbers[place] += 1
        return self._numbers[place]

    def all(self) -> dict[str, int]:
        return {name: self[name] for name in NAMES}


class _Watch:
    """What this process counts, where it dies, or from where on it can write nothing any more."""

    counters: Counters | None = None
    deadly: tuple[str, int] | None = None
    signal: int = signal.SIGKILL
    error: int = 0
    failing = False
    root = ""
    data = ""
    process = 0


watch = _Watch()


def begin(counters: Counters, deadly: tuple[str, int] | None, root: Path, data: Path) -> None:
    """Count from now on in this process.

    Args:
        counters: Where.
        deadly: A kind and the number of the moment at which this process is killed.
        root: What is written below it is a moment.
        data: What is read below it is one.
    """
    watch.counters, watch.deadly, watch.process = counters, deadly, os.getpid()
    watch.root, watch.data = os.path.realpath(root), os.path.realpath(data)
    sys.addaudithook(_heard)


def moment(kind: str) -> None:
    """Count a moment, and die if it is the one."""
    if watch.counters is None or os.getpid() != watch.process:
        return
    for name in (kind, "any"):
        if (name, watch.counters.add(name)) == watch.deadly:
            if watch.error:
                watch.failing = True
            else:
                os.kill(os.getpid(), watch.signal)


def done(what: str) -> None:
    """Count something that is finished."""
    if watch.counters is not None and os.getpid() == watch.process:
        watch.counters.add(what)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        path, _, flags = args
        if isinstance(path, str | bytes | os.PathLike):
            _at(path, -1, writes=bool(flags & _WRITES))
    elif event in ("os.remove", "os.rmdir"):
        _at(args[0], args[1], frees=True)
    elif event == "os.mkdir":
        _at(args[0], args[2])
    elif event == "os.rename":
        _at(args[1], args[3])


def _at(path: Any, folder: int, *, writes: bool = True, frees: bool = False) -> None:
    text = os.fsdecode(path)
    if folder not in (-1, None) and not text.startswith("/"):
        text = f"{Path(f'/proc/self/fd/{folder}').readlink()}/{text}"
    text = os.path.normpath(os.path.join(os.getcwd(), text))  # noqa: PTH109, PTH118
    if writes and text.startswith(f"{watch.root}/"):
        moment(kind_of(text[len(watch.root) + 1 :]))
        if watch.failing and not frees and os.getpid() == watch.process:
            raise OSError(watch.error, os.strerror(watch.error), text)
    elif not writes and text.startswith(f"{watch.data}/"):
        moment("reading")


def kind_of(place: str) -> str:
    """Name what is written at a path below a point's folder."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, place))


def watch_everything() -> None:
    """Make moments of what no file tells, for all processes that are forked from this one."""
    import undrift.report.page as page
    import undrift.report.page_content as page_content
    from undrift.run import answer, image_features, trainer

    for name in ("on_step_begin", "on_pre_optimizer_step", "on_step_end"):
        after = ("steps",) if name == "on_step_end" else ()
        _around(trainer.StepWatch, name, "step", after)
    _around(trainer.TaskTrainer, "training_step", "step")
    _around(answer, "greedy", "asking", ("batches",))
    _around(image_features.FeatureStore, "_compute", "features")
    _around(image_features.FeatureStore, "_append", "features")
    _around(page, "page", "page")
    _around(page_content, "page_content", "page")
    fsync = os.fsync

    def synced(file: int) -> None:
        _at(Path(f"/proc/self/fd/{file}").readlink(), -1)
        fsync(file)

    os.fsync = synced


def _around(owner: Any, name: str, kind: str, after: tuple[str, ...] = ()) -> None:
    inner: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(inner)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        moment(kind)
        found = inner(*args, **kwargs)
        for what in after:
            done(what)
        moment(kind)
        return found

    setattr(owner, name, wrapped)
