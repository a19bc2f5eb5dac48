"""The commands `undrift compare` and `undrift report`: what the files of finished runs say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from undrift.cli.options import JsonFlag, print_json


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Write summary.json and report.html into this folder.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Set finished runs side by side: last, just learned, forgetting, errors of case only."""
    from undrift import report
    from undrift.rundir import atomic_write, write_json

    results = [report.load(folder) for folder in runs]
    if as_json:
        print_json(report.summary(results))
    elif markdown:
        typer.echo(report.markdown(results), nl=False)
    else:
        show_runs(runs)
    if out is not None:
        write_json(out / "summary.json", report.summary(results))
        atomic_write(out / "report.html", report.page(results))
        if not (as_json or markdown):
            typer.echo(f"written: {out / 'summary.json'} and {out / 'report.html'}")


def write_report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html by itself.")] = None,
) -> None:
    """Write one page with heat maps about finished runs."""
    from undrift import report
    from undrift.rundir import atomic_write

    target = out or runs[0] / "report.html"
    atomic_write(target, report.page([report.load(folder) for folder in runs]))
    typer.echo(f"written: {target}")


def show_runs(folders: list[Path]) -> None:
    """Print the table of finished runs.

    Args:
        folders: The runs' folders.
    """
    from undrift import report

    console = Console()
    console.print(report.table([report.load(folder) for folder in folders]))
    console.print(report.DRIFTS, style="dim")
