"""What a run leaves on disk, and how it is written. Works without torch."""

from __future__ import annotations

from undrift.rundir.files import (
    atomic_folder,
    atomic_write,
    read_json,
    read_lines,
    write_json,
    write_lines,
)
from undrift.rundir.paths import RunDir

__all__ = [
    "RunDir",
    "atomic_folder",
    "atomic_write",
    "read_json",
    "read_lines",
    "write_json",
    "write_lines",
]
