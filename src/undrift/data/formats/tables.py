"""Rows of pyarrow's tables, with the names of classes in the place of their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from undrift.untrusted import NotJson, Refused, parse_json

Features = Mapping[str, Any]
"""What `datasets` says about columns, as JSON: {"label": {"names": [...], "_type": ...}, ...}."""

_SHORT = {"float": np.float32, "halffloat": np.float16}


def table_rows(tables: Iterable[Any], features: Features) -> Iterator[tuple[int, Any]]:
    """Take the rows out of tables of pyarrow.

    A number of 32 or 16 bits is the shortest decimal that these bits tell from others, as whoever
    wrote it has seen it: 0.1, and not 0.10000000149011612.

    Args:
        tables: Tables or record batches, one after another.
        features: What is known of their columns.

    Yields:
        The number of each row, from 1, and the row, or a `Refused`.
    """
    named = {key: feature for key, feature in features.items() if _has_names(feature)}
    number = 0
    for table in tables:
        try:
            rows = table.to_pylist()
        except Exception:  # one cell is enough: text that is no UTF-8, a date beyond Python's
            rows = [_row(table.slice(at, 1)) for at in range(table.num_rows)]
        narrow = {field.name: field.type for field in table.schema if _narrow(field.type)}
        for row in rows:
            number += 1
            if narrow and not isinstance(row, Refused):
                row |= {key: _shortest(row[key], kind) for key, kind in narrow.items()}
            yield number, _with_names(row, named) if named else row


def features_of(metadata: Mapping[bytes, bytes] | None) -> Features:
    """Read what `datasets` has noted in the schema of a file; nothing where it has not.

    Args:
        metadata: The schema's.

    Returns:
        The features by column.
    """
    try:
        noted = parse_json((metadata or {}).get(b"huggingface", b"").decode())
        features = noted["info"]["features"]
    except (NotJson, UnicodeDecodeError, LookupError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _row(table: Any) -> Any:
    try:
        return table.to_pylist()[0]
    except Exception as error:
        return Refused(f"it holds a value that cannot be read ({type(error).__name__}: {error})")


def _narrow(kind: Any) -> bool:
    """Tell whether a type of pyarrow is of short floats, or holds such a one."""
    if str(kind) in _SHORT:
        return True
    return any(map(_narrow, _inner(kind).values()))


def _inner(kind: Any) -> dict[str, Any]:
    """The types inside a type, by the names of the fields of a struct."""
    if hasattr(kind, "storage_type"):
        return {"": kind.storage_type}
    if hasattr(kind, "key_type"):
        return {"key": kind.key_type, "value": kind.item_type}
    if hasattr(kind, "value_type"):
        return {"": kind.value_type}
    return {kind.field(at).name: kind.field(at).type for at in range(kind.num_fields)}


def _shortest(value: Any, kind: Any) -> Any:
    """Write short floats anew, wherever in a value of a type they are."""
    if str(kind) in _SHORT:
        return value if value is None else float(str(_SHORT[str(kind)](value)))
    inner = _inner(kind)
    if isinstance(value, dict):
        return {key: _shortest(one, inner[key]) for key, one in value.items()}
    if isinstance(value, tuple):  # of a map
        return tuple(_shortest(one, of) for one, of in zip(value, inner.values(), strict=True))
    if isinstance(value, list):
        within = kind if hasattr(kind, "key_type") else inner[""]
        return [_shortest(one, within) for one in value]
    return _shortest(value, inner[""]) if "" in inner and value is not None else value


def _has_names(feature: Any) -> bool:
    """Tell whether a feature is of classes, or holds such a one."""
    if isinstance(feature, list):
        return any(map(_has_names, feature))
    if not isinstance(feature, dict):
        return False
    return feature.get("_type") == "ClassLabel" or any(map(_has_names, feature.values()))


def _with_names(row: Any, features: Features) -> Any:
    if isinstance(row, Refused):
        return row
    try:
        return {
            key: _named(value, features[key]) if key in features else value
            for key, value in row.items()
        }
    except (LookupError, TypeError, AttributeError):
        return Refused("it holds a number of a class that has no name")


def _named(value: Any, feature: Any) -> Any:
    """Put names in the place of numbers; -1 is how `datasets` writes that there is no class."""
    if value is None or not _has_names(feature):
        return value
    if isinstance(feature, list):
        return [_named(one, feature[0]) for one in value]
    if feature.get("_type") == "ClassLabel":
        return None if value == -1 else feature["names"][range(len(feature["names"]))[value]]
    if "feature" in feature and isinstance(value, list):
        return [_named(one, feature["feature"]) for one in value]
    inner = feature.get("feature", feature)
    return {key: _named(one, inner.get(key)) for key, one in value.items()}
