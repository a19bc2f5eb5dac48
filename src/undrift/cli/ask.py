"""The command `undrift eval`: a saved adapter is asked test questions and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undrift.cli import options
from undrift.cli.general_ability import general_ability
from undrift.errors import ConfigError, one_line, unknown
from undrift.run.progress import calm
from undrift.scoring import PROFILES

if TYPE_CHECKING:
    from undrift.data.types import Task
    from undrift.run.config import RunConfig
    from undrift.run.progress import Progress


_READ = ("order", "data", "skip_bad", "eval.split", "profile.name", "profile.test_share",
         "profile.limit", "profile.fraction", "profile.draw")  # fmt: skip
"""What asking reads of a configuration, besides all of `reading`."""
_OPTIONS = {
    "benchmark": "--benchmark",
    "backbone": "--backbone",
    "device": "--device",
    "threads": "--threads",
    "out": "--out",
    "eval.batch_size": "--batch-size",
    "eval.scoring": "--scoring",
}


def evaluate(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, or one of its adapters.")],
    benchmark: Annotated[
        str | None, typer.Option(help="All of its tasks; what the adapter has learned by itself.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Ask only this task (repeatable).")
    ] = None,
    test_of: options.TestOf = None,
    backbone: options.Backbone = None,
    data: options.Data = None,
    limit: options.Limit = None,
    fraction: options.Fraction = None,
    skip_bad: options.SkipBad = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as reading.instructions=Diverse."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Keep every prediction in this folder.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    scoring: Annotated[
        str | None,
        typer.Option(
            help="Whose strict rules: coin, hide, prism, official, official-2015 or lenient."
        ),
    ] = None,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(
            "--lm-eval",
            metavar="TASK",
            help="Ask this task of lm-eval instead, of texts alone (repeatable).",
        ),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="A folder of your own tasks for --lm-eval.")
    ] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="With --lm-eval, ask the model without it as well.")
    ] = False,
    threads: options.Threads = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Ask a saved adapter the test questions of what it has learned, or of a benchmark."""
    calm(threads)
    if lm_eval or include_path or with_base:
        others = (benchmark, tasks, test_of, data, fraction, skip_bad, settings, out, scoring)
        general_ability(
            *(str(adapter), lm_eval or [], include_path, limit, batch_size),
            *(with_base, backbone, device or "auto"),
            as_json=as_json,
            alone=not any(others),
        )
        return
    from undrift.data.subset import subset
    from undrift.run.adapters import find_adapter, open_adapter, origin_of
    from undrift.run.config import located, overrides, resolve
    from undrift.run.evaluate import SCORES, examine
    from undrift.run.load_model import find_device
    from undrift.run.ranks import alone_in, joined
    from undrift.rundir import check_writable

    find_device(device or "auto")
    if out is not None:
        check_writable(out)
    if scoring is not None and scoring not in PROFILES:
        raise unknown("scoring profile", scoring, PROFILES)
    layer, part = overrides(settings or []), {"limit": limit, "fraction": fraction}
    origin = {} if benchmark else origin_of(find_adapter(adapter))
    base = backbone or located(origin.get("backbone", ""), origin.get("backbone_folder")) or None
    again = bool(origin.get("learned")) and data is None and not layer
    if again:
        asked_so = "a benchmark, and what was learned is asked as it was learned"
        options.refuse_unused({"--skip-bad": skip_bad}, asked_so)
    else:
        is_asked = "what was learned; --benchmark, --data and --set ask a benchmark"
        options.refuse_unused({"--test-of": test_of}, is_asked)
    notes, kept = options.Notes(), [out] if out is not None else []
    talk: Progress = notes if as_json else options.progress(quiet, False)
    with joined() as first, alone_in(*kept), talk as told:
        if again:
            places = options.named_paths(test_of, "--test-of")
            folder = find_adapter(adapter)
            name, found = "what it has learned", _learned(folder, tasks, told, base, places)
            chosen = [replace(task, test=subset(task.test, **part)) for task in found]
        else:
            name = benchmark or origin.get("benchmark")
            if name is None:
                raise ConfigError(f"{adapter} was not saved by undrift; name a --benchmark")
            asked = {
                "benchmark": name,
                "data": data,
                "order": tuple(tasks) if tasks else "default",
                "skip_bad": skip_bad,
                "profile": part,
            }
            config = resolve(asked, layer)
            _check_read(layer)
            chosen = _of_benchmark(config, told, base)
        learned = open_adapter(adapter, backbone, device or "auto")
        rules = scoring or learned.origin.get("run", {}).get("eval", {}).get("scoring", "coin")
        scores = examine(learned, chosen, out, batch_size, told, rules)
    if not first:
        return
    if as_json:
        content = {"adapter": str(learned.folder), "asked": name, "scores": scores}
        options.print_json({**content, "notes": notes.said})
        return
    table = Table(title=escape(one_line(f"{learned.folder} on {name}, in percent")))
    shown = [key for key in SCORES if any(score[key] is not None for score in scores.values())]
    table.add_column("task")
    for key in shown:
        table.add_column("ignoring case" if key == "caseless" else key, justify="right")
    for task, score in scores.items():
        cells = ["" if score[key] is None else f"{score[key]:.1f}" for key in shown]
        table.add_row(escape(one_line(task)), *cells)
    Console().print(table)


def _check_read(layer: Mapping[str, Any]) -> None:
    """Refuse the settings that only learning reads, and those that an option here stands for."""
    for key, value in layer.items():
        inner = [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else [key]
        for full in inner if key != "reading" else ():
            if full not in _READ:
                how = f"give {_OPTIONS[full]}" if full in _OPTIONS else "leave it out"
                raise ConfigError(f"--set {full} is not read where an adapter is asked; {how}")


def _learned(
    adapter: Path,
    names: Sequence[str] | None,
    told: Progress,
    backbone: str | None,
    places: Mapping[str, Path],
) -> Sequence[Task]:
    """Find the tasks that an adapter has learned, with the test examples of then."""
    from undrift.run.adapters import origin_of
    from undrift.run.learned_tasks import find_again, relocated

    notes = origin_of(adapter)["learned"]
    known = [note["name"] for note in notes]
    for name in names or ():
        if name not in known:
            raise unknown("task", name, known)
    wanted = [n for n in relocated(notes, adapter, places) if n["name"] in (names or known)]
    if unasked := places.keys() - {note["name"] for note in wanted}:
        raise ConfigError(f"--test-of: {min(unasked)} is not asked; leave it out")
    found = find_again(wanted, told, backbone, adapter=adapter)
    for task, changed in found:
        if changed:
            text = f"the test questions of {task.name} are not those of when it was learned"
            told.event("changed", text, task=task.name)
    return [task for task, _ in found]


def _of_benchmark(config: RunConfig, told: Progress, backbone: str | None) -> Sequence[Task]:
    """Read a benchmark's tasks."""
    from undrift.run.load_tasks import cut, read_benchmark

    made, skipped = read_benchmark(config, told, backbone)
    if skipped:
        count = len(skipped)
        text = f"{count} bad examples left out, such as {skipped[0].where}"
        told.event("skipped", text, count=count)
    tasks = made.in_order(config.order)
    return [cut(task, config.profile, config.eval.split) for task in tasks]
