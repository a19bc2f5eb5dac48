"""The command `undrift remember`: what a base does before any task, for a history to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from undrift.cli import options
from undrift.errors import ConfigError, RunDirError
from undrift.run.progress import calm


def remember(
    model: Annotated[str, typer.Argument(help="The base: pocket, a folder, or a Hub name.")],
    out: Annotated[Path, typer.Option(help="A new folder for what is remembered.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Prompts, as rows for training, pictures included; answers may be missing, and "
            "are not read. Undrift's own, text only, by itself.",
        ),
    ] = None,
    images: options.Images = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="No prompts: the directions that its weights read.")
    ] = False,
    targets: Annotated[
        str, typer.Option(help="Which linears: those that will be adapted, see method.targets.")
    ] = "ffn",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="How long the base's answers may get; 32 by itself."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts at a time; 16 by itself.")
    ] = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Let the base be task zero: keep what it reads when it answers prompts as it does now.

    Nothing is trained. A method with a history (same, steadylora) then holds what the base could do
    as it holds an earlier task:

    \b
      undrift remember llava-hf/llava-1.5-7b-hf --data general.jsonl --out remembered
      undrift learn llava-hf/llava-1.5-7b-hf --method same --remember remembered \\
          --data invoices.jsonl --out v1

    `undrift learn --remember prompts` does both at once, with undrift's own prompts.
    """  # noqa: D301
    calm(None)
    from undrift.core import UNDRIFT
    from undrift.data.picture_folder import PictureFolder, existing_path
    from undrift.data.questions import read_questions
    from undrift.run.backbone import Backbone
    from undrift.run.load_model import find_device
    from undrift.run.remember import LENGTH, own_prompts
    from undrift.run.remember import remember as keep
    from undrift.rundir import check_writable

    if weights and data is not None:
        raise ConfigError("--weights needs no prompts; leave out --data")
    if weights:
        asking = {"--images": images, "--max-new-tokens": max_new_tokens}
        asking |= {"--batch-size": batch_size}
        options.refuse_unused(asking, "prompts, and --weights needs none")
    if data is None:
        options.refuse_unused({"--images": images}, "the prompts of --data")
    if out.exists():
        raise RunDirError(f"{out} is there already; name a new folder with --out")
    find_device(device or "auto")
    check_writable(out)
    prompts = () if weights else own_prompts()
    if data is not None:
        file = existing_path(data)
        folder = existing_path(images) if images is not None else file.parent
        prompts = read_questions(file, PictureFolder(folder), None)
    backbone = Backbone.load(model, device=device or "auto")
    notes = options.Notes()
    with notes if as_json else options.progress(quiet, False) as told:
        sizes = (batch_size or 16, max_new_tokens or LENGTH)
        content = keep(backbone, prompts, out, told, UNDRIFT, targets, *sizes)
    if as_json:
        options.print_json({"out": str(out), **content, "notes": notes.said})
    elif not quiet:
        Console(soft_wrap=True).print(f"remembered: {out}", markup=False, highlight=False)
