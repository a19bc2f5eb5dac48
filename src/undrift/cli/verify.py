"""The command `undrift verify`: whether a run's numbers follow from its files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undrift.cli import options
from undrift.errors import one_line

if TYPE_CHECKING:
    from undrift.run.verify import Verdict


def verify(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of undrift run or undrift learn.", metavar="RUN"),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="The benchmark's folder; by itself where the run says it was."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Compare the base as well: 'pocket', a folder, or a Hub name."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compute a run's scores and metrics again from its files, and say what does not match.

    Answers are scored anew, cells and metrics computed from them; adapters are read whole; files
    are held against their digests in SHA256SUMS (sha256sum -c knows it, too), records against each
    other, rows and pictures against the data. Nothing is trained, asked or written. What could not
    be checked is named. The exit status is 1 if something does not match, else 0.
    """
    from undrift.run.progress import calm
    from undrift.run.verify import verify as verified

    calm(None)
    found = [verified(run, data=data, backbone=backbone) for run in runs]
    for verdict in found:
        if as_json:
            content = {**asdict(verdict), "run": str(verdict.run), "matches": verdict.matches}
            options.print_json(content)
        else:
            _show(verdict)
    if not all(verdict.matches for verdict in found):
        raise typer.Exit(1)


def _show(verdict: Verdict) -> None:
    typer.echo(str(verdict.run))
    for title, lines in (
        ("checked", verdict.checked),
        ("not checked", verdict.unchecked),
        ("left over", verdict.left_over),
        ("does not match", verdict.wrong),
    ):
        for line in lines:
            typer.echo(one_line(f"  {title:<14}  {line}"))
    wrong = len(verdict.wrong)
    many = "1 thing does not match" if wrong == 1 else f"{wrong} things do not match"
    typer.echo("  all that was checked matches" if verdict.matches else f"  {many}")
