"""The command `undrift score`: what a file of predictions is worth, by every rule of its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undrift.cli import options
from undrift.errors import ConfigError, DataError, one_line, unknown

if TYPE_CHECKING:
    from undrift.scoring import FileScores

OFFICIAL = ("official", "official-2015")
PUBLIC = ("coin", "hide", "prism")


def score(
    task: Annotated[
        str, typer.Argument(help="A published task, such as coin/ScienceQA, or a scorer.")
    ],
    predictions: Annotated[
        list[Path],
        typer.Argument(help="JSON lines with question_id and text, or their folder (repeatable)."),
    ],
    data: Annotated[
        Path | None, typer.Option(help="The benchmark's folder; its pictures may be missing.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="The task's test file, in place of --data.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Only the rule of coin, hide, prism, official or official-2015."),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Take files that leave questions out: scored over "
            "what is there, and with the missing as wrong.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Score predictions for a published task, another code's too, by every rule side by side.

    Matched by id; a null text is wrong; a file that leaves questions out is refused. For data of
    your own, name its scorer and give its test file as --answers.
    """
    from undrift.scoring import read_predictions

    profiles = (*PUBLIC, *OFFICIAL) if "/" in task else ()
    if profile is not None and profile not in profiles:
        raise unknown("scoring profile", profile, profiles)
    scorer, examples = _asked(task, data, answers)
    files = dict[str, dict[str, Any]]()
    for path in predictions:
        rows = read_predictions(path)
        try:
            files[str(path)] = _scored(scorer, rows, examples, profile, partial)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    for name, found in files.items():
        if found["units"]:
            typer.echo(one_line(f"{name}: {found['units']}"), err=True)
    if as_json:
        options.print_json({"task": scorer, "examples": len(examples), "files": files})
    else:
        _show(scorer, len(examples), files)


def _asked(task: str, data: Path | None, answers: Path | None) -> tuple[str, Sequence[Any]]:
    """Return the scorer that a task has, and its questions."""
    from undrift.data import published_benchmark as questions
    from undrift.scoring import check_scorer

    if "/" not in task:
        check_scorer(task)
        if answers is None or data is not None:
            raise ConfigError(f"{task} is a scorer: give the test file of your data with --answers")
        return task, questions.questions_in_file(answers)
    published = questions.find_published(task)
    if answers is not None and data is None:
        return published.scorer, questions.questions_of(published, answers)
    if data is not None and answers is None:
        return published.scorer, questions.questions_in(published, data)
    raise ConfigError("give either --data DIR or --answers FILE")


def _scored(
    scorer: str,
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Any],
    profile: str | None,
    partial: bool,
) -> dict[str, Any]:
    """Score one file; percentages by rule, over its predictions."""
    from undrift.scoring import score_file

    by_rule: dict[str, FileScores] = {}
    for names in _alike(scorer, profile):
        found = score_file(scorer, rows, examples, names[0], partial=partial)
        by_rule |= dict.fromkeys(names, found)
    one = next(iter(by_rule.values()))
    judged = {} if profile in OFFICIAL or one.captions else by_rule
    shares = {name: found.strict for name, found in judged.items()}
    if profile == "official-2015":
        shares[profile] = one.strict
    if profile in (None, "official") and not one.captions:
        shares["official"] = one.official
    shares |= {"lenient": one.lenient, "form": one.form}
    known = {name: value for name, value in shares.items() if value is not None}
    return {
        "scored": one.scored,
        "percent": known,
        "missing_wrong": {name: value * one.scored / one.examples for name, value in known.items()},
        "captions": dict(one.captions),
        "lucky": {name: found.lucky for name, found in judged.items()},
        "errors": dict(one.errors),
        "units": one.units,
    }


def _alike(scorer: str, profile: str | None) -> list[list[str]]:
    """Gather the public codes whose rules for a task are one and the same."""
    from undrift.scoring import TASKS, find_task

    if scorer not in TASKS or profile == "official-2015":
        return [[profile or "strict"]]
    shared: dict[Any, list[str]] = {}
    for name in (profile,) if profile in PUBLIC else PUBLIC:
        shared.setdefault(getattr(find_task(scorer), name), []).append(name)
    return list(shared.values())


def _show(scorer: str, examples: int, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a column a file; where predictions are missing, another one that counts them."""
    broken = any(found["scored"] < examples for found in files.values())
    table = Table(title=f"{scorer}, {examples} questions, in percent")
    table.add_column("rule")
    for name, found in files.items():
        count = f"\n{found['scored']} predictions" if broken else ""
        table.add_column(escape(one_line(name)) + count, justify="right", overflow="fold")
        if broken:
            table.add_column("missing\nas wrong", justify="right")
    for part in ("percent", "captions", "lucky", "errors"):
        keys = dict.fromkeys(key for found in files.values() for key in found[part])
        for key, words in _rows(part, list(keys), scorer).items():
            cells: list[str] = []
            for found in files.values():
                cells.append(_cell(found[part].get(key)))
                if broken:
                    cells.append(
                        _cell(found["missing_wrong"].get(key) if part == "percent" else None)
                    )
            table.add_row(words, *cells)
        table.add_section()
    console = Console()
    console.print(table)
    if broken:
        console.print("PARTIAL: not every question has a prediction", style="bold", markup=False)


def _rows(part: str, keys: Sequence[str], scorer: str) -> dict[str, str]:
    """Name the rows of a part: keys with their words, one for all public codes that agree."""
    rows: dict[str, str] = {}
    first = {"percent": "strict", "lucky": "lucky hits"}.get(part)
    for names in _alike(scorer, None) if first else ():
        there = [name for name in names if name in keys]
        if there:
            rows[there[0]] = f"{first}, {' = '.join(there)}".removesuffix(", strict")
    rest = [key for key in keys if key not in (*PUBLIC, "strict")]
    return rows | {key: f"form: {key}" if part == "errors" else key for key in rest}


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.2f}"
