"""The report as one HTML page that needs no other file and no network.

In it lies the data of the answer browser: each test example, and what every run answered, when just
learned and at the end. That is one value for JSON, made for the eye of a reader, not for a program:
texts, a mark for each answer, pictures as data URLs. The page's script filters and draws it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from itertools import count, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from undrift.report.drawing import CaptionedFigure, draw
from undrift.report.forgetting import OTHER_NOTATION
from undrift.report.page_content import PageContent
from undrift.report.results import Guard, Line, Results, labels
from undrift.report.verdict import before_stage
from undrift.rundir.paths import thumbnail
from undrift.scoring import Rules

WIDE = 500  # CSS pixels; a drawing that is wider scrolls in its box on a phone
_CONTENTS = {
    "metrics": "Results",
    "matrix": "Accuracy",
    "drift": "Drift",
    "transfer": "Who taught whom",
    "cost": "Training",
    "answers": "Answers",
    "run": "What was run",
    "definitions": "Definitions",
}
RIGHT, FORM, PARTLY, WRONG = "right", "form", "partly", "wrong"
"""Marks: right by the strict rule; only by the lenient one; partial credit; wrong by every rule."""

_NUMERAL = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*"
BOX = re.compile(rf"\s*\[{_NUMERAL},{_NUMERAL},{_NUMERAL},{_NUMERAL}\]\s*")

Marked = tuple[str, str | None, str | None]
"""An answer, its mark (None for captions, which are not right or wrong), its error of form."""


def page(content: PageContent, at: Path | None = None) -> str:
    """Write a report as a page.

    Args:
        content: What it shows.
        at: Where the page will lie. Pictures that it has no room for are taken from the run's
            folder if that is below this file's.

    Returns:
        A whole HTML document.
    """
    environment = Environment(
        loader=PackageLoader("undrift.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["sentence"] = sentence
    templates = files("undrift.report") / "templates"
    script, css = ((templates / name).read_text("utf-8") for name in ("page.js", "page.css"))
    found = answers(content.runs, at)
    total = sum(len(task["examples"]) for task in found["tasks"])
    there = {
        "matrix": len(content.matrices) > 1 and not content.chains,
        "transfer": content.taught or content.transfers,
        "cost": content.costs or content.trainings,
        "answers": total,
    }
    order = [*_CONTENTS]
    if content.chains:  # who has learned one more task wants to see what it has cost
        order.remove("answers")
        order.insert(1, "answers")
    return environment.get_template("page.html.j2").render(
        content=content,
        svg=_svg,
        contents=[(id_, _CONTENTS[id_]) for id_ in order if there.get(id_, True)],
        css=Markup(css),
        script=Markup(script),
        script_hash=_hash(script),
        pictures_from="data:" if _all_embedded(found) else "data: 'self' file:",
        browser=_as_script(found) if total else None,
        worse=_worse(found),
        view=_view,
        examples=total,
        tasks=[task["name"] for task in found["tasks"] if task["examples"]],
        runs=found["runs"],
        errors=found["errors"],
    )


def sentence(text: str) -> Markup:
    """Escape a sentence for HTML, set what stands in backquotes as code, keep "9 %" on one line."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", coded))


def _svg(figure: CaptionedFigure) -> Markup:
    drawn = draw(figure.figure)
    if drawn.width <= WIDE:
        return Markup(drawn.svg)
    box = '<div class="scroll wide" tabindex="0" role="region" aria-label="{}">{}</div>'
    return Markup(box).format(figure.title, Markup(drawn.svg))


def _worse(found: Mapping[str, Any]) -> Counter[tuple[str, str]]:
    """Count what was right before and is not at the end, by task and run."""
    return Counter(
        (task["name"], run)
        for task in found["tasks"]
        for example in task["examples"]
        for run, given in zip(found["runs"], example["said"], strict=True)
        if given and given[0] and given[0][1] == RIGHT != given[1][1]
    )


