"""What `undrift eval --lm-eval` prints: tasks of lm-eval, with the adapter and without."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undrift.cli import options
from undrift.errors import ConfigError, one_line

_ERROR = "_stderr"
Scores = Mapping[str, Mapping[str, float]]


def general_ability(
    adapter: str,
    tasks: Sequence[str],
    include: Path | None,
    limit: int | None,
    batch_size: int,
    with_base: bool,
    backbone: str | None,
    device: str,
    *,
    as_json: bool,
    alone: bool,
) -> None:
    """Score an adapter by tasks of lm-eval, and print it.

    Args:
        adapter: An adapter, or a model without one.
        tasks: Names of lm-eval's tasks.
        include: A folder of one's own tasks.
        limit: At most so many questions a task.
        batch_size: Prompts at a time.
        with_base: Score the model without adapter as well.
        backbone: Another place of the adapter's model.
        device: Where to put the model.
        as_json: Print JSON.
        alone: Whether no option was given that these tasks do not take.

    Raises:
        ConfigError: If options do not go together.
    """
    if not tasks:
        raise ConfigError("--include-path and --with-base belong to --lm-eval TASK; name a task")
    if not alone:
        raise ConfigError(
            "--lm-eval asks lm-eval's tasks alone, and takes --limit, --include-path, --with-base, "
            "--backbone, --batch-size and --device; leave the others out"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("undrift eval --lm-eval works in one process: start it without torchrun")
    from undrift.run.evaluators.lm_eval_scores import LmEval
    from undrift.run.predict import BASE, open_several

    asked = LmEval(tasks, include, limit, batch_size)
    names = [adapter, *([BASE] if with_base else [])]
    found = [asked.scores(each) for each in open_several(names, backbone, device)]
    if as_json:
        kinds = ("scores", "base")
        content = {"adapter": adapter, **dict(zip(kinds, found, strict=False))}
        options.print_json(content)
        return
    Console().print(_table(adapter, found[0], found[1] if with_base else None))


def _table(adapter: str, scores: Scores, base: Scores | None) -> Table:
    """Every metric of every task, with its standard error; the base's before the adapter's."""
    table = Table(title=escape(one_line(f"{adapter} on tasks of lm-eval")))
    table.add_column("task")
    table.add_column("metric")
    for head in ("base", "adapter", "change") if base is not None else ("score",):
        table.add_column(head, justify="right")
    for task, row in scores.items():
        for name in (name for name in row if _ERROR not in name):
            cells = [_shown(row, name)]
            if base is not None:
                change = row[name] - base[task][name]
                cells = [_shown(base[task], name), *cells, f"{change:+.4f}"]
            metric, _, kind = name.partition(",")
            metric += f" ({kind})" * (kind != "none")
            table.add_row(escape(one_line(task)), escape(metric), *cells)
    return table


def _shown(row: Mapping[str, float], name: str) -> str:
    """Write a score as lm-eval does, with its standard error if there is one."""
    metric, _, kind = name.partition(",")
    error = row.get(f"{metric}{_ERROR},{kind}")
    return f"{row[name]:.4f}" + (f" ± {error:.4f}" if error is not None else "")
