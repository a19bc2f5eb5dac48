"""The command `undrift export`: an adapter as what servers load, compared with what it was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undrift.cli import options
from undrift.errors import one_line
from undrift.run.progress import calm

if TYPE_CHECKING:
    from undrift.run.export import Exported


def export(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, or one of its adapters.")],
    to: Annotated[
        Literal["merged", "peft", "gguf"],
        typer.Option(help="A whole model, a plain LoRA of PEFT's, or llama.cpp's file."),
    ],
    out: Annotated[Path, typer.Option(help="A new folder: it appears whole, or not at all.")],
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The LoRA of this task alone, where each has its own."),
    ] = None,
    backbone: options.Backbone = None,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask these rows, not what the adapter has learned."),
    ] = None,
    images: options.Images = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="Do not ask this task (repeatable).")
    ] = None,
    test_of: options.TestOf = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Questions a task, chosen by their ids; 0 asks nothing.")
    ] = 64,
    distil: Annotated[
        bool,
        typer.Option(
            "--distil",
            help="Where experts are chosen by input: fit a plain LoRA to them on half of the "
            "questions, and print what that costs on the other half.",
        ),
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Of the fitted LoRA; that of all experts together by itself."),
    ] = None,
    converters: Annotated[
        Path | None, typer.Option(metavar="DIR", help="llama.cpp's folder, for --to gguf.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts at a time; 16 by itself.")
    ] = None,
    threads: options.Threads = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Make of an adapter what servers load, and ask it and the adapter the same questions.

    merged is a whole model folder with exactly the base's keys and dtype, a quantised base being
    replaced by its full-precision weights; peft a plain LoRA that PEFT and vLLM load without
    undrift; gguf a merged model for llama.cpp. nearlora and disco have a LoRA for every task: --task
    NAME exports that one, exactly. Before the folder appears, what was exported is
    loaded afresh and asked; the answers are compared with the adapter's, and with the bare base's:
    an adapter that does nothing would answer as that does.

    No question, answer, picture or path of data is written into the folder.

    Exit status: 0, or 3 if an answer differs by more than a near-tie, where the adapter preferred its
    own by 0.01 nats (0.25 where weights are half precision). After --distil, and from a quantised
    base, answers may differ: that is printed, and the status is 0. 1 or 2 after an error.
    """  # noqa: E501 (the lines are those of the help)
    if not distil:
        options.refuse_unused({"--rank": rank}, "the LoRA that --distil fits")
    if to != "gguf":
        options.refuse_unused({"--converters": converters}, "--to gguf")
    tasks = {"--without": without, "--test-of": test_of}
    asking = {"--questions": questions, "--images": images, "--batch-size": batch_size, **tasks}
    if not (limit or distil):
        options.refuse_unused(asking, "questions, and --limit 0 asks none")
    if questions is None:
        options.refuse_unused({"--images": images}, "the rows of --questions FILE")
    else:
        of_others = "what was learned, and --questions FILE asks other rows"
        options.refuse_unused(tasks, of_others)
    if task is not None:
        of_all = "all that was learned, and --task asks one task alone"
        options.refuse_unused({"--without": without}, of_all)
    calm(threads)
    from undrift.run.export import Asked, check_free
    from undrift.run.export import export as exported
    from undrift.run.load_model import find_device
    from undrift.rundir import check_writable

    find_device(device or "auto")
    check_free(out)
    check_writable(out)
    asked = Asked(
        adapter=adapter,
        to=to,
        out=out,
        task=task,
        backbone=backbone,
        device=device or "auto",
        batch_size=batch_size or 16,
        questions=questions,
        images=images,
        without=without or (),
        test_of=options.named_paths(test_of, "--test-of"),
        limit=limit,
        distil=distil,
        rank=rank,
        converters=converters,
    )
    with options.progress(quiet, as_json) as told:
        made = exported(asked, told)
    if as_json:
        options.print_json({**asdict(made), "out": str(made.out), "as_expected": made.as_expected})
    elif not quiet:
        _show(made)
    if not made.as_expected:
        raise typer.Exit(3)


def _show(made: Exported) -> None:
    console = Console(soft_wrap=True)
    if made.scores:
        table = Table(title="score in percent, of the same questions")
        table.add_column("task")
        for column in ("bare base", "adapter", "export"):
            table.add_column(column, justify="right")
        for task, row in made.scores.items():
            table.add_row(escape(one_line(task)), *(f"{score:.1f}" for score in row))
        console.print(table)
    for line in _lines(made):
        console.print(one_line(line), markup=False, highlight=False)


def _lines(made: Exported) -> list[str]:
    lines = [f"{made.out}: {made.to}, rank {made.rank}"]
    same, changed = made.same, made.changed
    if same is None or changed is None:
        return [
            *lines,
            *made.notes,
            "nothing was asked: that it answers as the adapter is not known",
        ]
    if same.differ == 0:
        lines.append(f"all {same.asked} answers are the adapter's own")
    else:
        near = same.differ - same.beyond
        lines.append(
            f"{same.differ} of {same.asked} answers are others than the adapter's, {near} of them "
            f"by a near-tie; the clearest of its choices was {same.margin:.2g} nats ahead"
        )
    if made.quantize != "none":
        lines.append(
            f"the adapter answered on a base of {made.quantize}, the export on the whole one"
        )
    if made.fitted:
        costs = [row[1] - row[2] for row in made.scores.values()]
        lines.append(f"the fitted LoRA costs {sum(costs) / len(costs):.1f} points on average")
    lines.append(f"{changed.differ} of {changed.asked} are others than the bare base's")
    if changed.differ == 0:
        lines.append("so nothing shows that the adapter does anything: ask more with --questions")
    return [*lines, *made.notes]
