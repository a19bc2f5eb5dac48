"""The command `undrift doctor`: what is wrong with data, told before a run is paid for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undrift.cli import options
from undrift.errors import ConfigError, UndriftError, one_line, unknown
from undrift.registry import BENCHMARKS
from undrift.run.progress import calm

if TYPE_CHECKING:
    from undrift.data.doctor import OnProgress, Report
    from undrift.data.doctor_checks import Finding, Item

SHOWN = 3  # places of a finding on the screen that have one reason
_NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|/\S+|\d[\d,.]*")
STYLES = {"error": "bold red", "warning": "yellow", "note": "blue"}


def doctor(
    target: Annotated[
        str,
        typer.Argument(help="A benchmark's name, a run's YAML file, or a file or folder of yours."),
    ],
    data: options.Data = None,
    backbone: options.Backbone = None,
    instructions: Annotated[
        str | None, typer.Option(help="CoIN's wording: Original, Diverse or 10Type.")
    ] = None,
    images: options.Images = None,
    scorer: Annotated[str | None, typer.Option(help="The rule of your own tasks.")] = None,
    booleans: options.Booleans = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Only this task (repeatable).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything into this file.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that open pictures; one a CPU.")
    ] = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Look through a benchmark's files, rows and pictures before anything is learned.

    \b
      undrift doctor coin --data ~/CoIN
      undrift doctor my-data --backbone llava-hf/llava-1.5-7b-hf
      undrift doctor my-data/birds/train.csv --images photos
      undrift doctor my-run.yaml --out findings.json

    \b
    It looks for
      files     missing ones, with the nearest name; damaged ones, with the line;
                those that lie with your data and are not read
      rows      that cannot be used or would lose a picture; ids that repeat or mix
                numbers and texts; counts; keys that the model is not shown
      pictures  missing, unreadable, outside their folder, of odd sizes, alike in name; turned,
                laid on white, scaled to 8 bits, or the first of several frames
      prompts   the line that says how to answer: missing, twice, other in the test
      answers   of which even a perfect copy would not be right; boxes in several units
      overlap   questions of the test that are trained on
      captions  test rows that the file of references does not know
      routing   how often the text alone names the task, where there are several: above 95 %
                results about routing say little about pictures; no fault of the data
      lengths   with --backbone: prompts beyond the model's positions, answers beyond
                max_new_tokens; its processor is loaded, its weights are not

    \b
    Ends with 0 (notes at most), 1 (errors or warnings, but of routing) or 2 (it could not look).
    The screen shows the first few places of a finding, --json and --out all of them.
    """  # noqa: D301
    from undrift.rundir import check_writable, write_json
    from undrift.rundir.checks import claim_json
    from undrift.rundir.records import Findings

    if out is not None:
        check_writable(out, file=True)
        claim_json(out, Findings)
    reading = options.given(
        instructions=instructions, images=images, scorer=scorer, booleans=booleans
    )
    try:
        chosen = _chosen(target, data, backbone, tasks, reading)
        with _bars(drawn=not (quiet or as_json)) as progress:
            report = _examined(*chosen, workers, progress)
    except UndriftError as error:  # for other commands damaged data is no wrong use; here, no look
        raise ConfigError(str(error)) from error
    if out is not None:
        write_json(out, report.content())
    if as_json:
        options.print_json(report.content())
    elif not quiet:
        _show(report, out)
    if not report.sound:
        raise typer.Exit(1)


def _chosen(
    target: str,
    data: Path | None,
    backbone: str | None,
    tasks: list[str] | None,
    reading: dict[str, Any],
) -> tuple[str, Path | None, str | None, list[str] | None, dict[str, Any]]:
    """Take what is not given beside a run's file from that file; a path is data of one's own."""
    from undrift.data.picture_folder import existing

    path = Path(target)
    listed = path.name == "tasks.yaml" or not target.endswith((".yaml", ".yml"))
    if data is None and target not in BENCHMARKS.names() and listed and path.exists():
        return "folder", path, backbone, tasks, reading
    if target.endswith((".yaml", ".yml")):
        from undrift.run.config import load_yaml, resolve, run_file
        from undrift.run.setting_keys import check_reading

        config = resolve(load_yaml(run_file(target)))
        check_reading(config.benchmark, config.reading)
        target, data, backbone = config.benchmark, data or config.data, backbone or config.base
        reading = {**config.reading, **reading}
        if tasks is None and not isinstance(config.order, str):
            tasks = list(config.order)
    if target not in BENCHMARKS.names():
        if path.parent != Path():  # no name of a benchmark
            existing(path.parent, (path.name,))
        raise unknown("benchmark", target, BENCHMARKS.names())
    return target, data, backbone, tasks, reading


