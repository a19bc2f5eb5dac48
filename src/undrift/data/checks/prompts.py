"""Prompts: does each end in the line that says how to answer, once, and the same in both splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from undrift.data.checks.finding import Finding, counted
from undrift.data.checks.split import Asked, Split

SHARED = 0.75  # of the prompts end in a line: then it is the format line, and others lack it


def format_line(splits: Iterable[Split]) -> str | None:
    """Return the last line that most prompts share, such as "Answer with a single word.".

    Args:
        splits: Where to look.

    Returns:
        The line; None if fewer than `SHARED` end in one line behind at least one other.
    """
    questions = [_lines(asked) for split in splits for asked in split.asked]
    ends = Counter(lines[-1] for lines in questions if len(lines) > 1)
    for line, count in ends.most_common(1):
        return line if count >= SHARED * len(questions) else None
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
    found = {line for line in own.values() if line is not None}
    if len(found) > 1:
        said = "; ".join(f"{name} prompts end in {line!r}" for name, line in own.items() if line)
        advice = "ask as you train, or else format is forgotten before anything is learned"
        yield Finding("format differs", "warning", splits[0].task, "", said, advice)
    whole = found.pop() if len(found) == 1 else format_line(splits)
    for split in splits:
        yield from _lacking(split, own[split.name] or whole)
        yield from _doubled(split, own[split.name] or whole)


def _lacking(split: Split, line: str | None) -> Iterator[Finding]:
    items = tuple(
        split.item(asked, f"ends in {lines[-1]!r}")
        for asked in split.asked
        if line is not None and (lines := _lines(asked))[-1] != line
    )
    if items:
        said = f"{counted(len(items), 'prompt')} without the last line of the others, {line!r}"
        advice = "add it, or the model is asked in a form that it does not know"
        yield Finding("format line", "warning", split.task, split.name, said, advice, items)


def _doubled(split: Split, line: str | None) -> Iterator[Finding]:
    items = tuple(
        split.item(asked, f"twice {lines[-1]!r}")
        for asked in split.asked
        if (lines := _lines(asked))[-2:-1] == lines[-1:]
        or (line is not None and asked.example.question.count(line) > 1)
    )
    if items:
        said = f"{counted(len(items), 'prompt')} with the last line twice"
        advice = "leave one: a suffix may have been added to prompts that had it"
        yield Finding("format line twice", "warning", split.task, split.name, said, advice, items)


def _lines(asked: Asked) -> list[str]:
    return [line.strip() for line in asked.example.question.splitlines() if line.strip()]
