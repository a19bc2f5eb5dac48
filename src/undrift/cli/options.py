"""Options that several commands share, and how they talk: bars, lines or nothing; JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from undrift.run.progress import Progress

QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="The benchmark's folder.")]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        help="What pictures' names are relative to; the folder of the data by itself. Absolute "
        "paths must lead into it."
    ),
]
BooleansOption = Annotated[
    str | None,
    typer.Option(metavar="yes-no", help="Read answers true and false as Yes and No."),
]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="'pocket', a folder, or a Hub name.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Such as method.delta=0.95 (repeatable)."),
]
SkipBadFlag = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out rows and pictures that cannot be used.")
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="At most so many examples a task, chosen by their ids.")
]
FractionOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="This share of the examples, chosen likewise.")
]
ReportToOption = Annotated[
    list[str] | None,
    typer.Option(
        "--report-to",
        metavar="NAME",
        help="Live metrics: tensorboard, trackio, wandb, mlflow ... (repeatable).",
    ),
]
WatchRoutesOption = Annotated[
    int | None,
    typer.Option(
        "--watch-routes",
        min=1,
        metavar="STEPS",
        help="Every so many steps, log how far the routes of earlier tasks have moved.",
    ),
]
ForceFlag = Annotated[
    bool,
    typer.Option(
        "--force", help="Go on although rows, pictures or the base have changed; it is noted."
    ),
]
ReplaceFlag = Annotated[
    bool,
    typer.Option("--replace", "--overwrite", help="Delete what is in the folder; begin again."),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")]


def progress(quiet: bool, as_json: bool) -> Progress:
    """Choose who is told what: people get bars, programs get JSON lines, the quiet nothing.

    Args:
        quiet: Nothing at all.
        as_json: Lines for programs.

    Returns:
        What a run reports to.
    """
    from undrift.run.progress import Bars, JsonLines, Progress

    if as_json and not quiet:
        return JsonLines(Console(soft_wrap=True))
    return Progress() if quiet or as_json else Bars(Console(stderr=True))


def print_json(value: object) -> None:
    """Print a value on one line.

    Args:
        value: Anything JSON can hold.
    """
    text = json.dumps(value, ensure_ascii=False)
    # half a character, of a name that is not UTF-8, becomes an escape, which JSON knows
    typer.echo(text.encode(errors="backslashreplace").decode())
