"""Router drift while a task is learned: where a few inputs of earlier tasks are sent now.

The routes of at most `PROBE` test examples of each earlier task are written down before the task
begins, and again every so many steps. The training does not notice: random numbers, statistics and
the mode of the model are as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor
from transformers import TrainerCallback

from undrift.data.collate import Encoded
from undrift.data.types import Task
from undrift.run.answer import read
from undrift.run.checkpoint import random_kept
from undrift.run.load_tasks import spaced
from undrift.run.session import Session
from undrift.tuner.route_recorder import Routes, compare, mean, recorded, routed_layers

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
        session: The model, in the state in which the task before has left it.
        earlier: The earlier tasks, by their numbers from 1.
        every: Steps between two looks; there is one after the last step as well.
        aside: Opened for every look, such as `Meter.paused`.
    """

    def __init__(
        self,
        session: Session,
        earlier: Mapping[int, Task],
        every: int,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._tell: Callable[[dict[str, float]], None] = lambda _: None
        self._session, self._every, self._aside = session, every, aside
        self._probes: dict[str, _Probe] = {}
        for number, task in earlier.items():
            chosen = spaced(task.test, min(PROBE, len(task.test)))
            encoded = session.collator.encode(chosen, answered=False)
            self._probes[task.name] = _Probe(number, encoded, self._routes(number, encoded))

    @classmethod
    def where_due(
        cls,
        session: Session,
        earlier: Mapping[int, Task],
        every: int,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> RouteWatch | None:
        """Return a watch, or None where nothing is to be watched: `every` is 0, or no such task."""
        due = every and earlier and _watchable(session)
        return cls(session, earlier, every, aside) if due else None

    @contextmanager
    def telling(self, tell: Callable[[dict[str, float]], None]) -> Iterator[None]:
        """Within this context `tell`, the trainer's `log`, is called with what is found."""
        before, self._tell = self._tell, tell
        try:
            yield
        finally:
            self._tell = before

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, if it is time."""
        if state.global_step % self._every == 0 or state.global_step >= state.max_steps:
            due = control.should_log
            with self._aside():
                self._tell(self.look())
            control.should_log = due  # a log settles it, and the loss is still to be logged

    def look(self) -> dict[str, float]:
        """Compare the routes as they are with those before.

        Returns:
            Such as `routes/overlap`, the mean over tasks, and `routes/overlap/digits`; see
            `undrift.tuner.route_recorder.RouteDrift`.
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
        method, model = self._session.method, self._session.model
        was = model.training
        model.eval()
        with random_kept(), method.predicting(model, task=number), recorded(model) as recorder:
            read(self._session, examples)
        method.facts()  # these prompts are none of those that are counted
        model.train(was)
        return recorder.routes()


def mention_unwatchable(every: int, session: Session) -> None:
    """Say so where routes are to be watched, and the method has none that move as it learns."""
    if every and not _watchable(session):
        text = f"no routes to watch: {session.method.name} trains no router"
        session.progress.event("watch", text, watched=False)


def _watchable(session: Session) -> bool:
    """Tell whether a router is trained with the experts; pools route only between tasks."""
    return session.method.parts == "router and experts" and bool(routed_layers(session.model))
