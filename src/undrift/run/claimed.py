"""A folder that `undrift eval` keeps answers in: what is there of somebody else's stays.

Beside the answers lies asked.json: which adapter was asked, and which files were written. Only
these are ever written anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from undrift.errors import RunDirError
from undrift.rundir import is_name, read_record, write_json
from undrift.rundir.files import NAME_RULE, remove
from undrift.rundir.records import Asked

_MARK = "asked.json"


def check_names(names: Sequence[str]) -> None:
    """Refuse the names of tasks that could lead out of a folder.

    Args:
        names: From an adapter's record, or from a benchmark.

    Raises:
        RunDirError: If one is no name of a file.
    """
    for name in names:
        if not is_name(name):
            raise RunDirError(f"no file can be called after the task {name!r}: {NAME_RULE}")


def digest(folder: Path, fingerprint: str) -> str:
    """Name an adapter on its backbone by the bytes of its tensors.

    Args:
        folder: The adapter's folder.
        fingerprint: The backbone's.

    Returns:
        Hexadecimal digits.
    """
    made = hashlib.sha256(fingerprint.encode())
    for file in sorted(folder.glob("*.safetensors")):
        made.update(file.read_bytes())
    return made.hexdigest()


def claim(out: Path, names: Sequence[str], adapter: str) -> None:
    """Make sure that answers can be written into a folder without a loss of anything in it.

    What an unfinished examination of another adapter has noted there is deleted.

    Args:
        out: The folder; it is made.
        names: The tasks that are asked.
        adapter: From `digest`.

    Raises:
        RunDirError: If a name cannot be a file's, or if a file of that name is there already which
            `undrift eval` has not written.
    """
    check_names(names)
    mark = out / _MARK
    known = read_record(mark, Asked) if os.path.lexists(mark) else {"adapter": adapter}
    ours = set(known.get("files", ()))
    wanted = [f"{name}{suffix}" for name in names for suffix in (".jsonl", ".part")]
    for file in (out / name for name in wanted if name not in ours):
        if os.path.lexists(file):
            raise RunDirError(
                f"{file} is there, and `undrift eval` has not written it (no word of it in "
                f"{mark}); move it away, or choose another folder with --out"
            )
    if known["adapter"] != adapter:
        for name in ours:
            if name.endswith(".part"):
                remove(out / name)
    write_json(mark, {"adapter": adapter, "files": sorted({*ours, *wanted})})
