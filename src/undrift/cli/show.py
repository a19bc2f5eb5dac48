"""The command `undrift list`."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from undrift.cli import options
from undrift.errors import ConfigError, unknown
from undrift.registry import BENCHMARKS, METHODS
from undrift.registry import SCORERS as PLUGGED
from undrift.run.progress import calm
from undrift.scoring import SCORERS, TASKS

if TYPE_CHECKING:
    from undrift.run.setting_keys import Setting


def show(
    what: Annotated[
        str | None,
        typer.Argument(help="methods, benchmarks, presets, scorers, backbones or settings."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="With settings: all options of this method, and no others.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Name what there is; `list methods` adds idea and paper, `list settings` each key of --set."""
    from undrift.run.config import presets

    names = {
        "methods": METHODS.names(),
        "benchmarks": BENCHMARKS.names(),
        "presets": presets(),
        "scorers": [*SCORERS, *sorted(PLUGGED.plugins()), *TASKS],
        "backbones": [
            "pocket",
            "smollm2",
            "a folder",
            "a Hub name, such as llava-hf/llava-1.5-7b-hf",
        ],
    }
    if what is not None and what not in (*names, "settings"):
        raise unknown("list", what, [*names, "settings"])
    if what == "settings":
        _show_settings(method, as_json)
        return
    if method is not None:
        raise ConfigError("--method goes with settings: `undrift list settings --method same`")
    content: dict[str, Any] = {what: names[what]} if what in names else names
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
        for name in entries:
            typer.echo(f"  {name}")


def _show_settings(method: str | None, as_json: bool) -> None:
    """Print every key with its default, values and meaning, or those of one method."""
    calm(None)
    from undrift.run.setting_keys import all_settings, method_settings

    found = method_settings(method) if method else all_settings()
    if as_json:
        rows = [{**asdict(each), "equations": each.equations} for each in found]
        options.print_json({"settings": rows})
        return
    console = Console()
    width = console.width if console.is_terminal else None  # elsewhere a line each, for grep
    typer.echo(
        "What --set takes and a YAML file may hold, with its default; the benchmark's preset, the "
        "YAML file, flags and --set come over it, in this order."
    )
    for group, settings in groupby(found, lambda each: each.group):
        typer.echo(f"\n{group}{_of_method(group)}")
        for each in settings:
            typer.echo(_line(each, width))


def _of_method(group: str) -> str:
    """Add to a method's heading its rate and its named settings."""
    kind, _, name = group.partition(" ")
    if kind != "method" or not name:
        return ""
    made = METHODS.load(METHODS.split(name)[0])
    named = f"; settings {', '.join(f'{made.name}-{each}' for each in made.settings)}"
    return f": learning rate {made.learning_rate:g}{named * bool(made.settings)}"


def _line(setting: Setting, width: int | None) -> str:
    shown = setting.default
    default = shown if isinstance(shown, str) else json.dumps(shown, default=str)
    text = f"{setting.key}={default}  ({setting.values}) {setting.about}"
    if width is None:
        return f"  {text}"
    return textwrap.fill(
        text,
        max(width, 20),
        initial_indent="  ",
        subsequent_indent=" " * 6,
        break_on_hyphens=False,
    )
