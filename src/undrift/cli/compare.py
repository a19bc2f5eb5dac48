"""The command `undrift compare`: what the files of finished runs say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from undrift.cli import options
from undrift.errors import ConfigError

if TYPE_CHECKING:
    from undrift.report import Published, Results


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of finished runs; none are needed with --published."),
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Print published rows beside them: coin, ucit, trigap, "
            "mllm_dcl, cvit or vqav2_ten.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Print every metric with its formula, margins, protocol.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write summary.json and report.html into this folder, and what "
            "--markdown, --latex or --csv prints."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print all as LaTeX (booktabs).")] = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: a row per run, task and metric.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Set finished runs side by side: last, just learned, forgetting, errors of case only.

    Runs of one method that differ in their seed only become one column, a mean.
    """
    from undrift import report
    from undrift.rundir import atomic_write, check_writable, write_json
    from undrift.rundir.checks import claim_json, claim_page
    from undrift.rundir.records import Summary

    if sum((markdown, latex, csv, as_json, everything)) > 1:
        raise ConfigError("choose one of --all, --markdown, --latex, --csv and --json")
    articles = report.published(published) if published else None
    if not runs:
        _alone(articles, {"--out": out, "--csv": csv, "--json": as_json}, markdown, latex)
        return
    results = [report.load(folder) for folder in runs]
    rows = report.published_sections(report.grouped(results), articles)
    if out is not None:
        check_writable(out)
        report.check_related(results)
        tables = [out / f"comparison.{kind}" for kind in ("md", "tex", "csv")]
        claim_json(out / "summary.json", Summary, *tables)
        claim_page(out / "report.html")
    text, name = None, ""
    if markdown:
        text, name = report.as_markdown([*report.sections(results), *rows]), "comparison.md"
    elif latex:
        text, name = report.as_latex([*report.sections(results), *rows]), "comparison.tex"
    elif csv:
        text, name = report.as_csv(results, articles), "comparison.csv"
    if text is not None:
        typer.echo(text, nl=False)
    elif as_json:
        options.print_json(report.summary(results, articles))
    elif everything:
        report.print_sections(Console(), [*report.sections(results), *rows])
    else:
        show_runs(results)
        report.print_sections(Console(), rows)
    if out is not None:
        write_json(out / "summary.json", report.summary(results, articles))
        from undrift.report.page import page
        from undrift.report.page_content import page_content

        target = out / "report.html"
        atomic_write(target, page(page_content(results), target))
        if text is not None:
            atomic_write(out / name, text)
        elif not as_json:
            typer.echo(f"written: {out / 'summary.json'} and {target}")


def _alone(
    articles: Published | None, others: dict[str, object], markdown: bool, latex: bool
) -> None:
    """Print published rows, with no run beside them."""
    from undrift import report

    if articles is None:
        raise ConfigError("name the folder of a finished run, or published rows: --published coin")
    if given := [flag for flag, value in others.items() if value]:
        raise ConfigError(f"{given[0]} needs a finished run: name its folder")
    found = report.published_sections([], articles)
    if markdown:
        typer.echo(report.as_markdown(found), nl=False)
    elif latex:
        typer.echo(report.as_latex(found), nl=False)
    else:
        report.print_sections(Console(), found)


def show_runs(runs: list[Results]) -> None:
    """Print the table; under it margins where there are seeds, and what else differs."""
    from undrift import report

    console = Console()
    report.print_table(console, runs)
    groups = report.grouped(runs)
    if any(run.files.stream is not None for run in runs):
        report.print_sections(console, [report.time_section(groups)])
    if any(len(group.runs) > 1 for group in groups):
        report.print_sections(console, [report.margin_section(groups, ["last"])])
    different = report.difference_section(groups)
    if different.rows:
        names = " | ".join(different.header[1:])
        lines = [f"  {key}: {' | '.join(values)}" for key, *values in different.rows]
        text = "\n".join([f"protocol differences ({names}):", *lines])
        console.print(text, markup=False, highlight=False)
    console.print(report.DRIFTS, style="dim")
