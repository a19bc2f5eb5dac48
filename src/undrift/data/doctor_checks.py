"""What can be wrong with data before it is learned: each check gives findings about splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from undrift.data.instructions import TaskFiles
from undrift.data.picture_decoding import Change, Survey
from undrift.data.row_files import read_json
from undrift.data.tell_tasks import EXAMPLES, text_features, told_apart
from undrift.data.types import Example
from undrift.errors import DataError, UndriftError
from undrift.scoring import TASKS, check_scorer, copy_fault, kind_of_answer
from undrift.scoring.boxes import find_box
from undrift.untrusted import is_regular, open_regular

Severity = Literal["error", "warning", "note"]
"""An error stops a run or spoils its scores, a warning makes its numbers mean something else than
one thinks, and a note is worth knowing."""

Size = tuple[int, int]

PROFILE = "coin"  # the rules of a published task that a run goes by unless it is told otherwise
SHARED = 0.75  # of the prompts end in a line: then it is the format line, and others lack it
TINY = 28  # pixels a side: two patches of 14, the least that vision towers see something in
NARROW = 200  # times as long as wide; Qwen's processors refuse more

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
        items = [
            {**item._asdict(), "file": None if item.file is None else str(item.file)}
            for item in self.items
        ]
        content = {key: value for key, value in vars(self).items() if key != "items"}
        return {**content, "count": len(items), "items": items}


TOLD_BY_TEXT = "tasks told by text"
"""The check of `told_by_text`: a warning about what results can show, with data that is sound."""
TOLD = 0.95  # of the questions named by their text: then a router needs no picture
LEAST = 10  # questions of a task on each side, below which a probe says nothing
_RULE = "a linear probe on the words of other questions names the task of"


class RowQuestion(NamedTuple):
    """A question, and the row that it stands in."""

    row: int
    example: Example


@dataclass(frozen=True)
class Split:
    """One split of one task.

    Args:
        task: The task's name.
        name: "train", "validation" or "test".
        file: What it was read from; None if only the benchmark's own code knows.
        rows: How many rows there are, bad ones included.
        questions: Those of the rows that can be read, also where a picture is missing.
        ids: The ids as they are in the file, by row.
        absent: Pictures that are not there, or not in the folder of the pictures.
        unknown: Test rows that the second file knows nothing about.
        max_new_tokens: How long an answer may get.
        scorer: How answers are scored.
    """

    task: str
    name: str
    file: Path | None
    rows: int
    questions: tuple[RowQuestion, ...]
    ids: tuple[tuple[int, int | str], ...] = ()
    absent: frozenset[Path] = frozenset()
    unknown: tuple[Item, ...] = ()
    max_new_tokens: int = 128
    scorer: str = "exact"

    def item(self, question: RowQuestion, reason: str = "") -> Item:
        """Return the place of a question."""
        return Item(question.example.id, reason, self.file, question.row)

    def pictures(self) -> dict[Path, int]:
        """Return each picture that is there, with the first row that shows it."""
        shown = first_rows(self.questions)
        return {path: row for path, row in shown.items() if path not in self.absent}


def first_rows(questions: Iterable[RowQuestion]) -> dict[Path, int]:
    """Return each picture with the first row that shows it."""
    rows: dict[Path, int] = {}
    for row, example in questions:
        for path in example.images:
            rows.setdefault(path, row)
    return rows


def found(
    about: Split | str,
    check: str,
    severity: Severity,
    items: Sequence[Item],
    thing: str,
    message: str,
    advice: str = "",
) -> Iterator[Finding]:
    """Yield a finding about a split or a task, if there are places of it; it says how many."""
    task, split = (about.task, about.name) if isinstance(about, Split) else (about, "")
    if items:
        message = f"{counted(len(items), thing)} {message}"
        yield Finding(check, severity, task, split, message, advice, tuple(items))


def counted(number: int, thing: str) -> str:
    """Write a number with what it counts: "1 row", "2,999 rows"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


