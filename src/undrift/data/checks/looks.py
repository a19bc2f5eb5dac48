"""What the pictures are like: readable, seen as they are, of good sizes, under their own names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from undrift.data.checks.finding import Finding, Item, counted
from undrift.data.checks.split import Split
from undrift.data.pictures import Change, Survey

TINY = 28  # pixels a side: two patches of 14, the least that vision towers see something in
NARROW = 200  # times as long as wide; Qwen's processors refuse more

Size = tuple[int, int]

_CHANGED: Mapping[Change, tuple[str, str, str]] = {
    "turned": (
        "turned picture",
        "turned as the camera says",
        "the model sees them upright; boxes in their answers should count from that, too",
    ),
    "flattened": (
        "transparent picture",
        "partly transparent, laid on white",
        "what is white on a transparent ground cannot be seen: give such pictures a ground",
    ),
    "scaled": (
        "deep picture",
        "of more than 8 bits, scaled to 8 by the range of their type",
        "where they use a small part of it they are nearly black: save them with 8 bits",
    ),
    "first of several": (
        "several frames",
        "of which the first frame or page is seen, and no other",
        "make a picture of each that matters",
    ),
}
"""By what was done: the check, what is said, and what to do."""


def unreadable_pictures(split: Split, opened: Survey) -> Iterator[Finding]:
    """List the pictures that cannot be opened.

    Args:
        split: The split that shows them.
        opened: What came of opening them.

    Yields:
        An error.
    """
    items = tuple(
        Item(str(path), opened.unreadable[path], split.file, row)
        for path, row in split.pictures().items()
        if path in opened.unreadable
    )
    if items:
        said = f"{counted(len(items), 'picture')} that cannot be opened"
        advice = "mend them, or leave their rows out with --skip-bad"
        yield Finding("unreadable picture", "error", split.task, split.name, said, advice, items)


def changed_pictures(task: str, splits: Iterable[Split], opened: Survey) -> Iterator[Finding]:
    """List the pictures that are not shown to the model as they are stored.

    Args:
        task: The task's name.
        splits: Its splits.
        opened: What came of opening its pictures.

    Yields:
        A note for each kind of change.
    """
    rows: dict[Path, tuple[Path | None, int]] = {}
    for split in splits:
        for path, row in split.pictures().items():
            rows.setdefault(path, (split.file, row))
    for change, (check, said, advice) in _CHANGED.items():
        items = tuple(
            Item(str(path), "", *place)
            for path, place in rows.items()
            if change in opened.changes.get(path, ())
        )
        if items:
            said = f"{counted(len(items), 'picture')} {said}"
            yield Finding(check, "note", task, "", said, advice, items)


def picture_sizes(
    task: str, splits: Iterable[Split], sizes: Mapping[Path, Size]
) -> Iterator[Finding]:
    """Tell the sizes of a task's pictures, and list those that models cannot make much of.

    Args:
        task: The task's name.
        splits: Its splits.
        sizes: Width and height of every picture that can be read.

    Yields:
        Notes on sizes and tiny pictures, a warning about very narrow ones.
    """
    shown: dict[Path, Item] = {}
    for split in splits:
        for path, row in split.pictures().items():
            if path in sizes:
                shown.setdefault(path, Item(str(path), _x(sizes[path]), split.file, row))
    if not shown:
        return
    ordered = sorted((sizes[path] for path in shown), key=lambda size: size[0] * size[1])
    smallest, middle, largest = ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]
    said = f"pictures of {_x(smallest)} to {_x(largest)} pixels, median {_x(middle)}"
    if smallest == largest:
        said = f"pictures of {_x(middle)} pixels"
    yield Finding("picture sizes", "note", task, "", said)
    if tiny := tuple(item for path, item in shown.items() if min(sizes[path]) < TINY):
        said = f"{counted(len(tiny), 'picture')} with a side below {TINY} pixels"
        yield Finding("tiny picture", "note", task, "", said, "they are scaled up", tiny)
    long = [path for path in shown if max(sizes[path]) > NARROW * min(sizes[path])]
    if narrow := tuple(shown[path] for path in long):
        said = f"{counted(len(narrow), 'picture')} more than {NARROW} times as long as wide"
        advice = "cut or pad them: some models refuse such pictures"
        yield Finding("narrow picture", "warning", task, "", said, advice, narrow)


def ambiguous_names(splits: Iterable[Split]) -> Iterator[Finding]:
    """Look for pictures of different folders under one base name.

    Ours are taken by their whole name; public code that falls back to the base name shows the
    wrong picture without a word.

    Args:
        splits: All of them.

    Yields:
        A note.
    """
    places: dict[str, dict[Path, None]] = {}
    for path in {path: None for split in splits for path in split.pictures()}:
        places.setdefault(path.name, {})[path.parent] = None
    several = {name: list(folders) for name, folders in sorted(places.items()) if len(folders) > 1}
    if several:
        items = tuple(
            Item(name, f"in {counted(len(folders), 'folder')}: {', '.join(map(str, folders))}")
            for name, folders in several.items()
        )
        said = f"{counted(len(items), 'file name')} shared by pictures of several folders"
        advice = "no harm here: undrift goes by the whole path; code that does not mixes them up"
        yield Finding("ambiguous name", "note", "", "", said, advice, items)


def _x(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
