"""What a run leaves on disk, and how it is written. Works without torch."""

from __future__ import annotations

from undrift.rundir.checks import check_writable, missing
from undrift.rundir.files import (
    atomic_file,
    atomic_folder,
    atomic_write,
    check_format,
    check_regular,
    damaged,
    is_name,
    read_json,
    read_lines,
    text_of,
    write_json,
    write_lines,
)
from undrift.rundir.paths import RunDir
from undrift.rundir.records import read_answers, read_record

__all__ = [
    "RunDir",
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "check_format",
    "check_regular",
    "check_writable",
    "damaged",
    "is_name",
    "missing",
    "read_answers",
    "read_json",
    "read_lines",
    "read_record",
    "text_of",
    "write_json",
    "write_lines",
]