# ------------------------------------------------------------ rows


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
        message = f"{counted(split.rows, 'row')}, and {published:,} were published"
        advice = "scores compare with published ones on the whole data only"
        yield Finding("count", "note", split.task, split.name, message, advice)


def id_kinds(split: Split) -> Iterator[Finding]:
    """Look for numbers and texts among the ids of one file; a warning lists the rarer kind.

    Our own ids are texts always; code that does not cast them finds no answer to some questions.

    Args:
        split: The split.

    Yields:
        The warning.
    """
    numbers = [(row, value) for row, value in split.ids if isinstance(value, int)]
    texts = [(row, value) for row, value in split.ids if isinstance(value, str)]
    few, kind = (numbers, "number") if len(numbers) <= len(texts) else (texts, "text")
    items = [Item(repr(value), "", split.file, row) for row, value in few]
    message = f"of {len(split.ids):,} written as a {kind}"
    advice = "write all of them in one way: other code takes 17 and '17' for two ids"
    yield from found(split, "id types", "warning", items, "id", message, advice)


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
    for question in split.questions:
        before = first.setdefault(question.example.id, question.row)
        if before != question.row:
            items.append(split.item(question, f"the id of row {before} as well"))
    severity, advice = "error", "give each an id of its own: answers are matched by id"
    if split.name == "train":
        severity, advice = "note", "no harm here: they are told apart as id~2, id~3 ..."
    message = "under an id that is taken"
    yield from found(split, "repeated id", severity, items, "question", message, advice)


def extra_keys(splits: Sequence[Split]) -> Iterator[Finding]:
    """Note what the rows of a task hold that is no part of questions and answers."""
    found = Counter(key for s in splits for one in s.questions for key in one.example.extra)
    if found:
        named = ", ".join(f"{key!r} ({count:,})" for key, count in found.most_common())
        message = f"keys that the model is not shown, with how often they are there: {named}"
        yield Finding("extra keys", "note", splits[0].task, "", message)


def no_pictures(splits: Sequence[Split], *, sees: bool) -> Iterator[Finding]:
    """Look for a task without a single picture.

    Args:
        splits: The task's.
        sees: Whether the model that it is for takes pictures.

    Yields:
        A warning if the model sees, a note otherwise.
    """
    questions = [one for split in splits for one in split.questions]
    if questions and not any(one.example.images for one in questions):
        message = "no question shows a picture" + (", and the model takes pictures" if sees else "")
        severity = "warning" if sees else "note"
        advice = "look at one row: is its picture under a key that is read, image or images?"
        yield Finding("no picture", severity, splits[0].task, "", message, advice)


def second_file(source: TaskFiles, test: Split) -> Iterator[Finding]:
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
    message = f"that {name} knows nothing about"
    if captions:
        ids = {image["id"] for image in content["images"]}
        captioned = len(ids & {note["image_id"] for note in content["annotations"]})
        message += f"; it has captions of {counted(captioned, 'picture')}"
        message += f", and there are {counted(test.rows, 'row')}"
        if not test.unknown and captioned > test.rows:
            more = f"{name} has captions of {counted(captioned - test.rows, 'picture')} more"
            yield Finding(check, "note", source.name, "test", more)
    advice = "get the corrected file, or leave the rows out with --skip-bad"
    yield from found(test, check, "error", test.unknown, "row", message, advice)


# ------------------------------------------------------------ prompts


def format_line(splits: Iterable[Split]) -> str | None:
    """Return the last line that most prompts share, such as "Answer with a single word.".

    Args:
        splits: Where to look.

    Returns:
        The line; None if fewer than `SHARED` end in one line behind at least one other.
    """
    prompts = [_lines(question) for split in splits for question in split.questions]
    ends = Counter(lines[-1] for lines in prompts if len(lines) > 1)
    for line, count in ends.most_common(1):
        return line if count >= SHARED * len(prompts) else None
    return None