def _view(**filters: str) -> str:
    """Write the address of a view of the answer browser."""
    return f"#answers?{urlencode(filters, quote_via=quote)}"


def _hash(script: str) -> str:
    """Name a script by its content, so that the page runs this one and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _all_embedded(found: Mapping[str, Any]) -> bool:
    addresses = [
        address
        for task in found["tasks"]
        for example in task["examples"]
        for address in example["pictures"]
    ]
    return all(address is None or address.startswith("data:") for address in addresses)


def _as_script(value: object) -> Markup:
    """Write JSON that may stand in a <script>: no < can end it or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


# ------------------------------------------------------------ the answer browser


def answers(runs: Sequence[Results], page: Path | None = None) -> dict[str, Any]:
    """Gather what runs have answered, example by example.

    Args:
        runs: The runs. Examples are matched by their tasks and ids.
        page: Where the page will lie; pictures that it has no room for are referred to from there.

    Returns:
        `runs`: their names; `errors`: the errors of form that occur; `tasks`: each with `name`,
        `boxes` (whether its answers are boxes in shares of the picture) and `examples`: `id`,
        `question`, `answers`, `pictures` (addresses, None for what is not embedded) and `said`:
        for each run None, or its answers just learned (None if it was not asked then) and at the
        end, as `Marked`; of a chain of adapters also `course`: what each of them has answered.
    """
    tasks: dict[str, dict[str, dict[str, Any]]] = {}
    pictures: dict[Key, tuple[int, list[Path]]] = {}
    errors: dict[str, None] = {}
    for place, run in enumerate(runs):
        for index, name in enumerate(run.tasks, 1):
            start, end = before_stage(run, index), run.files.last_stage
            if not run.files.asked(end, index):
                continue
            known = run.in_turn and run.files.asked(start, index)
            learned = _marked(run, start, index) if known else {}
            at_end = _marked(run, end, index)
            course = _course(run, index)
            examples = tasks.setdefault(name, {})
            for number, line in enumerate(run.files.answers(end, index), 1):
                example = examples.setdefault(
                    line["id"],
                    {
                        "id": line["id"],
                        "question": line["question"],
                        "answers": list(line["answers"]),
                        "said": [None] * len(runs),
                    },
                )
                both = learned.get(line["id"]), at_end[line["id"]]
                example["said"][place] = both
                if course:
                    given = {stage: marks.get(line["id"]) for stage, marks in course.items()}
                    example.setdefault("course", {})[place] = list(given.items())
                if (name, line["id"]) not in pictures and (kept := pictures_of(run, index, number)):
                    pictures[name, line["id"]] = number, kept  # the first run that has one gives it
                errors |= dict.fromkeys(kind for *_, kind in filter(None, both) if kind)
        for guard in run.files.guards:
            _add_guard(guard, place, len(runs), tasks, pictures)
    shown = addresses(pictures, page)
    return {
        "runs": labels(runs),
        "errors": list(errors),
        "tasks": [
            {
                "name": name,
                "boxes": _relative([example["answers"] for example in examples.values()]),
                "examples": [
                    {**example, "pictures": shown.get((name, id_), [])}
                    for id_, example in examples.items()
                ],
            }
            for name, examples in tasks.items()
        ],
    }


def _course(run: Results, on: int) -> dict[str, dict[str, Marked]]:
    """Mark a task's answers at every stage of a chain, from before it was learned; else nothing."""
    names = run.files.stage_names
    stages = [s for s in range(on - 1, len(names)) if run.files.asked(s, on)]
    return {names[stage]: _marked(run, stage, on) for stage in stages}


