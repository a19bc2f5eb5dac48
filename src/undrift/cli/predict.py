"""The command `undrift predict`: questions without known answers, to an adapter or a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from undrift.cli import options
from undrift.errors import ConfigError, RunDirError
from undrift.run.progress import calm
from undrift.rundir import check_writable, write_lines

if TYPE_CHECKING:
    from undrift.data.row_files import BadRow
    from undrift.data.types import Example
    from undrift.run.progress import Progress


def predict(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER_OR_MODEL",
            help="A run's folder, one of its adapters, or a model without one: pocket, a folder, a "
            "Hub name.",
        ),
    ],
    question: Annotated[
        str | None, typer.Option(help="One question, its format line included.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture of it (repeatable).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Many questions instead: rows as for training, answers may be missing."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new file for the answers to --data, a line of JSON each, in the same order."
        ),
    ] = None,
    images: options.Images = None,
    task: Annotated[
        str | None,
        typer.Option(help="The learned task that is asked: answers get as long as its may."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How long an answer may get; by itself as long as those of --task, or the longest "
            "of what was learned, and 128 of a model without adapter.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions of --data at a time; 32 by itself.")
    ] = None,
    skip_bad: options.SkipBad = False,
    backbone: options.Backbone = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Ask an adapter or a model a question about a picture, or a file of questions."""
    calm(None)
    _check_predict(question, image, data, out)
    if data is None:
        of_many = {"--images": images, "--batch-size": batch_size, "--skip-bad": skip_bad}
        options.refuse_unused(of_many, "the rows of --data")
    from undrift.run.evaluate import ask
    from undrift.run.predict import answer_all, answer_length, open_model, task_number

    learned = open_model(adapter, backbone, device or "auto")
    new = max_new_tokens or answer_length(learned, task)
    if data is not None:
        with options.progress(quiet, as_json) as told:
            asked, bad = _questions(data, images, told if skip_bad else None)
            size = batch_size or 32
            rows = answer_all(learned, asked, new, size, told, task=task, skip_bad=skip_bad)
        about = {"adapter": str(learned.folder), "skipped": bad + len(asked) - len(rows)}
        _hand_out(rows, out, about, quiet=quiet, as_json=as_json)
        return
    answer = ask(learned, question or "", tuple(image or ()), new, task_number(learned, task))
    if as_json:
        options.print_json({"adapter": str(learned.folder), "question": question, "answer": answer})
    else:
        Console(soft_wrap=True).print(answer, markup=False, highlight=False)


def _check_predict(
    question: str | None, image: list[Path] | None, data: Path | None, out: Path | None
) -> None:
    """Refuse options that do not go together, before anything is loaded."""
    if (question is None) == (data is None):
        raise ConfigError("give one --question, with its --image, or --data FILE with many")
    if image and data is not None:
        raise ConfigError("--image belongs to --question; the rows of --data name their pictures")
    if out is None:
        return
    if data is None:
        raise ConfigError("--out is for the answers to --data; that to --question is printed")
    if os.path.lexists(out):
        raise RunDirError(f"{out} is there already; name a new file with --out")
    check_writable(out, file=True)


def _questions(
    data: Path, images: Path | None, told: Progress | None
) -> tuple[Sequence[Example], int]:
    """Read the questions; bad rows, which are counted, are left out if there is whom to tell."""
    from undrift.data.picture_folder import PictureFolder, existing_path
    from undrift.data.questions import read_questions

    bad: list[BadRow] = []
    file = existing_path(data)
    folder = existing_path(images) if images is not None else file.parent
    asked = read_questions(file, PictureFolder(folder), None if told is None else bad)
    for row in bad:
        if told is not None:
            where = f"{row.file}, row {row.row}"
            told.event(
                "skipped", f"left out: {where}: {row.reason}", where=where, reason=row.reason
            )
    return asked, len(bad)


def _hand_out(
    rows: Sequence[Mapping[str, str]],
    out: Path | None,
    about: Mapping[str, object],
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the answers, or print them."""
    if out is None:
        for row in rows:
            options.print_json(row)
        return
    write_lines(out, rows)
    if as_json:
        options.print_json({**about, "answers": len(rows), "out": str(out)})
    elif not quiet:
        Console(soft_wrap=True).print(f"{len(rows)} answers: {out}", markup=False, highlight=False)
