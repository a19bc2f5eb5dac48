"""The command `undrift chat`: a page to try pictures and questions by hand."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from undrift.cli import options
from undrift.run.progress import calm


def chat(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER_OR_MODEL",
            help="A run's folder, one of its adapters, or a model without one: pocket, a folder, a "
            "Hub name.",
        ),
    ],
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--beside",
            metavar="OTHER",
            help="Another to be asked the same (repeatable), such as the adapter of before; `base` "
            "is the model of the first without its adapter. A model that they share is in memory "
            "once.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How long an answer may get; by itself as long as the longest of what was "
            "learned, and 128 of a model without adapter. The page can change it.",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The first free one from 7860 on.")
    ] = None,
    backbone: options.Backbone = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Try pictures and questions by hand on a small page, one adapter or several side by side."""
    calm(threads)
    from undrift.run.chat_page import load_gradio, serving
    from undrift.run.predict import BASE, answer_length, open_several

    load_gradio()  # before a large model is
    names = [adapter, *(beside or ())]
    models = open_several(names, backbone, device or "auto")
    lengths = [answer_length(model) for model in models if model.origin]
    longest = max_new_tokens or max(lengths or [answer_length(models[0])])
    shown = [f"{models[0].backbone.name} (base)" if name == BASE else name for name in names]
    with serving(models, shown, longest, port) as address:
        say = Console(soft_wrap=True)
        say.print(f"open {address} in a browser of this machine; Ctrl-C ends it", markup=False)
        while True:
            time.sleep(3600)
