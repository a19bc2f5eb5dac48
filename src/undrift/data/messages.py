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
from undrift.data.row_files import brief, json_of, table_rows
from undrift.errors import DataError, missing_extra
from undrift.rundir import atomic_write
from undrift.untrusted import is_regular, strange_kind

Row = dict[str, Any]
_ROLES = {"user": "human", "assistant": "gpt"}
_PARTS = {"text", "image"}
_SUFFIX = 8  # characters of a name that its suffix is looked for in
_OF_A_DATASET = ("dataset_info.json", "state.json")


def is_dataset(path: Path) -> bool:
    """Tell whether a folder was written by `datasets.Dataset.save_to_disk`."""
    return all(is_regular(path / name) for name in _OF_A_DATASET)


def dataset_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Read the rows of a saved dataset, pictures as they are stored.

    Args:
        path: A folder, see `is_dataset`.

    Yields:
        The number of the row, from 1, and the row, or a `Refused`; keys whose value is null are
        left out.

    Raises:
        MissingExtra: If the library is not installed.
        DataError: If the folder cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "trl", f"reading {path}") from error
    for file in sorted(path.iterdir()):
        if kind := strange_kind(file):
            raise DataError(f"cannot read the dataset {path}: {file.name} is {kind}")
    _check_state(path)
    try:
        rows: Any = datasets.load_from_disk(str(path))
        tables = rows.with_format("arrow").iter(batch_size=256)  # as stored: nothing is decoded
        for number, row in table_rows(tables):
            if isinstance(row, dict):
                row = {key: value for key, value in row.items() if value is not None}
            yield number, row
    except Exception as error:  # the library raises whatever damaged files lead it to
        raise DataError(f"cannot read the dataset {path}: {error}") from error


def _check_state(path: Path) -> None:
    """Refuse a dataset that sends its reader to files elsewhere."""
    state = json_of(path / "state.json")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    files = listed if isinstance(listed, list) else []
    names = [file.get("filename") if isinstance(file, dict) else None for file in files]
    for name in names:
        if not isinstance(name, str) or name != PurePosixPath(name).name:
            raise DataError(
                f"the dataset {path} names a file {brief(name)} that is none of its own; save it "
                "again with Dataset.save_to_disk"
            )


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
        {"from": _speaker(message.get("role")), "value": _said(message)} for message in messages
    ]
    rest = {key: value for key, value in row.items() if key not in ("messages", "images")}
    if images := row.get("images"):
        rest["image"] = images if isinstance(images, list) else [images]
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
    suffix = PurePosixPath(str(stored.get("path") or "")[-_SUFFIX:]).suffix.lower()
    digest = hashlib.sha256(content).hexdigest()
    name = digest + (suffix if suffix.isascii() and suffix[1:].isalnum() else "")
    path = cache_folder() / "pictures" / digest[:2] / name
    if not is_regular(path):
        atomic_write(path, content)
    return path


def _speaker(role: Any) -> Any:
    return _ROLES.get(role, role) if isinstance(role, str) else role


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message; its pictures are taken in the order of `images`."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, Sequence) else [content]:
        known: Mapping[str, Any] = part if isinstance(part, Mapping) else {}
        kind = known.get("type")
        if not isinstance(kind, str) or kind not in _PARTS:
            raise DataError(
                "a message's content should be a text, or parts of text and image; found "
                f"{str(part)[:60]!r}"
            )
        if kind == "text":
            texts.append(_text_of(known.get("text") or ""))
    return "\n".join(filter(None, texts))


def _text_of(text: Any) -> str:
    if not isinstance(text, str):
        raise DataError(f"the text of a message's part should be a text, found {brief(text)}")
    return text
