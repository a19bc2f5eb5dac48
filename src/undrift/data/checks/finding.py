"""A finding: what is wrong, how bad that is, what to do, and every place where it is so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
"""An error stops a run or spoils its scores, a warning makes its numbers mean something else than
one thinks, and a note is worth knowing."""


class Item(NamedTuple):
    """One place of a finding.

    Args:
        what: The example, the picture, the name ... that it is about.
        reason: What is wrong with this one, where that differs from place to place.
        file: The file it stands in, if it is one place in a file.
        row: Its number there, from 1.
    """

    what: str
    reason: str = ""
    file: Path | None = None
    row: int | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        check: What was looked for, in a word or three.
        severity: How bad it is.
        task: The task; empty if it is about several.
        split: "train", "validation" or "test"; empty if it is about several.
        message: What was found, in one sentence.
        advice: What to do about it.
        items: All places, none left out.
    """

    check: str
    severity: Severity
    task: str
    split: str
    message: str
    advice: str = ""
    items: tuple[Item, ...] = ()

    def content(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "check": self.check,
            "severity": self.severity,
            "task": self.task,
            "split": self.split,
            "message": self.message,
            "advice": self.advice,
            "count": len(self.items),
            "items": [
                {**item._asdict(), "file": None if item.file is None else str(item.file)}
                for item in self.items
            ],
        }


def counted(number: int, thing: str) -> str:
    """Write a number with what it counts: "1 row", "2,999 rows"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
