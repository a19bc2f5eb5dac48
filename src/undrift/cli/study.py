"""The command `undrift study`, from its options to the last line on the screen."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from undrift.cli import options
from undrift.cli.report import draw_page
from undrift.errors import ConfigError, RunDirError, one_line
from undrift.registry import BENCHMARKS
from undrift.run.progress import StudyBar, calm

if TYPE_CHECKING:
    from undrift.run.study import Study


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
    commands: Annotated[
        bool, typer.Option("--commands", help="Print the commands of what is not done, one a line.")
    ] = False,
    gather: Annotated[
        bool, typer.Option("--gather", help="Take in what others have run, and run none.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Run a grid of methods, seeds, orders and rates side by side; write one table of them.

    What is finished is not run again: after a stop, the same command goes on. What the results
    have of runs that wait stays until those are finished. A study's file:

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
    `widen: true`, to try the rate beyond the edge where the best one lies;
    `drop: 3`, to run a rate that is three points behind with the first seed only.

    \b
    On a cluster, or with xargs or GNU parallel, in a folder that all machines see:
      undrift study FILE --commands > todo
      tr '\\n' '\\0' < todo | xargs -0 -P 8 -I CELL sh -c CELL
      undrift study FILE --gather
    """  # noqa: D301
    calm(None)
    from undrift.report.paired import Pairing
    from undrift.report.study_table import study_markdown
    from undrift.run.setting_keys import check_reading
    from undrift.run.study import Study
    from undrift.run.study_plan import Plan, load_study
    from undrift.rundir import check_writable
    from undrift.rundir.lock import held
    from undrift.rundir.paths import LOCK

    if listing + commands + gather > 1:
        raise ConfigError("--list, --commands and --gather exclude each other; give one of them")
    if ((listing or commands) and (jobs or prune)) or (gather and jobs):
        raise ConfigError("--jobs and --prune are for what is run here; leave them out")
    config = load_study(file)
    folder = work or Path("runs") / f"study-{file.stem}"
    if not (listing or commands):
        check_writable(folder, choose="choose another place with --work")
    with nullcontext() if listing or commands else held(folder):
        load, data = BENCHMARKS.load(config.benchmark), config.run.get("data")
        # pictures are drawn here, so that cells side by side do not all draw them
        reading = config.run.get("reading", {})
        check_reading(config.benchmark, reading)
        shown = not (quiet or as_json)
        benchmark = load(None if data is None else Path(data), progress=shown, **reading)
        plan, command = Plan(config, benchmark), f"undrift study {file}"
        how = {"prune": prune, "paired": Pairing()}
        made = Study(plan, command, folder, study_markdown, only or (), **how)
        if listing:
            _list(made, as_json)
            return
        if commands:
            _print_commands(made, as_json)
            return
        if gather:
            made.write()
        else:
            with options.progress(quiet, as_json, StudyBar) as progress:
                made.go(jobs or os.cpu_count() or 1, progress)
            for done in made.finished:
                draw_page(done)  # of a run that was killed between its last number and its page
                if (done / LOCK).exists():  # which it has left as well, or another study is there
                    with suppress(RunDirError), held(done):
                        pass
        results, left = made.results(), len(made.todo)
        if as_json:
            options.print_json(results)
        elif results["runs"] and not quiet:
            print(f"\n{made.table(results)}")
            print(f"written: {' and '.join(map(str, made.files))}; the runs: {made.work}")
        if gather and left and not (quiet or as_json):
            total = len({cell.name for cell in made.cells})
            print(f"not done: {left} of {total} runs; --commands prints them")
        _complain(made)
        if made.failures:
            raise typer.Exit(1)


def _print_commands(study: Study, as_json: bool) -> None:
    """Print the commands of the cells that are not done, one a line."""
    todo = [study.command_of(cell) for cell in study.todo]
    if as_json:
        options.print_json(todo)
    for command in () if as_json else todo:
        print(command)


def _list(study: Study, as_json: bool) -> None:
    """Print the cells, what is done of them, and their commands."""
    rows = [
        {
            **cell.known,
            "folder": str(study.folder(cell)),
            "done": study.last(cell) is not None,
            "command": study.command_of(cell),
        }
        for cell in study.cells
    ]
    if as_json:
        options.print_json(rows)
        return
    for cell, row in zip(study.cells, rows, strict=True):
        print(f"{cell.title}{' (done)' if row['done'] else ''}\n  {row['command']}")
    done = sum(row["done"] for row in rows)
    print(f"{len(rows)} cells, {done} of them done; results: {' and '.join(map(str, study.files))}")


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