def _add_guard(
    guard: Guard,
    place: int,
    runs: int,
    tasks: dict[str, dict[str, dict[str, Any]]],
    pictures: dict[Key, tuple[int, list[Path]]],
) -> None:
    """Add what was asked and not learned, as a task of its own."""
    name = f"{guard.name} (guard)"
    course = {a.stage: {line["id"]: _as_it_was(line) for line in a.lines} for a in guard.course}
    examples = tasks.setdefault(name, {})
    for number, line in enumerate(guard.course[-1].lines, 1):
        id_ = line["id"]
        about = {key: line[key] for key in ("id", "question")}
        blank = {**about, "answers": list(line["answers"]), "said": [None] * runs}
        example = examples.setdefault(id_, blank)
        given = [(stage, marks.get(id_)) for stage, marks in course.items()]
        example["said"][place] = tuple(answer for _, answer in given[-2:])
        example.setdefault("course", {})[place] = given
        if kept := _numbered(lambda k, n=number: thumbnail(guard.pictures, n, k)):
            pictures.setdefault((name, id_), (number, kept))


def _marked(run: Results, after: int, on: int) -> dict[str, Marked]:
    """Mark a task's answers at one stage, by the ids of the examples."""
    if run.files.scorers:
        return {line["id"]: _mark(line, rules) for line, rules in run.files.judged(after, on)}
    # an older run, which tells what was right and nothing of form
    lines = run.files.answers(after, on)
    return {line["id"]: _as_it_was(line) for line in lines}


def _as_it_was(line: Line) -> Marked:
    return _mark(line, Rules(line["strict"], None, 0.0, None))


def _mark(line: Line, rules: Rules) -> Marked:
    strict, lenient, _, error = rules
    if strict is None:
        return line["prediction"], None, error
    if strict >= 1:
        return line["prediction"], RIGHT, None
    if lenient is not None and lenient >= 1:
        return line["prediction"], FORM, error or OTHER_NOTATION
    return line["prediction"], PARTLY if strict > 0 else WRONG, error


def _relative(answers: Sequence[Sequence[str]]) -> bool:
    """Tell whether all answers are boxes in shares of the picture: pixels would go beyond 1."""
    boxes = [BOX.fullmatch(answer) for each in answers for answer in each]
    return bool(boxes) and all(b and max(map(float, b.groups())) <= 1 for b in boxes)


ROOM = 12_000_000  # characters of a page, by which ten runs of the pocket stay far below 20 MB

Key = tuple[str, str]
"""A task's name and an example's id."""


Pictures = Mapping[Key, tuple[int, Sequence[Path]]]
"""The number of an example's line among its task's predictions, and the files of its pictures."""


def pictures_of(run: Results, task: int, line: int) -> list[Path]:
    """List the pictures that a run has kept of one line of a task's predictions, from 1.

    `RUN/pictures/01-digits/0001.webp` is the picture of the task's first line of predictions,
    `0001-2.webp` a second one of the same line.
    """
    name = run.tasks[task - 1]
    return _numbered(lambda k: run.files.paths.picture(task, name, line, k))


def _numbered(named: Callable[[int], Path]) -> list[Path]:
    return list(takewhile(Path.is_file, map(named, count(1))))


def addresses(
    pictures: Pictures, page: Path | None, room: int = ROOM
) -> dict[Key, list[str | None]]:
    """Embed what there is room for, the first lines of every task before the later ones.

    Args:
        pictures: The pictures of each example that has any.
        page: Where the page will lie, if that is known.
        room: How many characters the embedded pictures may take together.

    Returns:
        For each example data URLs; addresses relative to the page of those that there is no room
        for, if the run lies beside the page or below it; else None.
    """
    found: dict[Key, list[str | None]] = {}
    for key, (_, kept) in sorted(pictures.items(), key=lambda item: item[1][0]):
        found[key] = []
        for file in kept:
            url = f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
            room -= len(url)
            found[key].append(url if room >= 0 else _reference(file, page))
    return found


def _reference(file: Path, page: Path | None) -> str | None:
    if page is None:
        return None
    beside, file = page.resolve().parent, file.resolve()
    return quote(os.fspath(file.relative_to(beside))) if beside in file.parents else None
