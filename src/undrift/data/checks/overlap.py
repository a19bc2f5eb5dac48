"""Questions of the test that were trained on: the same words about the same picture.

Two pictures are the same if they are one file, or if their files hold the same bytes. A picture
that was saved anew, in another size or format, is not recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from undrift.data.checks.finding import Finding, counted
from undrift.data.checks.split import Split
from undrift.untrusted import is_regular, open_regular


def overlap(train: Split, other: Split) -> Iterator[Finding]:
    """Compare a split with the training split.

    Args:
        train: The training split.
        other: What is asked.

    Yields:
        A warning that lists the same questions about the same picture, and a note that lists other
        questions about pictures that were trained on.
    """
    alike = same_files({*train.pictures(), *other.pictures()})
    learned: dict[tuple[tuple[Path, ...], str], int] = {}
    seen: dict[Path, int] = {}
    for row, example in train.asked:
        images = tuple(alike.get(path, path) for path in example.images)
        learned.setdefault((images, _words(example.question)), row)
        for path in images:
            seen.setdefault(path, row)
    same, shared = [], []
    for asked in other.asked:
        images = tuple(alike.get(path, path) for path in asked.example.images)
        key = (images, _words(asked.example.question))
        if key in learned:
            same.append(other.item(asked, f"row {learned[key]} of train asks the same"))
        elif rows := [seen[path] for path in images if path in seen]:
            shared.append(other.item(asked, f"its picture is in row {rows[0]} of train"))
    if same:
        said = f"{counted(len(same), 'question')} trained on already, of {len(other.asked):,}"
        advice = "leave them out of one side, or say so beside the scores"
        yield Finding("overlap", "warning", other.task, other.name, said, advice, tuple(same))
    if shared:
        said = f"{counted(len(shared), 'question')} about a picture that train asks something else"
        yield Finding("shared picture", "note", other.task, other.name, said, "", tuple(shared))


def same_files(paths: Iterable[Path]) -> dict[Path, Path]:
    """Find files that hold the same bytes; only those of one length are read.

    Args:
        paths: Files.

    Returns:
        For each that is not the first of its kind (by name), the first.
    """
    lengths: dict[int, list[Path]] = {}
    for path in sorted(paths):
        if is_regular(path):
            lengths.setdefault(path.stat().st_size, []).append(path)
    first: dict[str, Path] = {}
    alike = {}
    for group in lengths.values():
        for path in group if len(group) > 1 else ():
            try:
                with open_regular(path) as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:  # listed among the pictures that cannot be opened
                continue
            if first.setdefault(content, path) != path:
                alike[path] = first[content]
    return alike


def _words(question: str) -> str:
    return " ".join(question.split())
