"""Why runs have forgotten what they have, in words for a person who does not know the method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from undrift.report.forms import OTHER_NOTATION, Slip

SMALL = 0.05
"""Points below which a number is printed as 0.0."""

CLEAR = 1.0
"""Points from which a loss is shared out in percent; a share of less is a share of noise."""

LOOK_ALIKE = 1 / 3
"""Of the wrong answers, and at least FEW, look like those of one later task: worth saying."""

FEW = 3
SHORT = 30
"""Characters of an answer that is shown as an example."""

Parts = Mapping[str, float | None]
"""`router`, `expert`, `form` and `content` in points, None where not known."""

_COST = {
    "expert": "because {its} experts changed",
    "router": "because {its} router sends {old} inputs elsewhere",
    "content": "in content",
    "form": "in form alone",
}
_WON = {
    "expert": "that the change of the experts won back",
    "router": "that the change of the router won back",
    "content": "of content that came back",
    "form": "that form alone no longer costs",
}
_ERRORS = {
    "case": "letter case",
    "not a number": "words for numbers",
    OTHER_NOTATION: "another notation",
}


def of_task(
    name: str,
    learned: float,
    lost: float,
    parts: Parts,
    changed: str,
    *,
    judged: bool,
    alone: Mapping[Slip, int],
    worn: Mapping[str, int],
    wrong: int,
) -> str:
    """Say what a task has lost and why.

    Args:
        name: The task's name.
        learned: Its score when it had just been learned.
        lost: What it has lost since, in points.
        parts: What the loss is made of.
        changed: What there was to change: "router and experts", "router", "experts", or "" where
            it was not diagnosed.
        judged: Whether content and form can be told apart, which they cannot in captions.
        alone: The answers at the end whose content is right and whose form is wrong.
        worn: Which later tasks' answers the wrong ones at the end look like.
        wrong: How many are wrong at the end.

    Returns:
        A sentence without its full stop.
    """
    if abs(lost) < SMALL:
        return f"{name} kept its {learned:.1f} points"
    if lost < 0:
        return f"{name} gained {-lost:.1f} points"
    words = _words({changed}, its="the", old="its")
    if not judged:
        words["content"] = "in content or form, which are not told apart in captions"
    if alone:
        words["form"] += f" ({_kinds(alone)})"
    sentence = f"{name} lost {lost:.1f} points{_because(lost, parts, words)}"
    other, count = max(worn.items(), key=lambda item: item[1], default=("", 0))
    if count >= max(FEW, LOOK_ALIKE * wrong):
        sentence += f"; {count} of the {wrong} wrong answers look like those of {other}"
    return sentence


def of_run(label: str, learned: float, lost: float, parts: Parts, changed: Collection[str]) -> str:
    """Say what a run has forgotten and why.

    Args:
        label: Its name.
        learned: The mean score of its tasks, but the last, when they had just been learned.
        lost: The mean of what they have lost since, in points.
        parts: What that is made of.
        changed: As for `of_task`, of all tasks.

    Returns:
        A sentence; shares in percent where the loss is clear and nothing was won back.
    """
    had = f"the {learned:.1f} points that it had just learned"
    if lost < SMALL:
        return f"{label} {_little(lost, had)}."
    words = _words(changed, its="its", old="old")
    if lost >= CLEAR and all((points or 0.0) > -SMALL for points in parts.values()):
        for part, points in parts.items():
            words[part] += f" ({100 * (points or 0.0) / lost:.0f} %)"
    return f"{label} forgets {lost:.1f} of {had}{_because(lost, parts, words)}."


def of_all_examples(lost: float) -> str:
    """Say what the loss is where only some of the test examples were diagnosed.

    Args:
        lost: The loss of all examples, in points.

    Returns:
        A sentence to stand behind that of the run.
    """
    return f" (That is of the examples that were diagnosed; of all test examples it is {lost:.1f}.)"


def nothing_to_explain(label: str, *, trained: bool) -> str:
    """Say why there is no loss to explain.

    Args:
        label: The run's name.
        trained: Whether anything was trained.

    Returns:
        A sentence.
    """
    if not trained:
        return f"{label} was not trained, so there is nothing that it could forget."
    return (
        f"{label} has no scores of tasks just learned, so there is nothing to compare the end with."
    )


def verdict(sentence: str, others: Sequence[tuple[str, float, float]]) -> str:
    """Compare runs, the most forgetful first.

    Args:
        sentence: What is said of the most forgetful one.
        others: Label, points learned and points lost of each of the others.

    Returns:
        A few sentences.
    """
    rest = [
        f"{label} {_little(lost, f'{had:.1f}')}"
        if lost < SMALL
        else f"{label} forgets {lost:.1f} of {had:.1f}"
        for label, had, lost in others
    ]
    return " ".join([sentence, f"{'; '.join(rest)}." if rest else ""]).strip()


def _little(lost: float, had: str) -> str:
    return f"gains {-lost:.1f} on {had}" if lost <= -SMALL else f"forgets nothing of {had}"


def _words(changed: Collection[str], its: str, old: str) -> dict[str, str]:
    words = {part: text.format(its=its, old=old) for part, text in _COST.items()}
    if set(changed) == {"experts"}:  # there is no router, so these are all weights that there are
        words["expert"] = f"because {its} weights changed"
    if set(changed) == {"router"}:
        words["router"] += f", while {its} experts stayed the same"
    return words


def _because(lost: float, parts: Parts, words: Mapping[str, str]) -> str:
    """List the parts of a loss, the largest first, then what was won back."""
    known = ("router", "expert", "form")
    if parts.get("expert") is None:
        known = ("content", "form")
    points = {key: part for key in known if (part := parts.get(key)) and abs(part) >= SMALL}
    ordered = sorted(points, key=lambda key: -points[key])
    if len(ordered) == 1 and abs(points[ordered[0]] - lost) < SMALL:
        return f", all {words[ordered[0]]}"
    cost = [f"{points[key]:.1f} {words[key]}" for key in ordered if points[key] > 0]
    won = [f"{-points[key]:.1f} {_WON[key]}" for key in ordered if points[key] < 0]
    if not cost:
        return ""
    return f": {', '.join(cost)}" + (f", less {' and '.join(won)}" if won else "")


def _kinds(alone: Mapping[Slip, int]) -> str:
    """Name the errors that form alone is made of, with an example."""
    kinds: Counter[str] = Counter()
    for slip, count in alone.items():
        kinds[slip.error] += count
    names = [_ERRORS.get(kind, kind) for kind, _ in kinds.most_common(2)]
    first = max(alone, key=lambda slip: (slip.error == kinds.most_common(1)[0][0], alone[slip]))
    return f"{' and '.join(names)}, such as “{_short(first.said)}” for “{_short(first.wanted)}”"


def _short(text: str) -> str:
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
