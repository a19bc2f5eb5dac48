"""Re-routing: what a router trained anew could still get out of the experts (SAME, Fig. 1d and 4).

The experts of a snapshot are frozen, and only the router is trained, on the training examples of
an earlier task, from where the snapshot has it, with the run's own rate and number of steps. What
the task then scores is what its experts have not lost: misrouting is out of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

from torch import nn
from transformers import set_seed

from undrift.diagnose.adapter_series import AdapterSeries, Scope, does_not_apply
from undrift.diagnose.causes import scores
from undrift.diagnose.experts import HELD
from undrift.diagnose.routes import NO_ROUTER
from undrift.methods.moelora import MoeLora, expert_layers
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.run.answer import measure_cell
from undrift.run.session import Session
from undrift.run.trainer import StepBar, train, training_settings, training_work
from undrift.rundir import read_answers, read_record, write_json
from undrift.rundir.files import own_folder
from undrift.rundir.records import Entropy
from undrift.tuner.route_recorder import recorded, use

NO_EXAMPLES = (
    "an adapter of `undrift learn` is found again with the test questions of its tasks only"
)
NOT_BY_TOKEN = "only routers that send single tokens can be trained anew here"


class RouterOnly(MoeLora):
    """Trains the routers of a model with experts, and nothing else."""

    name = "router only"

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin: nothing is noted that a later task would need."""
        super().task_start(model, task_index, steps_total)
        adapter = active_adapter(peft_model(model))
        for layer in expert_layers(model).values():
            statistics = layer.statistics(adapter)
            if statistics is not None:
                statistics.collecting = False


def reroute(series: AdapterSeries, scope: Scope, task: int, count: int) -> dict[str, Any]:
    """Train the routers of later adapters on a task, and ask about it.

    Args:
        series: The run's adapters.
        scope: In which adapters.
        task: The task's number.
        count: How many test prompts the entropy is taken over.

    Returns:
        What reroute.json holds: a cell a snapshot with the scores that are recovered, the score
        as it is without, and the entropy of the new routes in percent of log N.
    """
    named = {"task": task, "name": series.tasks[task - 1].name}
    if not isinstance(series.method, MoeLora):
        parts = series.method.parts
        why = {"experts": NO_ROUTER, "router": HELD}.get(parts, NOT_BY_TOKEN)
        return does_not_apply(why) | named
    if series.results.is_chain:
        return does_not_apply(NO_EXAMPLES) | named
    series.prepare(series.tasks[task - 1].train)
    cells = [_recovered(series, task, stage, count) for stage in scope.afters(task)]
    return {"applies": True, "why": "", "probe": count, **named, "cells": cells}


def _recovered(series: AdapterSeries, task: int, stage: int, count: int) -> dict[str, Any]:
    asked = series.tasks[task - 1]
    kept = series.answers / f"rerouted-{stage:02d}" / f"on-{task:02d}.jsonl"
    noted = kept.with_suffix(".json")
    if not noted.is_file():
        series.load(stage)
        title = f"router {stage} trained on {asked.name}"
        with _routers_alone(series.model):
            _train(series, task, title)
        measure_cell(series.session, asked, kept, f"{title}: asking")
        with recorded(series.model) as recorder:
            series.read(task, count)
        entropy = fmean(use(routes).entropy for routes in recorder.routes().values())
        write_json(noted, {"entropy": entropy})
    as_is = series.results.matrix[stage - 1][task - 1]
    found = scores(asked.scorer, read_answers(kept))
    return {"after": stage, **found, "as_is": as_is, **read_record(noted, Entropy)}


@contextmanager
def _routers_alone(model: nn.Module) -> Iterator[None]:
    """Within this context only the routers of a model require gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    routers = {p for layer in expert_layers(model).values() for p in layer.moe_lora_G.values()}
    for p in trained:
        p.requires_grad_(p in routers)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _train(series: AdapterSeries, task: int, title: str) -> None:
    asked, config = series.tasks[task - 1], series.config
    settings = training_settings(config, series.method, asked, series.last)
    seed = config.seed * 1000 + task  # as when the task was learned
    set_seed(seed)
    bar = StepBar(series.progress, title, training_work(asked, settings))
    router = RouterOnly(top_k=series.method.config.top_k)
    learning = Session(series.session.backbone, series.session.model, router)
    with own_folder() as folder:
        train(
            learning,
            asked.train,
            settings,
            folder,
            seed,
            callbacks=[bar],
        )
