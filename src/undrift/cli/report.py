"""The command `undrift report`: one page about finished runs, and its figures as files."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from undrift.errors import one_line


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of finished runs, or of adapters that were learned."),
    ],
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html by itself.")] = None,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures/--no-figures", help="Write every figure as SVG and PDF beside the page, too."
        ),
    ] = True,
) -> None:
    """Write one page about finished runs: what drifted, and every answer.

    What `undrift diagnose` has found of a run is part of it. Of adapters that `undrift learn` has
    left the last one is enough: those before it are found by its record, and each is a column.

    \b
      undrift report runs/demo/moelora runs/demo/nearlora --out report.html
      undrift report adapters/v3
    """  # noqa: D301
    from undrift.report import load_all
    from undrift.report.page import page
    from undrift.report.page_content import page_content
    from undrift.rundir import atomic_write, check_writable
    from undrift.rundir.checks import claim_page

    gc.disable()  # figures are full of cycles; looking for them takes a third of the time
    loaded = load_all(runs)
    target = out or loaded[0].folder / "report.html"
    folder = target.with_name(f"{target.stem}-figures")
    check_writable(target, file=True)
    claim_page(target, folder if figures else None)
    content = page_content(loaded)
    atomic_write(target, page(content, target))
    typer.echo(content.verdict)
    if figures:
        count = content.write_figures(folder)
        typer.echo(f"written: {folder} ({count} figures, each as SVG and PDF)")
    typer.echo(f"written: {target}")


def draw_page(folder: Path) -> None:
    """Draw the page of a run or an adapter that has just ended, unless it is there.

    All is done: what goes wrong with its page is said, and is no error of the run.

    Args:
        folder: The run's folder, or what `undrift learn` has left.
    """
    from undrift.report import load
    from undrift.report.page import page
    from undrift.report.page_content import page_content
    from undrift.rundir import atomic_write

    target = folder / "report.html"
    if target.is_file():
        return
    try:
        atomic_write(target, page(page_content([load(folder)]), target))
    except Exception as error:
        said = f"all is done but the page, {target}: {one_line(str(error))}"
        Console(stderr=True, soft_wrap=True).print(said, markup=False, highlight=False)
