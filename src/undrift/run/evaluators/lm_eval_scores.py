"""Tasks of lm-eval, asked of a model in memory, with or without its adapter; texts only."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from undrift.errors import ConfigError, DataError, MissingExtra, first_line, missing_extra, unknown
from undrift.run.adapters import SavedAdapter

_HOW = "undrift eval --lm-eval"
_DRAWS = 1000  # for the standard errors of metrics that are no means


class LmEval:
    """Tasks of lm-eval, found before any model is loaded.

    Args:
        tasks: Their names, or those of groups or tags.
        include: A folder of one's own tasks (YAML).
        limit: At most so many questions a task, the first.
        batch_size: Prompts at a time.

    Raises:
        MissingExtra: If lm-eval is not installed.
        UnknownName: If there is no such task.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        include: Path | None = None,
        limit: int | None = None,
        batch_size: int = 32,
    ) -> None:
        self._evaluator = _load("lm_eval.evaluator")
        self._model: Any = _load("lm_eval.models.huggingface").HFLM
        manager: Any = _load("lm_eval.tasks").TaskManager
        if include is not None and not include.is_dir():
            raise ConfigError(f"--include-path {include} is no folder; name that of the tasks")
        self._manager = manager(include_path=None if include is None else str(include))
        for name in tasks:
            if name not in self._manager.all_tasks:
                raise unknown("task of lm-eval", name, self._near(name))
        self._tasks, self._limit, self._batch_size = list(tasks), limit, batch_size

    def _near(self, name: str) -> list[str]:
        """A few of thousands of names, for a message."""
        return difflib.get_close_matches(name, self._manager.all_tasks, n=5, cutoff=0.3)

    def scores(self, asked: SavedAdapter) -> dict[str, dict[str, float]]:
        """Score a model as it is in memory.

        Args:
            asked: An adapter or a model, from `undrift.run.predict.open_model`.

        Returns:
            By task, lm-eval's metrics and their standard errors by lm-eval's own names, such as
            "acc,none" and "acc_stderr,none".

        Raises:
            DataError: If lm-eval cannot get or ask a task.
        """
        model = self._model(
            pretrained=asked.model,
            tokenizer=asked.backbone.tokenizer,
            backend="causal",
            batch_size=self._batch_size,
            device=str(asked.backbone.device),
        )
        try:
            with asked.method.predicting(asked.model):
                found: Any = self._evaluator.simple_evaluate(
                    model=model,
                    tasks=self._tasks,
                    task_manager=self._manager,
                    limit=self._limit,
                    bootstrap_iters=_DRAWS,
                    log_samples=False,
                )
        except (OSError, ConnectionError) as error:
            raise DataError(
                f"lm-eval cannot ask {', '.join(self._tasks)}: {first_line(error)}"
            ) from error
        results: Mapping[str, Mapping[str, Any]] = found["results"]
        return {
            task: {name: float(row[name]) for name in row if _is_metric(name, row[name])}
            for task, row in results.items()
        }


def _is_metric(name: str, value: Any) -> bool:
    """Tell a metric (or its standard error, which may not be known) from what else is said."""
    return "," in name and isinstance(value, float | int)


def _load(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise _missing() from error


def _missing() -> MissingExtra:
    return missing_extra("lm-eval", "lm-eval", _HOW)
