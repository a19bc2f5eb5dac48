"""Options that several commands share, and how they talk: bars, lines or nothing; JSON.

A command takes an option by its type, such as `quiet: options.Quiet = False`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from undrift.errors import ConfigError
from undrift.run.progress import Bars, Comments, JsonLines, Lines, Progress, StudyBar


def _usual(threads: int | None) -> int | None:
    """Refuse more threads than this machine can be meant to have, see `check_threads`."""
    from undrift.run.config import check_threads

    return threads if threads is None else check_threads(threads)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Data = Annotated[Path | None, typer.Option("--data", help="The benchmark's folder.")]
Images = Annotated[
    Path | None,
    typer.Option(
        help="What pictures' names are relative to; the folder of the data by itself. Absolute "
        "paths must lead into it."
    ),
]
Booleans = Annotated[
    str | None, typer.Option(metavar="yes-no", help="Read answers true and false as Yes and No.")
]
Backbone = Annotated[
    str | None, typer.Option("--backbone", help="'pocket', 'smollm2', a folder, or a Hub name.")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Such as method.delta=0.95 (repeatable)."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out rows and pictures that cannot be used.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many examples a task, chosen by their ids.")
]
Fraction = Annotated[
    float | None, typer.Option(min=0, max=1, help="This share of the examples, chosen likewise.")
]
ReportTo = Annotated[
    list[str] | None,
    typer.Option(
        "--report-to",
        metavar="NAME",
        help="Live metrics: tensorboard, trackio, wandb, mlflow ... (repeatable).",
    ),
]
Remember = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        help="What the history begins with: prompts, which the base answers itself; its weights; a "
        "folder that `undrift remember` has written; or none.",
    ),
]
WatchRoutes = Annotated[
    int | None,
    typer.Option(
        "--watch-routes",
        min=1,
        metavar="STEPS",
        help="Every so many steps, log how far the routes of earlier tasks have moved.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Go on although rows, pictures, the base or settings of the training have changed; it "
        "is noted.",
    ),
]
TestOf = Annotated[
    list[str] | None,
    typer.Option(
        "--test-of",
        metavar="TASK=PATH",
        help="Where the test questions of an earlier task are now: a file of rows with its "
        "pictures beside it, or the folder of its benchmark (repeatable).",
    ),
]
Replace = Annotated[
    bool,
    typer.Option("--replace", "--overwrite", help="Delete what is in the folder; begin again."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the plan and the whole configuration, and write nothing; weights are not read.",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, callback=_usual, help="CPU threads.")
]


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given: all that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def refuse_unused(values: Mapping[str, object], purpose: str) -> None:
    """Refuse options that were given and that this call would not use.

    Args:
        values: What they are, by option; None, False and an empty list were not given.
        purpose: What they are for, such as "the rows of --data".

    Raises:
        ConfigError: If one of them was given.
    """
    given = [name for name, value in values.items() if not _absent(value)]
    if given:
        are, them = ("is", "it") if len(given) == 1 else ("are", "them")
        named = " and ".join(filter(None, (", ".join(given[:-1]), given[-1])))
        raise ConfigError(f"{named} {are} for {purpose}; leave {them} out")


def _absent(value: object) -> bool:
    return value is None or value is False or value == []


def process_number() -> int:
    """Return the number of this process among those of a launcher; 0 for the first or only one."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return int(os.environ.get("RANK", "0")) if several else 0


def progress(quiet: bool, as_json: bool, bars: type[Bars | StudyBar] = Bars) -> Progress:
    """Choose who is told what: people get bars, or lines without a terminal, programs JSON.

    Args:
        quiet: Nothing at all.
        as_json: Lines for programs.
        bars: What people get.

    Returns:
        What a run reports to.
    """
    if quiet or process_number():  # of several processes one tells
        return Progress()
    if as_json:
        return JsonLines(Console(soft_wrap=True))
    console = Console(stderr=True)
    if bars is Bars and not console.is_terminal:  # nohup, SLURM, docker: a log
        return Lines(console)
    return bars(console)


class Notes(Progress):
    """Keeps what people are told, for the one object that a program gets.

    Attributes:
        said: What was told.
    """

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def event(self, kind: str, text: str, **values: Any) -> None:
        """Keep it."""
        self.said.append({"event": kind, "text": text, **values})


def dry_progress(quiet: bool, as_json: bool) -> Progress:
    """Choose what a dry run is told to: comments above the YAML, which can be taken back with it.

    Args:
        quiet: Nothing at all.
        as_json: Nothing either: all is in one object.

    Returns:
        What it reports to.
    """
    silent = quiet or as_json or process_number()
    return Progress() if silent else Comments(Console(soft_wrap=True))


def print_plan(plan: Mapping[str, Any], config: str, quiet: bool, as_json: bool) -> None:
    """Print what a dry run has found.

    Args:
        plan: The plan, told to `dry_progress` already.
        config: The configuration, YAML.
        quiet: Print nothing.
        as_json: Print both as one object.
    """
    if process_number():
        return
    if as_json:
        print_json({"plan": plan, "config": yaml.safe_load(config)})
    elif not quiet:
        typer.echo(config, nl=False)


def print_json(value: object) -> None:
    """Print a value on one line.

    Args:
        value: Anything JSON can hold.
    """
    text = json.dumps(value, ensure_ascii=False)
    # half a character, of a name that is not UTF-8, becomes an escape, which JSON knows
    typer.echo(text.encode(errors="backslashreplace").decode())


def named_paths(given: Sequence[str] | None, option: str) -> dict[str, Path]:
    """Read what is typed as NAME=PATH.

    Args:
        given: As typed.
        option: The option, for messages.

    Returns:
        Paths by name.

    Raises:
        ConfigError: If something else was typed.
    """
    found: dict[str, Path] = {}
    for each in given or ():
        name, equals, path = each.partition("=")
        if not (name and equals and path) or name in found:
            raise ConfigError(f"{option} {each}: expected TASK=PATH, each task once")
        found[name] = Path(path)
    return found
