"""Other people's files, and the JSON in them: refused where they could hurt, in one line.

A file that is none is an OSError (`NotAFile`), a text that is no JSON or that goes beyond a bound
is a ValueError (`NotJson`); callers add the name of the file.
"""

from __future__ import annotations

from undrift.untrusted.bounded_json import (
    NotJson,
    Refused,
    half_character,
    json_elements,
    json_lines,
    parse_json,
)
from undrift.untrusted.regular import (
    NotAFile,
    is_folder,
    is_regular,
    not_utf8,
    open_regular,
    read_regular,
    read_text,
    strange_kind,
    why,
)

__all__ = [
    "NotAFile",
    "NotJson",
    "Refused",
    "half_character",
    "is_folder",
    "is_regular",
    "json_elements",
    "json_lines",
    "not_utf8",
    "open_regular",
    "parse_json",
    "read_regular",
    "read_text",
    "strange_kind",
    "why",
]