def format_lines(splits: list[Split]) -> Iterator[Finding]:
    """Look for prompts without the format line, with two of it, and for splits that differ in it.

    Data whose prompts share no line, as those with many wordings, has nothing to be missed.

    Args:
        splits: The splits of one task.

    Yields:
        Warnings.
    """
    own = {split.name: format_line([split]) for split in splits}
    ends = {line for line in own.values() if line is not None}
    if len(ends) > 1:
        message = "; ".join(f"{name} prompts end in {line!r}" for name, line in own.items() if line)
        advice = "ask as you train, or else format is forgotten before anything is learned"
        yield Finding("format differs", "warning", splits[0].task, "", message, advice)
    whole = ends.pop() if len(ends) == 1 else format_line(splits)
    for split in splits:
        line = own[split.name] or whole
        lacking, doubled = list[Item](), list[Item]()
        for question in split.questions:
            lines = _lines(question)
            if line is not None and lines[-1] != line:
                lacking.append(split.item(question, f"ends in {lines[-1]!r}"))
            repeated = line is not None and question.example.question.count(line) > 1
            if lines[-2:-1] == lines[-1:] or repeated:
                doubled.append(split.item(question, f"twice {lines[-1]!r}"))
        message = f"without the last line of the others, {line!r}"
        advice = "add it, or the model is asked in a form that it does not know"
        yield from found(split, "format line", "warning", lacking, "prompt", message, advice)
        message = "with the last line twice"
        advice = "leave one: a suffix may have been added to prompts that had it"
        yield from found(split, "format line twice", "warning", doubled, "prompt", message, advice)


def _lines(question: RowQuestion) -> list[str]:
    return [line.strip() for line in question.example.question.splitlines() if line.strip()]


# ------------------------------------------------------------ answers


def scored_answers(splits: Sequence[Split]) -> Iterator[Finding]:
    """Score every answer of a task with itself as the prediction.

    Args:
        splits: The splits of one task.

    Yields:
        Errors for a scorer that is not there, for answers that it cannot use, for those of which
        even a perfect copy is wrong (of a published rule, which is as it is, a note), and for boxes
        in several units; a warning about captions that cannot be measured.
    """
    scorer, task = splits[0].scorer, splits[0].task
    try:
        check_scorer(scorer)
    except UndriftError as error:
        yield Finding("scorer", "error", task, "", str(error), "no answer was scored")
        return
    for split in splits:
        if scorer not in TASKS or split.name != "train":  # published training data lacks what
            yield from _copies(split)  # some rules want, and is never scored
    kind = kind_of_answer(scorer, ())
    if kind == "box":
        yield from _units(splits)
    for split in splits:
        if kind == "caption" and split.name != "train" and len(split.questions) == 1:
            message = "a single caption is asked for: its CIDEr is 0 whatever is said"
            yield Finding("single caption", "warning", task, split.name, message, "ask for more")


def _copies(split: Split) -> Iterator[Finding]:
    known = dict[tuple[str, ...], tuple[str, bool]]()  # many examples share their answers
    useless, wrong = list[Item](), list[Item]()
    scorer, published = split.scorer, split.scorer in TASKS
    for question in split.questions:
        answers = question.example.answers
        if published or answers not in known:  # published rules look at more than the answers
            known[answers] = _fault(scorer, question.example)
        reason, unusable = known[answers]
        if reason:
            (useless if unusable else wrong).append(split.item(question, reason))
    message = f"that the scorer {scorer} cannot use"
    advice = "mend them, or name another scorer: a run would stop when it scores them"
    yield from found(split, "answer", "error", useless, "answer", message, advice)
    message, severity = "of which even a perfect copy is not right", "error"
    advice = f"write them as the scorer {scorer} reads them, or name another scorer"
    if published:
        severity = "note"
        advice = f"the public rule of {scorer} is so, and published numbers have it too"
    yield from found(split, "perfect copy", severity, wrong, "answer", message, advice)


