"""The command `undrift list`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from undrift.cli import options
from undrift.errors import unknown
from undrift.registry import BENCHMARKS, METHODS
from undrift.registry import SCORERS as PLUGGED
from undrift.run.progress import calm
from undrift.scoring import SCORERS, TASKS


def show(
    what: Annotated[
        str | None,
        typer.Argument(help="methods, benchmarks, presets, scorers, backbones or settings."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Name what there is; `list methods` adds idea and paper, `list settings` every option."""
    from undrift.run.config import presets

    names = {
        "methods": METHODS.names(),
        "benchmarks": BENCHMARKS.names(),
        "presets": presets(),
        "scorers": [*SCORERS, *sorted(PLUGGED.plugins()), *TASKS],
        "backbones": ["pocket", "a folder", "a Hub name, such as llava-hf/llava-1.5-7b-hf"],
    }
    if what is not None and what not in (*names, "settings"):
        raise unknown("list", what, [*names, "settings"])
    content: dict[str, Any] = {what: names[what]} if what in names else names
    if what == "settings":
        calm(None)
        from undrift.run.session import method_options

        content = {name: method_options(name) for name in names["methods"]}
    if what == "methods":
        calm(None)
        made = {name: METHODS.load(name) for name in names[what]}
        about = [{"name": n, "summary": m.summary(), "paper": m.paper} for n, m in made.items()]
        content = {what: about}
    if as_json:
        options.print_json(content)
        return
    if what == "methods":
        width = max(map(len, names[what]))
        for row in content[what]:
            about = " ".join(part for part in (row["summary"], f"[{row['paper']}]") if part != "[]")
            typer.echo(f"{row['name']:<{width}}  {about}")
        return
    for title, entries in content.items():
        typer.echo(f"{title}:")
        pairs = entries.items() if isinstance(entries, dict) else ((name, "") for name in entries)
        for name, value in pairs:
            typer.echo(f"  {name}" + (f": {value}" if value != "" else ""))
