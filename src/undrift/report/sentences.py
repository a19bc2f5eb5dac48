"""Why runs have forgotten what they have, in words for a person who does not know the method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

SMALL = 0.05
"""Points that are printed as 0.0."""

CLEAR = 1.0
"""Points from which a loss is shared out in percent; a share of less is a share of noise."""

LOOK_ALIKE = 1 / 3
"""Of the wrong answers must look like one later task's for it to be said."""

_TASK = {
    "expert": "because the experts changed",
    "router": "because the router sent its inputs elsewhere",
    "content": "of content",
    "form": "in form alone",
}
_RUN = {
    "expert": "because its experts changed",
    "router": "because its router sends old inputs elsewhere",
    "content": "of content",
    "form": "in form alone",
}
_NO_ROUTER = "because its weights changed"
_ERRORS = {"case": "letter case"}


def of_task(
    name: str,
    learned: float,
    lost: float,
    parts: Mapping[str, float | None],
    changed: str,
    *,
    alone: Counter[str],
    worn: Counter[str],
    wrong: int,
) -> str:
    """Say what a task has lost and why.

    Args:
        name: The task's name.
        learned: Its score when it had just been learned.
        lost: What it has lost since, in points.
        parts: `router`, `expert`, `form`, `content`, in points; None where not known.
        changed: What there was to change: "router and experts", "router", "experts", or "" where
            it was not diagnosed.
        alone: The errors of form at the end of the answers whose content is right.
        worn: Which later tasks' answers the wrong ones at the end look like.
        wrong: How many are wrong at the end.

    Returns:
        A sentence without its full stop.
    """
    if abs(lost) < SMALL:
        return f"{name} kept its {learned:.1f}"
    if lost < 0:
        return f"{name} gained {-lost:.1f} points"
    words = dict(_TASK, expert=_NO_ROUTER) if changed == "experts" else dict(_TASK)
    kinds = " and ".join(_ERRORS.get(kind, kind) for kind, _ in alone.most_common(2))
    if kinds:
        words["form"] += f" ({kinds})"
    sentence = f"{name} lost {lost:.1f} points{_because(parts, words)}"
    if worn:
        other, count = worn.most_common(1)[0]
        if count >= LOOK_ALIKE * wrong:
            sentence += f"; {count} of the {wrong} wrong answers look like those of {other}"
    return sentence


def of_run(
    label: str,
    learned: float,
    lost: float,
    parts: Mapping[str, float | None],
    changed: Collection[str],
    why: str,
) -> str:
    """Say what a run has forgotten and why.

    Args:
        label: Its name.
        learned: The mean score of its tasks, but the last, when they had just been learned.
        lost: The mean of what they have lost since, in points.
        parts: `router`, `expert`, `form`; None where not known.
        changed: As for `of_task`, of all tasks.
        why: Why router and experts are not told apart, or "".

    Returns:
        A sentence or two.
    """
    words = dict(_RUN, expert=_NO_ROUTER) if set(changed) == {"experts"} else _RUN
    shares = {key: 100 * part / lost for key, part in parts.items() if part and lost >= CLEAR}
    sentence = f"{label} forgets {lost:.1f} of the {learned:.1f} points that it had just learned"
    return f"{sentence}{_because(parts, words, shares)}." + (f" ({why}.)" if why else "")


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
        f"{label} has no scores of tasks just learned to compare the end with, so what it has "
        "forgotten cannot be said."
    )


def verdict(runs: Sequence[tuple[str, float | None, str]]) -> str:
    """Compare runs, the most forgetful first.

    Args:
        runs: Each run's label, loss and sentence.

    Returns:
        A few sentences.
    """
    known = sorted((run for run in runs if run[1] is not None), key=lambda run: -(run[1] or 0.0))
    if not known:
        return " ".join(sentence for _, _, sentence in runs)
    rest = [f"{label} forgets {lost:.1f}." for label, lost, _ in known[1:]]
    return " ".join([known[0][2], *rest])


def _because(
    parts: Mapping[str, float | None],
    words: Mapping[str, str],
    shares: Mapping[str, float] | None = None,
) -> str:
    told = [key for key in ("expert", "router", "form") if parts.get(key) is not None]
    if "expert" not in told and parts.get("content") is not None:
        told = ["content", *told]
    points = {key: part for key in told if (part := parts[key]) is not None and abs(part) >= SMALL}
    if not points:
        return ""
    ordered = sorted(points, key=lambda key: -points[key])
    said = [
        f"{points[key]:.1f} {words[key]}" + (f" ({shares[key]:.0f} %)" if shares else "")
        for key in ordered
    ]
    return ": " + ", ".join(said)