def _fault(scorer: str, example: Example) -> tuple[str, bool]:
    """Say what is wrong with a copy of an answer, and whether the answer cannot be used at all."""
    extra = {"question": example.question, **example.extra}
    try:
        return copy_fault(scorer, example.answers, extra, PROFILE) or "", False
    except DataError as error:
        return str(error), True


def _units(splits: Sequence[Split]) -> Iterator[Finding]:
    sides: dict[bool, list[Item]] = {True: [], False: []}
    for split in splits:
        for question in split.questions:
            for made in filter(None, map(find_box, question.example.answers)):
                words = f"{split.name}: {', '.join(f'{corner:g}' for corner in made)}"
                sides[made.shares].append(split.item(question, words))
    few, many = sorted(sides.values(), key=len)
    message = f"with a box in other units than {len(many):,} others: one side lies within 0..1, "
    message += "the other beyond"
    advice = "write all of a task's boxes in one unit: scores compare numbers as they stand"
    yield from found(splits[0].task, "box units", "error", few, "answer", message, advice)


# ------------------------------------------------------------ questions that were trained on


def overlap(train: Split, other: Split) -> Iterator[Finding]:
    """Compare a split with the training split: the same words about the same picture.

    Two pictures are the same if they are one file, or if their files hold the same bytes. A picture
    that was saved anew, in another size or format, is not recognised.

    Args:
        train: The training split.
        other: What is asked.

    Yields:
        A warning that lists the same questions about the same picture, and a note that lists other
        questions about pictures that were trained on.
    """
    alike = same_files({*train.pictures(), *other.pictures()})

    def asked(example: Example) -> tuple[tuple[Path, ...], str]:
        images = tuple(alike.get(path, path) for path in example.images)
        return images, " ".join(example.question.split())

    learned = dict[tuple[tuple[Path, ...], str], int]()
    seen = dict[Path, int]()
    for row, example in train.questions:
        images, words = asked(example)
        learned.setdefault((images, words), row)
        for path in images:
            seen.setdefault(path, row)
    same, shared = list[Item](), list[Item]()
    for question in other.questions:
        images, words = asked(question.example)
        if row := learned.get((images, words)):
            same.append(other.item(question, f"row {row} of train asks the same"))
        elif rows := [seen[path] for path in images if path in seen]:
            shared.append(other.item(question, f"its picture is in row {rows[0]} of train"))
    message = f"trained on already, of {len(other.questions):,}"
    advice = "leave them out of one side, or say so beside the scores"
    yield from found(other, "overlap", "warning", same, "question", message, advice)
    message = "about a picture that train asks something else"
    yield from found(other, "shared picture", "note", shared, "question", message)


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


# ------------------------------------------------------------ pictures


def unreadable_pictures(split: Split, opened: Survey) -> Iterator[Finding]:
    """List the pictures of a split that cannot be opened, as an error."""
    items = [
        Item(str(path), opened.unreadable[path], split.file, row)
        for path, row in split.pictures().items()
        if path in opened.unreadable
    ]
    message, advice = "that cannot be opened", "mend them, or leave their rows out with --skip-bad"
    yield from found(split, "unreadable picture", "error", items, "picture", message, advice)


def changed_pictures(splits: Sequence[Split], opened: Survey) -> Iterator[Finding]:
    """List the pictures that are not shown to the model as they are stored.

    Args:
        splits: The splits of one task.
        opened: What came of opening its pictures.

    Yields:
        A note for each kind of change.
    """
    places = _first_places(splits)
    for change, (check, what, advice) in _CHANGED.items():
        paths = [path for path in places if change in opened.changes.get(path, ())]
        items = [Item(str(path), "", *places[path]) for path in paths]
        yield from found(splits[0].task, check, "note", items, "picture", what, advice)


