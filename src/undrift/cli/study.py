"""The command `undrift study`, from its options to the last line on the screen."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from undrift.errors import one_line
from undrift.registry import BENCHMARKS
from undrift.run.progress import JsonLines, Progress, StudyBar, calm

if TYPE_CHECKING:
    from undrift.run.study import Study

HELP = """Run a grid of methods, seeds, orders and rates side by side; write one table of them.

What is finished is not run again: after a stop, the same command goes on. A study's file:

\b
  benchmark: pocket
  seeds: [0, 1, 2]
  rows:
    - moelora                   # a method
    - {label: no router, method: same, set: {method.router: false}, seeds: [0]}
  against: moelora              # differences are paired with this row
  run: {profile: lite}          # any keys of a run's file
  results: docs/results/mine    # writes mine.json and mine.md there

\b
More keys: `orders: [default, second]`, also lists of task names;
`rates: {same: [3e-3, 6e-3]}`, learning rates to try, by row;
`widen: true`, to try the rate beyond the edge where the best one lies.
""".replace("[", "\\[")  # brackets are markup otherwise


def study(
    file: Annotated[Path, typer.Argument(help="A study's YAML file, such as studies/*.yaml.")],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side, one thread each; one a CPU.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Where the runs go; runs/study-NAME by itself.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Only this row (repeatable).")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete the adapters of every finished run.")
    ] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Print the runs with their commands, and run none.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Run a study, or list its cells."""
    calm(None)
    from undrift.report.study_table import study_markdown
    from undrift.run.study import Study
    from undrift.run.study_plan import Plan, load_study
    from undrift.rundir import check_writable

    config = load_study(file)
    if not listing:
        place = work or Path("runs") / f"study-{file.stem}"
        check_writable(place, choose="choose another place with --work")
    load, data = BENCHMARKS.load(config.benchmark), config.run.get("data")
    # pictures are drawn here, so that cells side by side do not all draw them
    benchmark = load(None if data is None else Path(data), progress=not (quiet or as_json))
    folder = work or Path("runs") / f"study-{file.stem}"
    plan, command = Plan(config, benchmark), f"undrift study {file}"
    made = Study(plan, command, folder, study_markdown, only or (), prune=prune)
    if listing:
        _list(made, as_json)
        return
    with _told(quiet, as_json) as progress:
        made.go(jobs or os.cpu_count() or 1, progress)
    if as_json:
        print(json.dumps(made.results(), ensure_ascii=False))
    elif not quiet:
        _sum_up(made)
    _complain(made)
    if made.failures:
        raise typer.Exit(1)


def _list(study: Study, as_json: bool) -> None:
    """Print the cells, what is done of them, and their commands."""
    rows = [
        {
            **cell.known,
            "folder": str(study.folder(cell)),
            "done": study.last(cell) is not None,
            "command": shlex.join(["undrift", *study.argv(cell)[len(study.program) :]]),
        }
        for cell in study.cells
    ]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for cell, row in zip(study.cells, rows, strict=True):
        print(f"{cell.title}{' (done)' if row['done'] else ''}\n  {row['command']}")
    done = sum(row["done"] for row in rows)
    print(f"{len(rows)} cells, {done} of them done; results: {' and '.join(map(str, study.files))}")


def _told(quiet: bool, as_json: bool) -> Progress:
    if as_json and not quiet:
        return JsonLines(Console(soft_wrap=True))
    return Progress() if quiet or as_json else StudyBar(Console(stderr=True))


def _sum_up(study: Study) -> None:
    results = study.results()
    if results["runs"]:
        print(f"\n{study.table(results)}")
        print(f"written: {' and '.join(map(str, study.files))}; the runs: {study.work}")


def _complain(study: Study) -> None:
    """Print the errors of the cells that have failed."""
    console = Console(stderr=True, soft_wrap=True)
    for failure in study.failures.values():
        console.print(
            f"\n[bold red]failed:[/] {escape(one_line(failure.cell.title))}", highlight=False
        )
        console.print(f"  {failure.command}", markup=False, highlight=False)
        for line in failure.error.splitlines():
            console.print(f"  {line}", markup=False, highlight=False)
    if study.failures:
        count = len(study.failures)
        said = f"{count} cell{'s' * (count > 1)} failed; the same command runs them again"
        console.print(said, highlight=False)
