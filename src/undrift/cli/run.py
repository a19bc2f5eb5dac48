"""The command `undrift run`."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undrift.cli.compare import show_runs
from undrift.cli.options import (
    BackboneOption,
    DataOption,
    DeviceOption,
    ForceFlag,
    FractionOption,
    JsonFlag,
    LimitOption,
    QuietFlag,
    ReplaceFlag,
    ReportToOption,
    SettingsOption,
    SkipBadFlag,
    ThreadsOption,
    WatchRoutesOption,
    print_json,
    progress,
)
from undrift.cli.report import draw_page
from undrift.errors import unknown
from undrift.registry import BENCHMARKS
from undrift.run.progress import calm

if TYPE_CHECKING:
    from undrift.run.config import RunConfig


def run(
    target: Annotated[
        str, typer.Argument(help="A benchmark's name, a run's YAML file, or a preset.")
    ],
    method: Annotated[str | None, typer.Option(help="Such as same, or same-paper.")] = None,
    match_budget: Annotated[
        str | None,
        typer.Option(help="total, active or state: the rank at which it costs what finetune does."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    order: Annotated[
        str | None, typer.Option(help="default, second, reversed, or a file of task names.")
    ] = None,
    backbone: BackboneOption = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/... by itself.")] = None,
    profile: Annotated[str | None, typer.Option(help="full, lite or demo.")] = None,
    limit: LimitOption = None,
    fraction: FractionOption = None,
    skip_bad: SkipBadFlag = False,
    settings: SettingsOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    report_to: ReportToOption = None,
    watch_routes: WatchRoutesOption = None,
    overwrite: ReplaceFlag = False,
    force: ForceFlag = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Learn a benchmark's tasks one after another; the same command goes on after a stop."""
    from undrift.run.config import load_yaml, overrides, read_order, resolve, run_file

    part = {"limit": limit, "fraction": fraction}
    part = {key: value for key, value in {"name": profile, **part}.items() if value is not None}
    flags: dict[str, Any] = {
        "method": method,
        "match_budget": match_budget,
        "seed": seed,
        "order": read_order(order) if order is not None else None,
        "backbone": backbone,
        "data": data,
        "out": out,
        "profile": part or None,
        "skip_bad": skip_bad or None,
        "threads": threads,
        "device": device,
        "report_to": report_to,
        "watch_routes": watch_routes,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    if target.endswith((".yaml", ".yml")):
        base = load_yaml(run_file(target))
    else:
        base = {"benchmark": target}
    config = resolve(base, given, overrides(settings or []))
    _check_names(config)
    calm(config.threads)
    from undrift.run.load_model import check_named
    from undrift.run.task_loop import Run
    from undrift.rundir import check_writable

    check_named(config.base, config.method.options.get("encoder"), config.device)
    check_writable(config.folder)
    gc.freeze()  # a Trainer collects garbage at its start: let it not look at all that is imported
    with progress(quiet, as_json) as told:
        result = Run(config, told, replace=overwrite, force=force).go()
    draw_page(config.folder)
    if as_json:
        print_json({"out": str(config.folder), **result})
    elif not quiet:
        show_runs([config.folder])


def _check_names(config: RunConfig) -> None:
    """Refuse an unknown benchmark before anything heavy is imported."""
    if config.benchmark not in BENCHMARKS.names():
        raise unknown("benchmark", config.benchmark, BENCHMARKS.names())
