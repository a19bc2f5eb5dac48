"""The reader of our JSON files: each holds a record, and a record is checked before it is used.

A value of another kind is refused and never turned into what was expected, a missing key is
refused, and a key that is not known is left alone: a later version may have added it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from undrift.rundir.damage import damaged
from undrift.rundir.files import read_json
from undrift.rundir.names import RULE, is_name
from undrift.rundir.strict import short


def _checked_name(value: str) -> str:
    if not is_name(value):
        raise ValueError(f"no name of a file: {RULE}")
    return value


def _plain_path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("no path")
    return value


Name = Annotated[str, AfterValidator(_checked_name)]
"""What becomes a part of a path."""

Place = Annotated[str, AfterValidator(_plain_path)]
"""A path that is read and never written."""

Number = float | None


class Record(BaseModel):
    """The base of all: nothing is converted, what is not known is left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def read_record(path: Path, kind: type[Record]) -> dict[str, Any]:
    """Read one of our JSON files.

    Args:
        path: The file.
        kind: What it should hold.

    Returns:
        Its content as it stands there, without the format.

    Raises:
        RunDirError: If it cannot be read, or holds something else; the message names the key.
    """
    value = read_json(path)
    check(path, value, TypeAdapter(kind))
    return value


def check(
    path: Path,
    value: Any,
    adapter: TypeAdapter[Any],
    place: Sequence[str | int] = (),
    *,
    as_json: bool = False,
) -> None:
    """Hold a value of a file against what it should be.

    Args:
        path: The file, for the message.
        value: The value.
        adapter: What it should be.
        place: Where in the file it stands.
        as_json: Take lists for tuples and objects for classes, as JSON has nothing else.

    Raises:
        RunDirError: If it is something else; the first fault is told.
    """
    try:
        if as_json:
            adapter.validate_json(json.dumps(value), strict=True)
        else:
            adapter.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        tags = {"benchmark", "files", "function-after"}
        parts = [str(part) for part in (*place, *problem["loc"]) if part not in tags]
        said = problem["msg"].removeprefix("Value error, ").lower()
        got = "" if problem["type"] == "missing" else f" (got {short(problem['input'])})"
        where = ".".join(parts)
        raise damaged(path, f"{where}: {said}{got}" if where else f"{said}{got}") from error
