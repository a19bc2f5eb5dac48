"""The adapters of one run, put on one backbone in turn: whole, or the router of one on another."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from undrift.data.collate import Encoded
from undrift.data.subset import subset
from undrift.data.types import Benchmark, Example, Task
from undrift.errors import AdapterMismatch, ConfigError, DataError, RunDirError
from undrift.methods.shared.budget import check_fits
from undrift.methods.shared.tensor_files import load_tensors, save_tensors
from undrift.report import Results, load
from undrift.run.adapters import origin_of
from undrift.run.answer import read
from undrift.run.backbone import Backbone
from undrift.run.config import RunConfig, load_yaml, merged, resolve, spelled_out, validated
from undrift.run.learned_tasks import find_again, relocated
from undrift.run.load_tasks import cut, read_benchmark
from undrift.run.progress import Progress
from undrift.run.session import Session, keep_features, make_method
from undrift.rundir.files import own_folder

WEIGHTS = "adapter_model.safetensors"
ROUTER = "moe_lora_G"  # in WEIGHTS, of the methods whose tokens are routed


@dataclass(frozen=True)
class Scope:
    """Which tasks are looked at, and in which adapters.

    Args:
        last: How many tasks the last of the adapters has learned.
        first: Likewise the first, which all are compared with; each task's own, from when it was
            just learned, where None.
        start: The first task that is looked at, where `first` is None.
    """

    last: int
    first: int | None = None
    start: int = 1

    def __post_init__(self) -> None:
        if self.first is not None and self.first >= self.last:
            raise ConfigError(
                f"adapter {self.last} is not later than adapter {self.first}; name the earlier one "
                "first, by its task or by the number of tasks learned"
            )

    @property
    def tasks(self) -> range:
        """The tasks, from 1: those that the first adapter has learned, or all but the last."""
        return range(1, self.first + 1) if self.first else range(self.start, self.last)

    def before(self, task: int) -> int:
        """Return how many tasks the adapter has learned that a task is compared with."""
        return self.first or task

    def afters(self, task: int) -> list[int]:
        """Return the adapters in which a task is looked at, its own first."""
        return [self.first, self.last] if self.first else list(range(task, self.last + 1))

    @property
    def stages(self) -> list[int]:
        """All adapters that are needed, in order."""
        return sorted({stage for task in self.tasks for stage in self.afters(task)})


class AdapterSeries:
    """The adapters of a finished run, or a chain of them, that has learned tasks in turn.

    Of a chain each adapter is what `undrift learn` has left, and its tasks are read where their
    records say that their test questions are.

    Args:
        folder: The run's folder, or that of the last adapter of a chain.
        data: The benchmark's folder; no part of a chain.
        backbone: Another place of the same backbone.
        benchmark: A benchmark that is loaded already, instead of the run's.
        device: Where to put the model.
        progress: What is told meanwhile.
        limit: Ask and show at most so many test examples a task, chosen by their ids.

    Raises:
        RunDirError: If the folder holds no finished run, or its adapters were deleted.
        ConfigError: If the run has not learned one task after another.
        AdapterMismatch: If the backbone is not the run's.
        DataError: If the benchmark's tasks are not those that the run has learned.
    """

    def __init__(
        self,
        folder: Path,
        *,
        data: Path | None = None,
        backbone: str | None = None,
        benchmark: Benchmark | None = None,
        device: str | None = None,
        progress: Progress | None = None,
        limit: int | None = None,
    ) -> None:
        self.results = load(folder)
        self.files = self.results.files.paths
        if why := nothing_later(self.results):
            raise ConfigError(f"{folder}: {why}")
        self.progress, self.limit = progress or Progress(), limit
        self._weights: dict[int, Mapping[str, Tensor]] = {}
        self.first = self._first()
        given = {"data": data, "device": device, "backbone": backbone}
        chosen = {key: value for key, value in given.items() if value is not None}
        origin = origin_of(self.adapter(self.first))
        if not origin:
            raise RunDirError(
                f"{self.adapter(self.first)} lacks its undrift.json; run it again in a new folder"
            )
        config = self._config(origin, chosen)
        self.config = config.model_copy(
            update={"method": config.method.model_copy(update={"options": origin["options"]})}
        )
        self.method = make_method(origin["method"], origin["options"], origin.get("settings", {}))
        self.tasks = (
            self._learned()
            if self.results.is_chain
            else self._tasks(
                benchmark or read_benchmark(self.config, self.progress, config.base)[0]
            )
        )
        self.backbone = Backbone.load_for(config)
        if self.backbone.fingerprint != origin["fingerprint"]:
            raise AdapterMismatch(
                f"the run in {folder} was made on the backbone {origin['backbone']!r} "
                f"({origin['fingerprint'][:12]}), and {config.backbone!r} is another one "
                f"({self.backbone.fingerprint[:12]}); give its own with --backbone"
            )
        check_fits(self.method, self.backbone.model, self.adapter(self.first))
        self.prepare([example for task in self.tasks for example in task.test])
        self.session = Session.open(
            self.config, self.method, self.backbone, self.progress, announce=False
        )
        self.model = self.session.model

    def prepare(self, examples: Iterable[Example]) -> None:
        """Keep the image features of examples, where the backbone keeps them."""
        keep_features(self.config, self.backbone, examples, self.progress)

    @property
    def answers(self) -> Path:
        """Where answers of mixed models are kept; those about fewer examples lie apart."""
        part = "answers" if self.limit is None else f"answers-{self.limit}"
        return self.files.root / "diagnose" / part

    @property
    def last(self) -> int:
        """How many tasks the run has learned."""
        return len(self.tasks)

    def adapter(self, after: int) -> Path:
        """Return the folder of the adapter after so many tasks, RUN/tasks/01-digits/adapter."""
        folder = self.files.adapter(after, self.results.tasks[after - 1])
        if not (folder / WEIGHTS).is_file() and self.results.is_chain:
            raise RunDirError("; ".join(self.results.files.notes) or f"{folder} is not there")
        if not (folder / WEIGHTS).is_file():
            raise RunDirError(
                f"{folder} is not there: what drifted can only be seen in the adapters, and those "
                f"of this run were deleted (a study does so with --prune); run it again: "
                f"undrift run {self.files.config_file} --out OTHER-FOLDER"
            )
        return folder

    def weights(self, after: int) -> Mapping[str, Tensor]:
        """Return the weights of the adapter after so many tasks, read once."""
        if after not in self._weights:
            self._weights[after] = load_tensors(self.adapter(after) / WEIGHTS)
        return self._weights[after]

    def number(self, name: str) -> int:
        """Return the number of a task by its name, its number from 1, or its adapter's folder."""
        names = list(self.results.tasks)
        if name in names:
            return names.index(name) + 1
        if name.isdecimal() and 1 <= int(name) <= len(names):
            return int(name)
        for index, each in enumerate(names, 1):
            folder = self.files.adapter(index, each).resolve()
            if Path(name).resolve() in (folder, folder.parent):
                return index
        listing = ", ".join(f"{i} {each}" for i, each in enumerate(names, 1))
        raise ConfigError(f"the run has no task {name!r}; it has learned {listing}")

    def load(self, after: int) -> None:
        """Bring the model to where it was after so many tasks."""
        self.method.load_state(self.model, self.adapter(after))
        self.model.eval()

    def load_mixed(self, router: int, experts: int) -> None:
        """Put the router of one adapter on the experts of another, each after so many tasks."""
        with own_folder() as folder:
            mix(self.adapter(router), self.adapter(experts), folder)
            self.method.load_state(self.model, folder)
        self.model.eval()

    def read(self, task: int, count: int) -> None:
        """Let the model read the first `count` test prompts of a task, in the same batches."""
        examples = self.probe(task, count)
        with self.method.predicting(self.model, task=task):
            read(self.session, examples, self.progress.advance)

    def probe(self, task: int, count: int) -> list[Encoded]:
        """Return the first test prompts of a task, encoded once."""
        return self.session.prompts(self.tasks[task - 1])[:count]

    def place(self, task: int, after: int, before: int) -> dict[str, Any]:
        """Name a cell of an answer: the task, and the two adapters that are compared."""
        return {"task": task, "name": self.tasks[task - 1].name, "after": after, "before": before}

    def _first(self) -> int:
        """Return how many tasks the first adapter has learned that is there, of a chain."""
        if not self.results.is_chain:
            return 1
        names = list(enumerate(self.results.tasks, 1))
        there = [i for i, name in names if (self.files.adapter(i, name) / WEIGHTS).is_file()]
        if there == [len(names)]:
            raise RunDirError("; ".join(self.results.files.notes) or "no earlier adapter is there")
        return there[0]

    def _config(self, origin: Mapping[str, Any], chosen: Mapping[str, Any]) -> RunConfig:
        if not self.results.is_chain:
            return resolve(load_yaml(self.files.config_file), chosen)
        content = merged(spelled_out(origin["run"]), chosen)
        if "backbone" in chosen:
            content.pop("backbone_folder", None)  # that of another place
        return validated(RunConfig, content)

    def _learned(self) -> list[Task]:
        """Read the test examples of a chain's tasks; their `train` is not what was learned."""
        folder = self.adapter(len(self.results.tasks))
        notes = relocated(origin_of(folder)["learned"], folder, {})
        found = find_again(notes, self.progress, self.config.base, adapter=folder)
        for task, changed in found:
            if changed:
                raise DataError(
                    f"the test questions of {task.name} are others than when it was learned; put "
                    "those of then back to see what has drifted"
                )
        return [replace(t, test=tuple(subset(t.test, limit=self.limit))) for t, _ in found]

    def _tasks(self, made: Benchmark) -> list[Task]:
        order = made.in_order(self.config.order)
        tasks = [cut(task, self.config.profile, self.config.eval.split) for task in order]
        if [task.name for task in tasks] != list(self.results.tasks):
            raise DataError(
                f"the data has the tasks {[task.name for task in tasks]}, and the run has learned "
                f"{list(self.results.tasks)}; give its own with --data"
            )
        return [replace(task, test=tuple(subset(task.test, limit=self.limit))) for task in tasks]


