"""The commands `undrift eval` and `undrift predict`: questions to a saved adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from undrift.cli.options import (
    BackboneOption,
    DataOption,
    DeviceOption,
    JsonFlag,
    QuietFlag,
    ThreadsOption,
    print_json,
    progress,
)
from undrift.errors import ConfigError, unknown
from undrift.registry import BENCHMARKS
from undrift.run.progress import calm
from undrift.scoring import PROFILES


def evaluate(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, or one of its adapters.")],
    benchmark: Annotated[str | None, typer.Option(help="The adapter's own by itself.")] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Ask only this task (repeatable).")
    ] = None,
    backbone: BackboneOption = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Keep every prediction in this folder.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    scoring: Annotated[
        str, typer.Option(help="Whose strict rules: coin, hide, prism, official or lenient.")
    ] = "coin",
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask a saved adapter the test questions of a benchmark."""
    calm(threads)
    from undrift.run.saved import SCORES, examine, find_adapter, open_adapter, origin_of

    if scoring not in PROFILES:
        raise unknown("scoring profile", scoring, PROFILES)

    name = benchmark or origin_of(find_adapter(adapter)).get("benchmark")
    if name is None:
        raise ConfigError(f"{adapter} was not saved by a run; name a benchmark with --benchmark")
    made = BENCHMARKS.load(name)(data, progress=not (quiet or as_json))
    chosen = made.in_order(tuple(tasks) if tasks else "default")
    learned = open_adapter(adapter, backbone, device or "auto")
    with progress(quiet or as_json, False) as told:
        scores = examine(learned, chosen, out, batch_size, told, scoring)
    if as_json:
        print_json({"adapter": str(learned.folder), "benchmark": name, "scores": scores})
        return
    table = Table(title=f"{learned.folder} on {name}, in percent")
    shown = [key for key in SCORES if any(score[key] is not None for score in scores.values())]
    table.add_column("task")
    for key in shown:
        table.add_column("ignoring case" if key == "caseless" else key, justify="right")
    for task, score in scores.items():
        cells = [score[key] for key in shown]
        table.add_row(task, *("" if cell is None else f"{cell:.1f}" for cell in cells))
    Console().print(table)


def predict(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, or one of its adapters.")],
    question: Annotated[str, typer.Option(help="The question, its format line included.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture (repeatable).")
    ] = None,
    backbone: BackboneOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a saved adapter one question about a picture."""
    calm(None)
    from undrift.run.saved import ask, open_adapter

    learned = open_adapter(adapter, backbone, device or "auto")
    answer = ask(learned, question, tuple(image or ()), max_new_tokens)
    if as_json:
        print_json({"adapter": str(learned.folder), "question": question, "answer": answer})
    else:
        Console(soft_wrap=True).print(answer, markup=False, highlight=False)
