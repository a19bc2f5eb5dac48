"""What a run leaves on disk, and how it is written. Works without torch."""

from __future__ import annotations

from undrift.rundir.damage import damaged
from undrift.rundir.files import (
    atomic_file,
    atomic_folder,
    atomic_write,
    check_format,
    read_json,
    read_lines,
    write_json,
    write_lines,
)
from undrift.rundir.given import check_writable, missing
from undrift.rundir.names import is_name
from undrift.rundir.paths import RunDir
from undrift.rundir.record import read_record
from undrift.rundir.records import read_answers
from undrift.rundir.strict import check_regular, text_of

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
