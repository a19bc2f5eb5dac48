"""The command `undrift run`."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from undrift.cli import options
from undrift.cli.compare import show_runs
from undrift.cli.report import draw_page
from undrift.errors import unknown
from undrift.registry import BENCHMARKS
from undrift.run.progress import calm


def run(
    target: Annotated[
        str, typer.Argument(help="A benchmark's name, a run's YAML file, or a preset.")
    ],
    method: Annotated[
        str | None, typer.Option(help="Such as nearlora (by itself), same, or same-paper.")
    ] = None,
    match_budget: Annotated[
        str | None,
        typer.Option(help="total, active or state: the rank at which it costs what finetune does."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    order: Annotated[
        str | None, typer.Option(help="default, reversed, another of the benchmark's, or a file.")
    ] = None,
    boundaries: Annotated[
        str | None,
        typer.Option(help="tasks, or none: one stream in which tasks blend and return."),
    ] = None,
    backbone: options.Backbone = None,
    data: options.Data = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/... by itself.")] = None,
    remember: options.Remember = None,
    profile: Annotated[str | None, typer.Option(help="full, lite or demo.")] = None,
    limit: options.Limit = None,
    fraction: options.Fraction = None,
    skip_bad: options.SkipBad = False,
    settings: options.Settings = None,
    threads: options.Threads = None,
    device: options.Device = None,
    report_to: options.ReportTo = None,
    watch_routes: options.WatchRoutes = None,
    overwrite: options.Replace = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Learn a benchmark's tasks one after another; the same command goes on after a stop.

    With --dry-run it says what it would do and prints the configuration, which it takes back:

    \b
      undrift run pocket --method same --dry-run > run.yaml
      undrift run run.yaml
    """  # noqa: D301
    from undrift.report import load
    from undrift.run.config import check_used, load_yaml, overrides, read_order, resolve, run_file

    flags = options.given(
        method=method,
        match_budget=match_budget,
        seed=seed,
        order=None if order is None else read_order(order),
        boundaries=boundaries,
        backbone=backbone,
        data=data,
        out=out,
        remember=remember,
        profile=options.given(name=profile, limit=limit, fraction=fraction) or None,
        skip_bad=skip_bad or None,
        threads=threads,
        device=device,
        report_to=report_to,
        watch_routes=watch_routes,
    )
    listed = target.endswith((".yaml", ".yml"))
    base = load_yaml(run_file(target)) if listed else {"benchmark": target}
    layer = overrides(settings or [])
    config = resolve(base, flags, layer)
    if config.benchmark not in BENCHMARKS.names():  # before anything heavy is imported
        raise unknown("benchmark", config.benchmark, BENCHMARKS.names())
    check_used(config, layer)
    calm(config.threads)
    from undrift.run.load_model import check_named
    from undrift.run.ranks import alone_in, joined
    from undrift.run.task_loop import Run
    from undrift.rundir import check_writable

    check_named(config)
    check_writable(config.folder)
    gc.freeze()  # a Trainer collects garbage at its start: let it not look at all that is imported
    talk = options.progress(quiet, as_json)
    if dry_run:
        told = options.dry_progress(quiet, as_json)
        planned = Run(config, told, replace=overwrite, force=force, dry=True)
        plan = planned.tell_plan()
        options.print_plan(plan, config.text(whole=True), quiet, as_json)
        return
    with joined() as first, alone_in(config.folder), talk as told:
        result = Run(config, told, replace=overwrite, force=force).go()
    if not first:
        return
    draw_page(config.folder)
    if as_json:
        options.print_json({"out": str(config.folder), **result})
    elif not quiet:
        show_runs([load(config.folder)])
