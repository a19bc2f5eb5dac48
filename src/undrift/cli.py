"""The command line. Whatever is heavy is imported inside a command, so that help comes at once."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undrift.errors import ConfigError, UndriftError, unknown
from undrift.registry import BENCHMARKS, METHODS
from undrift.run import study_command
from undrift.run.progress import calm
from undrift.scoring import PROFILES

if TYPE_CHECKING:
    from undrift.run.config import RunConfig
    from undrift.run.progress import Quiet as Progress

app = typer.Typer(
    help="Teach a multimodal LLM one task after another without forgetting the earlier ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="The benchmark's folder.")]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="'pocket', a folder, or a Hub name.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda ...")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")]


@app.command()
def run(
    target: Annotated[str, typer.Argument(help="A benchmark's name, or a run's YAML file.")],
    method: Annotated[str | None, typer.Option(help="Such as same, or same-paper.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    order: Annotated[
        str | None, typer.Option(help="default, second, reversed, or a file of task names.")
    ] = None,
    backbone: BackboneOption = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/... by itself.")] = None,
    profile: Annotated[str | None, typer.Option(help="full, lite or demo.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as method.delta=0.95."),
    ] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    overwrite: Annotated[
        bool, typer.Option("--replace", "--overwrite", help="Delete the run that is in the folder.")
    ] = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Learn a benchmark's tasks one after another; the same command goes on after a stop."""
    from undrift.run import layers

    flags: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "order": layers.read_order(order) if order is not None else None,
        "backbone": backbone,
        "data": data,
        "out": out,
        "profile": profile,
        "threads": threads,
        "device": device,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    if target.endswith((".yaml", ".yml")):
        base = layers.load_yaml(Path(target))
    else:
        base = {"benchmark": target}
    config = layers.resolve(base, given, layers.overrides(settings or []))
    _check_names(config)
    calm(config.threads)
    from undrift.run.loop import Run

    gc.freeze()  # a Trainer collects garbage at its start: let it not look at all that is imported
    with _progress(quiet, as_json) as progress:
        result = Run(config, progress, replace=overwrite).go()
    if as_json:
        _print_json({"out": str(config.folder), **result})
    elif not quiet:
        _show_runs([config.folder])


app.command(help=study_command.HELP)(study_command.study)


