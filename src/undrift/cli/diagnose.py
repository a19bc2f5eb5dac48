"""The command `undrift diagnose`: what drifted between the adapters that a run has saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from undrift.cli import options
from undrift.run.progress import calm

if TYPE_CHECKING:
    from undrift.report import Results

_Cell = Mapping[str, Any]


def diagnose(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of finished runs, or of adapters that were learned."),
    ],
    adapters: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Compare the adapters after these two tasks (names, numbers or folders).",
        ),
    ] = None,
    reroute: Annotated[
        str | None, typer.Option(metavar="TASK", help="Also train routers anew on this task.")
    ] = None,
    probe: Annotated[
        int, typer.Option(min=1, help="Test prompts of each task whose ways are followed.")
    ] = 64,
    limit: options.Limit = None,
    again: Annotated[bool, typer.Option("--again", help="Ask anew what was asked before.")] = False,
    data: options.Data = None,
    backbone: options.Backbone = None,
    threads: options.Threads = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """See what drifted: does the router send old inputs elsewhere, have the experts lost the
    skill, or has only the answers' form changed?

    \b
      undrift diagnose runs/demo/moelora runs/demo/nearlora
      undrift diagnose runs/demo/moelora --adapters charts forms
      undrift diagnose runs/demo/moelora --reroute charts
      undrift diagnose adapters/v3

    Router and experts of each task are put back to where they were when it was just learned, one at a
    time and both, and the task is asked: what comes back tells which of them has cost what. Beside it:
    where the test inputs of every task go under every later router, and how far the experts' answers to
    them have moved. The answers are kept in RUN/diagnose/, and `undrift report` shows them.

    Of adapters that `undrift learn` has left name the last one: those before it are found by its record,
    and each stands for the task that it has learned.

    --reroute trains routers anew on one task's training examples, every later snapshot's for itself: as
    much work as learning the task as many times. All else asks and reads test examples only.
    """  # noqa: D205, D301, E501 (the lines are those of the help)
    calm(threads)
    from undrift import report
    from undrift.diagnose import diagnose as ask
    from undrift.run.load_model import find_device
    from undrift.run.ranks import alone_in, joined
    from undrift.rundir import check_writable

    find_device(device or "auto")
    loaded = report.load_all(runs)  # what is no run is told at once
    runs = [run.folder for run in loaded]
    for folder in runs:
        check_writable(folder, choose="its answers are kept there")
    opening = {"data": data, "backbone": backbone, "device": device, "limit": limit}
    asked = {"adapters": adapters, "rerouted": reroute, "probe": probe, "again": again}
    with joined() as first, alone_in(*runs):
        for folder, run in zip(runs, loaded, strict=True):
            notes = options.Notes()
            with notes if as_json else options.progress(quiet, False) as told:
                found = ask(folder, **asked, **opening, progress=told)
            for text in run.files.notes:
                notes.event("files", text)
            if first and as_json:
                general = {} if run.files.general is None else {"general": run.files.general}
                more = {**general, "notes": notes.said}
                options.print_json({"run": str(folder), **found, **more})
            elif first and not quiet:
                _show(run, found)


def _show(run: Results, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a row a task: what it lost and why, where its inputs go, how far its experts moved."""
    console = Console()
    parts = [(part, _latest(found[name]["cells"])) for name, part in _PARTS.items()]
    parts = [(part, cells) for part, cells in parts if cells]
    if parts:
        caption = "; ".join(part.meaning for part, _ in parts)
        table = Table(title=f"{run.folder}: what drifted", caption=caption)
        table.add_column("task")
        for header in (header for part, _ in parts for header in part.columns):
            table.add_column(header, justify="right")
        for task, cell in sorted(parts[0][1].items()):
            row = [entry for part, cells in parts for entry in part.entries(cells[task])]
            table.add_row(cell["name"], *row)
        console.print(table)
    for note in run.files.notes:
        console.print(note, style="dim", highlight=False, soft_wrap=True, markup=False)
    for name, content in found.items():
        if not content["applies"]:
            told = f"{name}: {content['why']}"
            console.print(told, style="dim", highlight=False, soft_wrap=True)
    if run.general:
        console.print(run.general, highlight=False, soft_wrap=True)
    rerouted = found.get("reroute")
    if rerouted and rerouted["cells"]:
        last = rerouted["cells"][-1]
        console.print(
            f"{rerouted['name']} after task {last['after']}: {_number(last['as_is'])}, and "
            f"{last['strict']:.1f} with a router trained anew on it; when it was just learned "
            f"{_number(rerouted['cells'][0]['as_is'])}",
            highlight=False,
            soft_wrap=True,
        )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f}"


def _latest(cells: Sequence[_Cell]) -> dict[int, _Cell]:
    """Choose the cells that were asked last of all, by their task."""
    last = max((cell["after"] for cell in cells), default=0)
    return {cell["task"]: cell for cell in cells if cell["after"] == last}


class _Part(NamedTuple):
    """How a part of the diagnosis is shown: its columns, what they mean, a cell's entries."""

    columns: Sequence[str]
    meaning: str
    entries: Callable[[_Cell], list[str]]


def _causes(cell: _Cell) -> list[str]:
    parts = (cell["lost"]["strict"], cell["router"], cell["expert"], cell["form"])
    return [f"{cell['corners']['old_old']['strict']:.1f}", *(f"{part:z.1f}" for part in parts)]


_PARTS: Mapping[str, _Part] = {
    "causes": _Part(
        ("then", "lost", "router", "experts", "form"),
        "points of accuracy: then, when just learned; lost since, by each cause",
        _causes,
    ),
    "routes": _Part(
        ("overlap",),
        "overlap of its inputs' routes then and now, in percent",
        lambda cell: [f"{cell['overlap']:.1f}"],
    ),
    "experts": _Part(
        ("moved",),
        "change of the experts' answers to them, squared, relative to what they were",
        lambda cell: [f"{cell['moved']:.2f}"],
    ),
}
