"""Pages of the site that stand elsewhere or are made: an mkdocs hook, see mkdocs.yml.

README, CHANGELOG and CONTRIBUTING are the files of the repository, with their links turned;
commands and settings are read off the program; the tutorial is the notebook as `make docs` has run
it. In docs/benchmarks.md, `<!-- benchmark coin -->` becomes what that benchmark's file says.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "build" / "tutorials"
ELSEWHERE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
_LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")
_FETCHED = re.compile(r"<(?:script|img|iframe)[^>]*src=.https?:|<link[^>]*stylesheet[^>]*https?:")
_BENCHMARK = re.compile(r"<!-- benchmark (\w+) -->")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not stand in docs/.

    Args:
        files: The files of the site.
        config: mkdocs' own.

    Returns:
        The files, with those pages.
    """
    made = {page: turned((ROOT / file).read_text("utf-8")) for page, file in ELSEWHERE.items()}
    made["reference/commands.md"] = "\n".join(commands())
    made["reference/settings.md"] = "\n".join(settings())
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        files.remove(files.get_file_from_path(f"tutorials/{notebook.name}"))
        page = TUTORIALS / f"{notebook.stem}.md"
        if not page.is_file():
            raise PluginError(f"{page} is not there: `make docs` runs {notebook.name} first")
        for file in sorted(TUTORIALS.rglob(f"{notebook.stem}*/*")):
            place = f"tutorials/{file.relative_to(TUTORIALS)}"
            files.append(File.generated(config, place, abs_src_path=str(file)))
        text = page.read_text("utf-8")
        files.append(File.generated(config, f"tutorials/{page.name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what docs/benchmarks.md says of a benchmark's own file.

    Args:
        markdown: The page's text.
        page: The page.
        **_: Not used.

    Returns:
        The text.
    """
    return _BENCHMARK.sub(lambda found: benchmark(found[1]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Write the `::` before an example in a docstring as the colon that it stands for.

    Args:
        html: The page's text.
        **_: Not used.

    Returns:
        The text.
    """
    return html.replace("::</p>", ":</p>")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would fetch something from the network.

    Args:
        output: The whole page.
        page: The page.
        **_: Not used.

    Returns:
        The page.
    """
    if found := _FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} fetches {found[0]} from the network")
    return output


def turned(text: str) -> str:
    """Turn the links of a file of the repository to the pages of the site."""
    pages = {file: page for page, file in ELSEWHERE.items()}

    def link(found: re.Match[str]) -> str:
        target, place = found[1].removeprefix("docs/"), found[2] or ""
        if target.startswith("examples/"):
            target = "howto/own-trainer.md"
        return f"]({pages.get(target, target)}{place})"

    return _LINK.sub(link, text)


def commands() -> Iterator[str]:
    """Write every command with its arguments and options, as --help has them."""
    from undrift.cli import app

    yield "# Commands\n\nWhat `undrift COMMAND --help` prints.\n"
    for name, command in typer.main.get_command(app).commands.items():
        about = inspect.cleandoc(inspect.getdoc(command.callback) or "")
        first, _, rest = about.partition("\n\n")
        yield f"## undrift {name}\n\n{first}\n"
        if rest:
            shown = rest.replace("\b\n", "").replace("\\\\", "\\")
            yield f"```text\n{shown}\n```\n"
        yield "| option | meaning |\n|---|---|"
        for each in command.params:
            if each.name == "help":
                continue
            told = escape(getattr(each, "help", None) or "").replace("|", "\\|")
            names = ", ".join(f"`{opt}`" for opt in (*each.opts, *each.secondary_opts))
            if each.param_type_name == "argument":
                names = f"`{(each.metavar or each.name or '').upper()}`"
            needed = " (needed)" if each.required else ""
            default = (
                "" if each.default in (None, False, (), []) else f" Default: `{each.default}`."
            )
            yield f"| {names}{needed} | {told}{default} |"
        yield ""


def settings() -> Iterator[str]:
    """Write every key of a configuration, as `undrift list settings` does."""
    from undrift.run.progress import calm
    from undrift.run.setting_keys import all_settings

    calm(None)
    yield "# Settings\n\nThe keys that `--set KEY=VALUE` takes and a YAML file may hold, with their"
    yield "defaults. A benchmark's preset comes over the defaults, the YAML file over the preset,"
    yield "flags over the file and `--set` over flags. `undrift list settings` prints this page.\n"
    for group, found in groupby(all_settings(), lambda each: each.group):
        yield f"## {group}\n\n| key and default | meaning |\n|---|---|"
        for each in found:
            shown = each.default
            default = shown if isinstance(shown, str) else json.dumps(shown, default=str)
            about = escape(each.about, quote=False).replace("|", "\\|")
            yield f"| `{each.key}`<br>`{default}` | {about}<br>*{each.values}* |"
        yield ""


def benchmark(name: str) -> str:
    """Write what a published benchmark's file says: layout, tasks, published rows, terms."""
    module = importlib.import_module(f"undrift.data.benchmarks.{name}")
    about = inspect.cleandoc(module.__doc__ or "").partition("\n\n")[2]
    about = about.replace("```\nDATA", "```text\nDATA", 1)
    rows = ["| task | training rows | test rows | scored as |", "|---|---:|---:|---|"]
    for task in module.TASKS:
        count = ["unknown" if n is None else f"{n:,}" for n in (task.train_rows, task.test_rows)]
        rows.append(f"| {task.name} | {count[0]} | {count[1]} | `{task.scorer}` |")
    made = getattr(module, name.upper(), None)
    terms = module.LICENCE if made is None else made.licence
    return "\n\n".join([about, "\n".join(rows), f"Terms: {terms}."])
