"""The command `undrift learn`: one more task for a model or an adapter that you already have."""

from __future__ import annotations

import gc
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undrift.cli import options
from undrift.cli.report import draw_page
from undrift.errors import one_line
from undrift.run.progress import calm

if TYPE_CHECKING:
    from undrift.run.learn import Change, Learn


def learn(
    start: Annotated[str, typer.Argument(metavar="MODEL_OR_ADAPTER", help="What to go on from.")],
    data: Annotated[
        Path, typer.Option("--data", help="The new task: a file of rows, or a folder with train.")
    ],
    out: Annotated[Path, typer.Option(help="The folder of the new adapter and its scores.")],
    name: Annotated[
        str | None, typer.Option(help="The task's name; the data file's by itself.")
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Test questions; by itself a test.* beside train.*, or else a part of --data."
        ),
    ] = None,
    images: options.Images = None,
    scorer: Annotated[
        str, typer.Option(help="How answers are scored; `undrift list scorers` names the rules.")
    ] = "exact",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How long an answer may get.")] = 128,
    booleans: options.Booleans = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="The share of --data that is asked, not learned, also where test rows lie beside "
            "it; 0.1 by itself. With 0 all is learned, and what was learned is asked.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, help="Exit with 3 if an earlier task or a guard falls by more points than this."
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Do not ask this earlier task (repeatable)."),
    ] = None,
    guard: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Questions that are no task, asked before and after as well (repeatable).",
        ),
    ] = None,
    guard_scorer: Annotated[
        str | None, typer.Option(help="How answers to guards are scored; as --scorer by itself.")
    ] = None,
    test_of: options.TestOf = None,
    keep_tests: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="MB",
            help="Copy the test questions of a task beside the adapter up to this size; 0: never.",
        ),
    ] = 200,
    method: Annotated[
        str | None,
        typer.Option(help="For a new adapter, such as nearlora (by itself), same or steadylora."),
    ] = None,
    remember: options.Remember = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    backbone: options.Backbone = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings in YAML, such as --dry-run prints them."),
    ] = None,
    settings: options.Settings = None,
    skip_bad: options.SkipBad = False,
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
    """Learn one more task, and see what became of the earlier ones.

    The start is a model (a folder or a Hub name) or an adapter: what `undrift learn` or `undrift run`
    has left. The new task is learned with the history that the adapter carries; then the new task and
    every earlier one are asked, before and after, and so are the questions of --guard FILE: any
    that the model is to answer afterwards as it did before, whatever it has learned.

    \b
      undrift learn llava-hf/llava-1.5-7b-hf --data invoices.jsonl --name invoices --out adapters/v1
      undrift learn adapters/v1 --data forms.jsonl --test forms-test.jsonl --out adapters/v2

    Before it begins it says what it is going to do, and warns where that cannot work; with --dry-run
    that is all it does. Without train.epochs a small task is gone through until it has had 100 steps.

    \b
    The data is JSON, CSV, TSV, parquet or a dataset that `datasets` has saved. A row is a question
    about pictures with its answer, such as one of these (docs/data.md has all of them):
      {"image": "scans/1.png", "conversations":
          [{"from": "human", "value": "<image>\\nWhat is the total?"}, {"from": "gpt", "value": "12"}]}
      {"images": ["scans/1.png"], "question": "What is the total?", "answer": "12"}

    Exit status: 0, or 3 if an earlier task fell by more than --max-drop points, 1 or 2 after an error.
    """  # noqa: D301, E501 (the lines are those of the help)
    if test is not None:
        where = "asking a part of --data, where no --test is given"
        options.refuse_unused({"--held-out": held_out}, where)
    if not guard:
        questions = "the questions of --guard FILE"
        options.refuse_unused({"--guard-scorer": guard_scorer}, questions)
    calm(threads)
    from undrift.data.benchmarks.folder import own_task, test_beside
    from undrift.data.picture_folder import existing_path
    from undrift.run.adapters import refuse_two_meanings
    from undrift.run.config import check_used, merged, overrides
    from undrift.run.learn import Learn, settings_file, start_from
    from undrift.run.load_model import find_device
    from undrift.run.ranks import alone_in, joined
    from undrift.rundir import check_writable

    find_device(device or "auto")
    check_writable(out)

    flags = options.given(
        method=method,
        remember=remember,
        seed=seed,
        backbone=backbone,
        threads=threads,
        device=device,
        report_to=report_to,
        watch_routes=watch_routes,
        skip_bad=skip_bad or None,
    )
    moved = options.named_paths(test_of, "--test-of")
    layer = overrides(settings or [])
    layers = [*([settings_file(config)] if config else []), flags, layer]
    refuse_two_meanings(start)
    begun = start_from(start, *layers, moved=moved)
    train = merged(*layers).get("train", {})
    # of a file too, where the number of steps is what the adapter was learned with before
    of_file = {} if "max_steps" in train else {"train": {"epochs": train.get("epochs")}}
    check_used(begun.config, merged(of_file, layer))
    if begun.adapter is None:
        has_not = f"tasks that an adapter has learned, and {start} is a model"
        options.refuse_unused({"--without": without, "--test-of": test_of}, has_not)
    if test is None and held_out is None:
        test = test_beside(data)
    own = own_task(
        data,
        name=name,
        images=None if images is None else existing_path(images),
        test=None if test is None else existing_path(test),
        scorer=scorer,
        max_new_tokens=max_new_tokens,
        booleans=booleans,
    )
    if held_out is not None:  # also where a folder has test rows
        own = replace(own, test=None)
    gc.freeze()  # a Trainer collects garbage at its start: let it not look at all that is imported
    share = 0.1 if held_out is None else held_out
    asked: dict[str, Any] = {"held_out": share, "without": without or ()}
    asked |= {"guards": guard or (), "guard_scorer": guard_scorer}
    asked["keep_tests"] = keep_tests
    asked |= {"replace": overwrite, "force": force}
    if dry_run:
        told = options.dry_progress(quiet, as_json)
        lesson = Learn(begun, own, out, told, **asked, dry=True)
        options.print_plan(lesson.tell_plan(), lesson.settings(), quiet, as_json)
        return
    talk = options.progress(quiet, as_json)
    with joined() as first, alone_in(out), talk as told:
        lesson = Learn(begun, own, out, told, **asked)
        changes = lesson.go()
    if not first:
        return
    draw_page(out)
    guards = lesson.guarded()
    if as_json:
        rows = [{**asdict(change), "drop": change.drop} for change in changes]
        found: dict[str, Any] = {
            "adapter": str(lesson.adapter),
            "skipped": len(lesson.skipped),
            "tasks": rows,
        }
        if guards:
            found["guards"] = [change.as_guard() for change in guards]
        options.print_json(found)
    elif not quiet:
        _show(lesson, changes, guards)
    fallen = [c for c in (*changes, *guards) if max_drop is not None and c.drop > max_drop]
    if fallen:
        said = ", ".join(f"{c.task} by {c.drop:.1f}" for c in fallen)
        text = f"fell by more than {max_drop:g} points: {said}; the adapter is kept in {out}"
        Console(stderr=True, soft_wrap=True).print(escape(one_line(text)), highlight=False)
        raise typer.Exit(3)


def _show(lesson: Learn, changes: list[Change], guards: list[Change]) -> None:
    """Print what became of every task and guard."""
    table = Table(title="score in percent, before and after the new task")
    table.add_column("task")
    for title in ("examples", "before", "after", "change"):
        table.add_column(title, justify="right")
    for change in (*changes, *guards):
        kind = " (guard)" if change in guards else " (new)" if change.new else ""
        title = escape(change.task + kind)
        before, after = f"{change.before:.1f}", f"{change.after:.1f}"
        moved = f"{change.after - change.before:+.1f}"
        style = "bold" if change.new else None
        table.add_row(title, str(change.examples), before, after, moved, style=style)
    console = Console(soft_wrap=True)
    console.print(table)
    for change in changes:
        if change.changed:
            console.print(f"note: the test questions of {change.task} are not those of then")
    if lesson.skipped:
        listed, count = lesson.files.root / "skipped.jsonl", len(lesson.skipped)
        console.print(escape(one_line(f"scored without {count} bad examples: {listed}")))
    console.print(escape(one_line(f"the adapter: {lesson.adapter}")), highlight=False)