def picture_sizes(splits: Sequence[Split], sizes: Mapping[Path, Size]) -> Iterator[Finding]:
    """Tell the sizes of a task's pictures, and list those that models cannot make much of.

    Args:
        splits: The splits of one task.
        sizes: Width and height of every picture that can be read.

    Yields:
        Notes on sizes and tiny pictures, a warning about very narrow ones.
    """
    task = splits[0].task
    shown = {
        path: Item(str(path), _x(sizes[path]), *place)
        for path, place in _first_places(splits).items()
        if path in sizes
    }
    if not shown:
        return
    ordered = sorted((sizes[path] for path in shown), key=lambda size: size[0] * size[1])
    smallest, middle, largest = ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]
    message = f"pictures of {_x(smallest)} to {_x(largest)} pixels, median {_x(middle)}"
    if smallest == largest:
        message = f"pictures of {_x(middle)} pixels"
    yield Finding("picture sizes", "note", task, "", message)
    tiny = [item for path, item in shown.items() if min(sizes[path]) < TINY]
    message = f"with a side below {TINY} pixels"
    yield from found(task, "tiny picture", "note", tiny, "picture", message, "they are scaled up")
    long = [path for path in shown if max(sizes[path]) > NARROW * min(sizes[path])]
    narrow = [shown[path] for path in long]
    message = f"more than {NARROW} times as long as wide"
    advice = "cut or pad them: some models refuse such pictures"
    yield from found(task, "narrow picture", "warning", narrow, "picture", message, advice)


def _first_places(splits: Iterable[Split]) -> dict[Path, tuple[Path | None, int]]:
    """Return each picture with the first file and row that shows it."""
    places: dict[Path, tuple[Path | None, int]] = {}
    for split in splits:
        for path, row in split.pictures().items():
            places.setdefault(path, (split.file, row))
    return places


def ambiguous_names(splits: Iterable[Split]) -> Iterator[Finding]:
    """Note pictures of different folders under one base name.

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
    items = [
        Item(name, f"in {counted(len(folders), 'folder')}: {', '.join(map(str, folders))}")
        for name, folders in sorted(places.items())
        if len(folders) > 1
    ]
    message = "shared by pictures of several folders"
    advice = "no harm here: undrift goes by the whole path; code that does not mixes them up"
    yield from found("", "ambiguous name", "note", items, "file name", message, advice)


def _x(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def told_by_text(splits: Iterable[Split]) -> list[Finding]:
    """Measure how well the text of a question names its task, where several have enough of them."""
    by_task: dict[str, dict[str, Sequence[str]]] = {}
    for split in splits:
        texts = [f"{q.example.system}\n{q.example.question}" for q in split.questions]
        by_task.setdefault(split.task, {})[split.name] = texts
    fitted, asked = dict[str, Sequence[str]](), dict[str, Sequence[str]]()
    for task, texts in by_task.items():
        rows = texts.get("train", ())
        test = texts.get("test") or rows[1::2]
        rows = rows if texts.get("test") else rows[::2]
        if min(len(rows), len(test)) >= LEAST:
            fitted[task], asked[task] = _some(rows), _some(test)
    if len(fitted) < 2:
        return []
    shares = told_apart(*([text_features(t) for t in side.values()] for side in (fitted, asked)))
    mean = fmean(shares)
    message = f"{_RULE} {100 * mean:.1f} % of the test's ({100 / len(shares):.0f} % by chance)"
    items = tuple(
        Item(task, f"{100 * share:.1f} %") for task, share in zip(fitted, shares, strict=True)
    )
    if mean <= TOLD:
        return [Finding(TOLD_BY_TEXT, "note", "", "", message, items=items)]
    advice = "routing results on this sequence prove little about pictures; the data is sound"
    return [Finding(TOLD_BY_TEXT, "warning", "", "", message, advice, items)]


def _some(texts: Sequence[str]) -> Sequence[str]:
    step = max(1, len(texts) // EXAMPLES)
    return texts[::step][:EXAMPLES]
