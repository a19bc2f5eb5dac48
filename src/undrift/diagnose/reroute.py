"""Re-routing: what a router trained anew could still get out of the experts (SAME, Fig. 1d and 4).

The experts of a snapshot are frozen, and only the router is trained, on the training examples of
an earlier task, from where the snapshot has it, with the run's own rate and number of steps. What
the task then scores is what its experts have not lost: misrouting is out of the picture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn
from transformers import set_seed

from undrift.diagnose.causes import scores
from undrift.diagnose.experts import HELD
from undrift.diagnose.routes import NO_ROUTER
from undrift.diagnose.snapshots import Snapshots, Watched
from undrift.methods.moelora import MoeLora, expert_layers
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.run import plan
from undrift.run.trainer import StepBar, train
from undrift.rundir import read_answers, read_record, write_json
from undrift.rundir.records import Entropy
from undrift.tuner.route_recorder import recorded, use

NOT_BY_TOKEN = "only routers that send single tokens can be trained anew here"


class RouterOnly(MoeLora):
    """Trains the routers of a model with experts, and nothing else."""

    name = "router only"

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin: nothing is noted that a later task would need.

        Args:
            model: A model with experts.
            task_index: Not used.
            steps_total: Not used.
        """
        super().task_start(model, task_index, steps_total)
        adapter = active_adapter(peft_model(model))
        for layer in expert_layers(model).values():
            statistics = layer.statistics(adapter)
            if statistics is not None:
                statistics.collecting = False


def reroute(snapshots: Snapshots, watched: Watched, task: int, count: int) -> dict[str, Any]:
    """Train the routers of later snapshots on a task, and ask about it.

    Args:
        snapshots: The run's adapters.
        watched: In which snapshots.
        task: The task's number.
        count: How many test prompts the entropy is taken over.

    Returns:
        What reroute.json holds: a cell a snapshot with the scores that are recovered, the score
        as it is without, and the entropy of the new routes in percent of log N.
    """
    named = {"task": task, "name": snapshots.tasks[task - 1].name}
    if not isinstance(snapshots.method, MoeLora):
        parts = snapshots.method.parts
        why = {"experts": NO_ROUTER, "router": HELD}.get(parts, NOT_BY_TOKEN)
        return {"applies": False, "why": why, "probe": None, **named, "cells": []}
    snapshots.prepare(snapshots.tasks[task - 1].train)
    cells = [_recovered(snapshots, task, stage, count) for stage in watched.afters(task)]
    return {"applies": True, "why": "", "probe": count, **named, "cells": cells}


def _recovered(snapshots: Snapshots, task: int, stage: int, count: int) -> dict[str, Any]:
    asked = snapshots.tasks[task - 1]
    kept = snapshots.answers / f"rerouted-{stage:02d}" / f"on-{task:02d}.jsonl"
    noted = kept.with_suffix(".json")
    if not noted.is_file():
        snapshots.load(stage)
        title = f"router {stage} trained on {asked.name}"
        with _routers_alone(snapshots.model):
            _train(snapshots, task, title)
        snapshots.examiner.cell(asked, kept, f"{title}: asking", len(asked.test))
        with recorded(snapshots.model) as recorder:
            snapshots.read(task, count)
        entropy = fmean(use(routes).entropy for routes in recorder.routes().values())
        write_json(noted, {"entropy": entropy})
    as_is = snapshots.results.matrix[stage - 1][task - 1]
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


def _train(snapshots: Snapshots, task: int, title: str) -> None:
    asked, config = snapshots.tasks[task - 1], snapshots.config
    rate = config.train.learning_rate or snapshots.method.learning_rate
    settings = plan.settings(config, asked, snapshots.last, rate)
    seed = config.seed * 1000 + task  # as when the task was learned
    set_seed(seed)
    bar = StepBar(snapshots.progress, title, plan.training_work(asked, settings))
    with tempfile.TemporaryDirectory() as folder:
        train(
            snapshots.backbone,
            snapshots.model,
            RouterOnly(top_k=snapshots.method.config.top_k),
            snapshots.collator,
            snapshots.collator.encode(asked.train, answered=True),
            settings,
            Path(folder),
            seed,
            callbacks=[bar],
        )
