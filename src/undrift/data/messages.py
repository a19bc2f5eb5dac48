"""Rows of messages with pictures, as TRL's trainers and the `datasets` library keep them.

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]},
                  {"role": "assistant", "content": "B"}],
     "images": [{"bytes": b"..."}]}

Content is a text or a list of parts. `images` (or `image`, one) holds pictures as the library
stores them, bytes inside the file, or their names. What stands inside a file is written once into
the cache, byte for byte, under the digest of its content, since examples name their pictures by
path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from undrift.data.files import cache_folder
from undrift.errors import DataError, missing_extra
from undrift.rundir import atomic_write

Row = dict[str, Any]
_ROLES = {"user": "human", "assistant": "gpt"}
_PARTS = {"text", "image"}
_OF_A_DATASET = ("dataset_info.json", "state.json")


def is_dataset(path: Path) -> bool:
    """Tell whether a folder was written by `datasets.Dataset.save_to_disk`."""
    return all((path / name).is_file() for name in _OF_A_DATASET)


def dataset_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Read the rows of a saved dataset, pictures as they are stored.

    Args:
        path: A folder, see `is_dataset`.

    Yields:
        The number of the row, from 1, and the row; keys whose value is null are left out.

    Raises:
        MissingExtra: If the library is not installed.
        DataError: If the folder cannot be read.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise missing_extra("datasets", "trl", f"reading {path}") from error
    try:
        rows: Any = datasets.load_from_disk(str(path))
        for name, kind in rows.features.items():
            inner = getattr(kind, "feature", kind)
            if isinstance(inner, datasets.Image):
                stored = datasets.Image(decode=False)
                rows = rows.cast_column(name, stored if inner is kind else datasets.List(stored))
        for number, row in enumerate(rows, 1):
            yield number, {key: value for key, value in row.items() if value is not None}
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"cannot read the dataset {path}: {error}") from error


def as_conversation(row: Row, number: int) -> Row:
    """Write a row of messages as a row of conversations, the shape that LLaVA made common.

    Args:
        row: The row; one without `messages` comes back as it is.
        number: Its number, which is its id if it has none.

    Returns:
        The row.

    Raises:
        DataError: If the messages are not turns of a user and an assistant.
    """
    if "messages" not in row:
        return row
    messages = row["messages"]
    if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
        raise DataError(f"messages should be a list of messages, found {str(messages)[:60]!r}")
    turns = [
        {"from": _ROLES.get(message.get("role", ""), message.get("role")), "value": _said(message)}
        for message in messages
    ]
    rest = {key: value for key, value in row.items() if key not in ("messages", "images")}
    if row.get("images"):
        rest["image"] = list(row["images"])
    return {"id": number, **rest, "conversations": turns}


def kept_picture(stored: Mapping[str, Any]) -> Path:
    """Write a picture that stands inside a file into the cache, unless it is there.

    Args:
        stored: The picture as `datasets` stores it: `bytes`, and perhaps the name it had in `path`.

    Returns:
        Its file.

    Raises:
        DataError: If there are no bytes.
    """
    content = stored.get("bytes")
    if not isinstance(content, bytes) or not content:
        raise DataError(
            "a picture of the dataset holds no bytes; save it with the pictures inside "
            "(Dataset.save_to_disk does), or give their names instead"
        )
    suffix = PurePosixPath(str(stored.get("path") or "")).suffix.lower()
    digest = hashlib.sha256(content).hexdigest()
    name = digest + (suffix if suffix[1:].isalnum() else "")
    path = cache_folder() / "pictures" / digest[:2] / name
    if not path.is_file():
        atomic_write(path, content)
    return path


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message; its pictures are taken in the order of `images`."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, Sequence) else [content]:
        if not isinstance(part, Mapping) or part.get("type") not in _PARTS:
            raise DataError(
                "a message's content should be a text, or parts of text and image; found "
                f"{str(part)[:60]!r}"
            )
        if part["type"] == "text":
            texts.append(str(part.get("text") or ""))
    return "\n".join(filter(None, texts))