@app.command("eval")
def evaluate(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, or one of its adapters.")],
    benchmark: Annotated[str | None, typer.Option(help="The adapter's own by itself.")] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Ask only this task (repeatable).")
    ] = None,
    backbone: BackboneOption = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Keep every prediction in this folder.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    scoring: Annotated[
        str, typer.Option(help="Whose strict rules: coin, hide, prism, official or lenient.")
    ] = "coin",
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask a saved adapter the test questions of a benchmark."""
    calm(threads)
    from undrift.run.saved import SCORES, examine, find_adapter, open_adapter, origin_of

    if scoring not in PROFILES:
        raise unknown("scoring profile", scoring, PROFILES)

    name = benchmark or origin_of(find_adapter(adapter)).get("benchmark")
    if name is None:
        raise ConfigError(f"{adapter} was not saved by a run; name a benchmark with --benchmark")
    made = BENCHMARKS.load(name)(data, progress=not (quiet or as_json))
    chosen = made.in_order(tuple(tasks) if tasks else "default")
    learned = open_adapter(adapter, backbone, device or "auto")
    with _progress(quiet or as_json, False) as progress:
        scores = examine(learned, chosen, out, batch_size, progress, scoring)
    if as_json:
        _print_json({"adapter": str(learned.folder), "benchmark": name, "scores": scores})
        return
    table = Table(title=f"{learned.folder} on {name}, in percent")
    shown = [key for key in SCORES if any(score[key] is not None for score in scores.values())]
    table.add_column("task")
    for key in shown:
        table.add_column("ignoring case" if key == "caseless" else key, justify="right")
    for task, score in scores.items():
        cells = [score[key] for key in shown]
        table.add_row(task, *("" if cell is None else f"{cell:.1f}" for cell in cells))
    Console().print(table)


@app.command()
def predict(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, or one of its adapters.")],
    question: Annotated[str, typer.Option(help="The question, its format line included.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture (repeatable).")
    ] = None,
    backbone: BackboneOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a saved adapter one question about a picture."""
    calm(None)
    from undrift.run.saved import ask, open_adapter

    learned = open_adapter(adapter, backbone, device or "auto")
    answer = ask(learned, question, tuple(image or ()), max_new_tokens)
    if as_json:
        _print_json({"adapter": str(learned.folder), "question": question, "answer": answer})
    else:
        Console(soft_wrap=True).print(answer, markup=False, highlight=False)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Write summary.json and report.html into this folder.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Set finished runs side by side: last, just learned, forgetting, errors of case only."""
    from undrift import report
    from undrift.rundir import atomic_write, write_json

    results = [report.load(folder) for folder in runs]
    if as_json:
        _print_json(report.summary(results))
    elif markdown:
        typer.echo(report.markdown(results), nl=False)
    else:
        _show_runs(runs)
    if out is not None:
        write_json(out / "summary.json", report.summary(results))
        atomic_write(out / "report.html", report.page(results))
        if not (as_json or markdown):
            typer.echo(f"written: {out / 'summary.json'} and {out / 'report.html'}")


@app.command("report")
def write_report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html by itself.")] = None,
) -> None:
    """Write one page with heat maps about finished runs."""
    from undrift import report
    from undrift.rundir import atomic_write

    target = out or runs[0] / "report.html"
    atomic_write(target, report.page([report.load(folder) for folder in runs]))
    typer.echo(f"written: {target}")


@app.command("list")
def show(
    what: Annotated[
        str | None, typer.Argument(help="methods, benchmarks, backbones or settings.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Name what there is; `undrift list settings` also gives every option with its default."""
    names = {
        "methods": METHODS.names(),
        "benchmarks": BENCHMARKS.names(),
        "backbones": ["pocket", "a folder", "a Hub name, such as llava-hf/llava-1.5-7b-hf"],
    }
    if what is not None and what not in (*names, "settings"):
        raise unknown("list", what, [*names, "settings"])
    content: dict[str, Any] = {what: names[what]} if what in names else names
    if what == "settings":
        calm(None)
        from undrift.run.saved import options

        content = {name: options(name) for name in names["methods"]}
    if as_json:
        _print_json(content)
        return
    for title, entries in content.items():
        typer.echo(f"{title}:")
        pairs = entries.items() if isinstance(entries, dict) else ((name, "") for name in entries)
        for name, value in pairs:
            typer.echo(f"  {name}" + (f": {value}" if value != "" else ""))


def main() -> None:
    """Run the command line; a mistake of the user is one line and exit status 2."""
    try:
        app()
    except ConfigError as error:
        _fail(error, 2)
    except UndriftError as error:
        _fail(error, 1)
    except (KeyboardInterrupt, SystemExit) as ended:  # typer makes the first the second, with 130
        if isinstance(ended, SystemExit) and ended.code != 130:
            raise
        Console(stderr=True).print("stopped; the same command goes on where it was")
        sys.exit(130)


def _fail(error: Exception, status: int) -> None:
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
    sys.exit(status)


def _check_names(config: RunConfig) -> None:
    """Refuse an unknown benchmark before anything heavy is imported."""
    if config.benchmark not in BENCHMARKS.names():
        raise unknown("benchmark", config.benchmark, BENCHMARKS.names())


def _progress(quiet: bool, as_json: bool) -> Progress:
    from undrift.run.progress import Bars, Lines, Quiet

    if as_json and not quiet:
        return Lines(Console(soft_wrap=True))
    return Quiet() if quiet or as_json else Bars(Console(stderr=True))


def _show_runs(folders: list[Path]) -> None:
    from undrift import report

    console = Console()
    console.print(report.table([report.load(folder) for folder in folders]))
    console.print(report.DRIFTS, style="dim")


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    main()
