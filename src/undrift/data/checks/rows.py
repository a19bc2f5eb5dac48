"""Rows: their number, ids, captions; what they hold besides, and whether they show pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from undrift.data.checks.finding import Finding, Item, counted
from undrift.data.checks.split import Split
from undrift.data.files import read_json
from undrift.data.sources import Source


def count_rows(split: Split, published: int) -> Iterator[Finding]:
    """Compare the number of rows with the published one.

    Another number is a note: people have parts of the data, and a part is no mistake.

    Args:
        split: The split.
        published: How many rows were published.

    Yields:
        A note if there are more or fewer.
    """
    if split.rows and split.rows != published:
        said = f"{counted(split.rows, 'row')}, and {published:,} were published"
        advice = "scores compare with published ones on the whole data only"
        yield Finding("count", "note", split.task, split.name, said, advice)


def id_kinds(split: Split) -> Iterator[Finding]:
    """Look for numbers and texts among the ids of one file.

    Our own ids are texts always; code that does not cast them finds no answer to some questions.

    Args:
        split: The split.

    Yields:
        A warning that lists the rarer kind.
    """
    numbers = [(row, value) for row, value in split.ids if isinstance(value, int)]
    texts = [(row, value) for row, value in split.ids if isinstance(value, str)]
    if numbers and texts:
        few, kind = (numbers, "number") if len(numbers) <= len(texts) else (texts, "text")
        items = tuple(Item(repr(value), "", split.file, row) for row, value in few)
        said = f"{counted(len(few), 'id')} of {len(split.ids):,} written as a {kind}"
        advice = "write all of them in one way: other code takes 17 and '17' for two ids"
        yield Finding("id types", "warning", split.task, split.name, said, advice, items)


def repeated_ids(split: Split) -> Iterator[Finding]:
    """Look for questions that share an id.

    Args:
        split: The split.

    Yields:
        An error for questions that are scored; a note for training, where nothing is matched by
        ids and published files repeat them.
    """
    first: dict[str, int] = {}
    items = []
    for asked in split.asked:
        before = first.setdefault(asked.example.id, asked.row)
        if before != asked.row:
            items.append(split.item(asked, f"the id of row {before} as well"))
    if not items:
        return
    said = f"{counted(len(items), 'question')} under an id that is taken"
    if split.name == "train":
        advice = "no harm here: they are told apart as id~2, id~3 ..."
        yield Finding("repeated id", "note", split.task, "train", said, advice, tuple(items))
    else:
        advice = "give each an id of its own: answers are matched by id"
        yield Finding("repeated id", "error", split.task, split.name, said, advice, tuple(items))


def extra_keys(splits: Sequence[Split]) -> Iterator[Finding]:
    """Name what the rows of a task hold that is no part of questions and answers.

    Args:
        splits: The task's.

    Yields:
        A note.
    """
    found = Counter(key for s in splits for asked in s.asked for key in asked.example.extra)
    if found:
        named = ", ".join(f"{key!r} ({count:,})" for key, count in found.most_common())
        said = f"keys that the model is not shown, with how often they are there: {named}"
        yield Finding("extra keys", "note", splits[0].task, "", said)


def no_pictures(splits: Sequence[Split], *, sees: bool) -> Iterator[Finding]:
    """Look for a task without a single picture.

    Args:
        splits: The task's.
        sees: Whether the model that it is for takes pictures.

    Yields:
        A warning if the model sees, a note otherwise.
    """
    asked = [one for split in splits for one in split.asked]
    if asked and not any(one.example.images for one in asked):
        said = "no question shows a picture" + (", and the model takes pictures" if sees else "")
        severity = "warning" if sees else "note"
        advice = "look at one row: is its picture under a key that is read, image or images?"
        yield Finding("no picture", severity, splits[0].task, "", said, advice)


def second_file(source: Source, test: Split) -> Iterator[Finding]:
    """Compare the test rows with the second file that scores them, such as that of captions.

    Args:
        source: The task's files.
        test: Its test split.

    Yields:
        An error for rows that the file does not know, a note for captions that no row asks for.
    """
    if source.annotation is None:
        return
    name, content = source.annotation.name, read_json(source.annotation)
    captions = isinstance(content, dict) and {"images", "annotations"} <= content.keys()
    check = "caption ids" if captions else "annotation"
    if test.unknown:
        said = f"{counted(len(test.unknown), 'row')} that {name} knows nothing about"
        if captions:
            said += f"; it has captions of {counted(_captioned(content), 'picture')}"
            said += f", and there are {counted(test.rows, 'row')}"
        advice = "get the corrected file, or leave the rows out with --skip-bad"
        yield Finding(check, "error", source.name, "test", said, advice, test.unknown)
    if captions and not test.unknown and _captioned(content) > test.rows:
        said = f"{name} has captions of {counted(_captioned(content) - test.rows, 'picture')} more"
        yield Finding(check, "note", source.name, "test", said)


def _captioned(content: Any) -> int:
    """Count the pictures of a file in COCO's form that have a caption."""
    ids = {image["id"] for image in content["images"]}
    return len(ids & {note["image_id"] for note in content["annotations"]})
