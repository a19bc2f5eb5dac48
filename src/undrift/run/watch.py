"""Router drift while a task is learned: where a few inputs of earlier tasks are sent now.

The routes of at most `PROBE` test examples of each earlier task are written down before the task
begins, and again every so many steps. The training does not notice: random numbers, statistics and
the mode of the model are as before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback

from undrift.data.collate import Encoded
from undrift.data.types import Task
from undrift.methods.base import Method
from undrift.run.checkpoint import random_kept
from undrift.run.evaluate import Examiner
from undrift.run.plan import spaced
from undrift.run.progress import Quiet
from undrift.tuner.routes import Routes, compare, mean, recorded, routed_layers

PROBE = 16  # examples a task
ROUTES = "routes/"  # what the logged names begin with


class _Probe(NamedTuple):
    """An earlier task: its number, its encoded examples, and their routes before this task."""

    number: int
    examples: Sequence[Encoded]
    before: Routes


class RouteWatch(TrainerCallback):
    """Compares the routes of earlier tasks' inputs with those before this task began.

    Args:
        examiner: Holds the model, in the state in which the task before has left it.
        method: The method.
        earlier: The earlier tasks, by their numbers from 1.
        every: Steps between two looks; there is one after the last step as well. 0 for never.

    Attributes:
        tell: Called with what was found; the trainer's `log`.
    """

    def __init__(
        self, examiner: Examiner, method: Method, earlier: Mapping[int, Task], every: int
    ) -> None:
        self.tell: Callable[[dict[str, float]], None] = lambda _: None
        self._examiner, self._method, self._every = examiner, method, every
        takes = inspect.signature(examiner.backbone.model.forward).parameters
        self._options: dict[str, int] = {"use_cache": False}
        if "logits_to_keep" in takes:  # nobody reads them, and a vocabulary is large
            self._options["logits_to_keep"] = 1
        self._probes: dict[str, _Probe] = {}
        watched = earlier if every and routed_layers(examiner.model) else {}
        for number, task in watched.items():
            chosen = spaced(task.test, min(PROBE, len(task.test)))
            encoded = examiner.collator.encode(chosen, answered=False)
            self._probes[task.name] = _Probe(number, encoded, self._routes(number, encoded))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, if it is time."""
        if self._probes and (
            state.global_step % self._every == 0 or state.global_step >= state.max_steps
        ):
            self.tell(self.look())

    def look(self) -> dict[str, float]:
        """Compare the routes as they are with those before.

        Returns:
            Such as `routes/overlap`, the mean over tasks, and `routes/overlap/digits`; see
            `undrift.tuner.routes.RouteDrift`.
        """
        found = {
            name: compare(probe.before, self._routes(probe.number, probe.examples))
            for name, probe in self._probes.items()
        }
        values = {f"{ROUTES}{key}": value for key, value in mean(found.values())._asdict().items()}
        for name, drift in found.items():
            values |= {f"{ROUTES}{key}/{name}": value for key, value in drift._asdict().items()}
        return values

    def _routes(self, number: int, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """Record the routes of a task's prompts, batch by batch."""
        model, method, backbone = self._examiner.model, self._method, self._examiner.backbone
        was = model.training
        model.eval()
        method.asked = number
        with random_kept(), torch.no_grad(), method.predicting(model), recorded(model) as recorder:
            for start in range(0, len(examples), self._examiner.batch_size):
                part = examples[start : start + self._examiner.batch_size]
                batch = backbone.inputs(self._examiner.collator.collate(part))
                model(**batch, **self._options)
        method.asked = None
        method.facts()  # these prompts are none of those that are counted
        model.train(was)
        return recorder.routes()


def mention_unwatchable(every: int, model: Any, progress: Quiet) -> None:
    """Say so where routes are to be watched, and the method has none.

    Args:
        every: Steps between two looks; 0 for never.
        model: What the method's `attach` returned.
        progress: What is told.
    """
    if every and not routed_layers(model):
        progress.event("watch", "no routes to watch: the method has no experts")
