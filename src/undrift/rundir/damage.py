"""What is said of a file that cannot be used or written, and how to go on without it."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from undrift.errors import RunDirError

SNAPSHOT = re.compile(r"checkpoint-(\d+)")
_TASK = re.compile(r"(\d+)-.+")


def damaged(path: Path, what: str) -> RunDirError:
    """Make (not raise) the error for a file that holds something else than it should.

    Args:
        path: The file.
        what: What is wrong with it.

    Returns:
        The exception; its message is one line.
    """
    return RunDirError(f"{path} is damaged: {' '.join(what.split())}; {way_out(path)}")


def unwritable(path: Path, error: OSError) -> RunDirError:
    """Make (not raise) the error for a file or folder that cannot be written.

    Args:
        path: What was to be written.
        error: What the system said.

    Returns:
        The exception; its message is one line.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    mend = "free some space" if full else "see that it may be written there"
    return RunDirError(
        f"cannot write {path}: {error.strerror or error}; {mend} and run the same command again: "
        "what was there before is untouched"
    )


def way_out(path: Path) -> str:
    """Say how to go on without a file of ours.

    Args:
        path: The file.

    Returns:
        Half a sentence.
    """
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
    found: dict[int, Path] = {}
    for each in folder.parent.glob("checkpoint-*"):
        number = SNAPSHOT.fullmatch(each.name)
        if number and int(number[1]) < step and (each / "trainer_state.json").is_file():
            found[int(number[1])] = each
    return found[max(found)] if found else None


def _adapter_before(task: Path) -> Path | None:
    """Find the adapter of the task before one in a run's folder."""
    here = _TASK.fullmatch(task.name)
    number = int(here[1]) - 1 if here else 0
    before = sorted(task.parent.glob(f"{number:02d}-*/adapter")) if number > 0 else []
    return before[0] if before else None
