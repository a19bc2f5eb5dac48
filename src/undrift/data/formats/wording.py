"""What readers of rows have in common: how rows come, and how a value is named in a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Rows = Iterator[tuple[int, Any]]


def short(value: Any) -> str:
    """Say what a value is, in a few words."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(brief, list(value)[:5])) or '(none)'}"
    return f"{type(value).__name__} {brief(str(value))}"


def brief(value: Any) -> str:
    """Write a value as Python does, its first 60 characters."""
    text = repr(value[:60] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:60]}..."