def nothing_later(results: Results) -> str:
    """Say why nothing can have drifted in a run; empty where tasks were learned in turn."""
    if not results.trained:
        return "this run has trained nothing: there is nothing to forget"
    if len(results.tasks) < 2 or len(results.matrix) < len(results.tasks):
        return "this run was trained once: nothing was learned later that could make it forget"
    return ""


def does_not_apply(why: str) -> dict[str, Any]:
    """Return the answer to a question that a method does not allow."""
    return {"applies": False, "why": why, "probe": None, "cells": []}


def mix(router: Path, experts: Path, into: Path) -> None:
    """Compose an adapter of the router of one and the experts of another.

    What routes is W_G among the weights, and all that lies in files beside them.

    Args:
        router: An adapter's folder.
        experts: Another one of the same run.
        into: An empty folder.

    Raises:
        AdapterMismatch: If the two are of different shapes.
    """
    weights, other = load_tensors(experts / WEIGHTS), load_tensors(router / WEIGHTS)
    taken = {name: tensor for name, tensor in other.items() if ROUTER in name}
    for name, tensor in taken.items():
        if name not in weights or weights[name].shape != tensor.shape:
            raise AdapterMismatch(
                f"the router in {router} does not fit the experts in {experts} ({name}); give two "
                "adapters of one run"
            )
    save_tensors(weights | taken, into / WEIGHTS)
    shutil.copy(experts / "adapter_config.json", into)
    for file in router.glob("*.safetensors"):
        if file.name != WEIGHTS:
            shutil.copy(file, into)