def _examined(
    benchmark: str,
    data: Path | None,
    backbone: str | None,
    tasks: list[str] | None,
    reading: dict[str, Any],
    workers: int | None,
    progress: OnProgress,
) -> Report:
    import warnings

    from PIL import Image

    from undrift.data.doctor import examine
    from undrift.data.processor import text_only

    # what Pillow suspects is refused and listed
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    ruler = None
    if backbone is not None:
        calm(None)
        from undrift.run.lengths import Ruler

        ruler = Ruler.load(backbone)  # before the pictures: a wrong name should not cost an hour
    sees = ruler is not None and not text_only(ruler.renderer.processor)
    how: dict[str, Any] = {"workers": workers, "progress": progress, "sees": sees}
    report = examine(benchmark, data, only=tasks, options=reading, **how)
    if ruler is None:
        return report
    from undrift.run.lengths import lengths

    return report.plus(lengths(ruler, report.splits, report.sizes, progress))


@contextmanager
def _bars(*, drawn: bool) -> Iterator[OnProgress]:
    """Draw one bar, for whatever is being done; it is gone in the end."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    hidden = not (drawn and console.is_terminal)
    with Bar(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as bar:
        task = bar.add_task("")
        said = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal said
            if what != said:
                bar.reset(task)
                said = what
            bar.update(task, description=what, completed=done, total=total)

        yield tell


def _show(report: Report, out: Path | None) -> None:
    console = Console(highlight=False)
    place = f", {report.data}" if report.data else ""
    console.print(f"[bold]{report.benchmark}[/]{escape(one_line(place))}")
    titles = _titles(report)
    for task in dict.fromkeys([*(f.task for f in report.findings if f.task), *titles, ""]):
        own = [finding for finding in report.findings if finding.task == task]
        if task or own:
            console.print(
                f"\n[bold]{escape(one_line(task) or 'all tasks')}[/]  [dim]{titles.get(task, '')}"
            )
            console.print(_table(own))
    counts = {kind: sum(f.severity == kind for f in report.findings) for kind in STYLES}
    said = ", ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in counts.items())
    verdict = "[green]ready[/]" if report.sound else "[red]not ready[/]"
    console.print(f"\n{verdict}: {said}")
    if out is not None:
        console.print(f"written: {escape(one_line(str(out)))}")
    elif any(len(_shown(f)) < len(f.items) for f in report.findings):
        console.print("[dim]--out FILE writes every place of every finding")


def _titles(report: Report) -> dict[str, str]:
    """Say how much there is of each task."""
    titles: dict[str, str] = {}
    for task in dict.fromkeys(split.task for split in report.splits):
        own = [split for split in report.splits if split.task == task]
        pictures = {path for split in own for path in split.pictures()}
        rows = [f"{split.name} {split.rows:,}" for split in own]
        titles[task] = f"{', '.join(rows)} rows, {len(pictures):,} pictures"
    return titles


def _table(findings: list[Finding]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=9)
    table.add_column(width=10)
    table.add_column()
    order = list(STYLES)
    for finding in sorted(findings, key=lambda finding: order.index(finding.severity)):
        note = finding.severity == "note"
        message = escape(one_line(finding.message))
        lines = [f"[dim]{message}[/]" if note else message]
        if not note:
            shown = _shown(finding)
            lines += [f"[dim]- {escape(one_line(_place(item)))}[/]" for item in shown]
            if 0 < len(shown) < len(finding.items):
                lines.append(f"[dim]  and {len(finding.items) - len(shown):,} more[/]")
            if finding.advice:
                lines.append(f"[italic]{escape(one_line(finding.advice))}[/]")
        style = STYLES[finding.severity]
        table.add_row(f"  [{style}]{finding.severity}[/]", finding.split, "\n".join(lines))
    return table


def _shown(finding: Finding) -> list[Item]:
    """The first places of each reason, names and numbers in it apart; none of a note."""
    if finding.severity == "note" or finding.check == "unread file":  # whose message has them
        return []
    times: Counter[str] = Counter()
    shown = []
    for item in finding.items:
        reason = _NAMES.sub("", item.reason.replace(item.what, ""))
        times[reason] += 1
        if times[reason] <= SHOWN:
            shown.append(item)
    return shown


def _place(item: Item) -> str:
    """Say where something is, and what is wrong there."""
    where = "" if item.row is None or item.file is None else f"{item.file.name}, row {item.row}: "
    named = item.what in item.reason or item.what == f"row {item.row}"
    return where + (item.reason if named else f"{item.what}: {item.reason}").removesuffix(": ")
