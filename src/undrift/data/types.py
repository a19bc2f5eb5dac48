"""Example, Task, Benchmark: the nouns that every other part speaks about.

All three are frozen: a run that changes its data cannot be resumed or compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from undrift.errors import DataError, unknown
from undrift.scoring import check_scorer
from undrift.untrusted import half_character

T = TypeVar("T")
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its pictures and its accepted answers.

    Args:
        id: Unique within a task; predictions are matched by it, never by position.
        question: The whole text put to the model, the format line included.
        answers: Accepted answers; the first is the one that is trained on.
        images: Picture files in the order in which the model sees them; may be empty.
        extra: Whatever a benchmark wants to keep beside it (never shown to the model).
        system: The system turn before the question; empty where there is none.

    Raises:
        DataError: If there is no answer or an empty one, or if a text holds half a character (a
            lone surrogate), which no file takes.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    images: tuple[Path, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=lambda: NOTHING, hash=False)
    system: str = ""

    def __post_init__(self) -> None:
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise DataError(
                f"example {self.id!r} has no answer or an empty one: {self.answers!r}; "
                "give at least one text that is not blank"
            )
        if half_character("".join((self.id, self.question, *self.answers, self.system))):
            raise DataError(
                f"example {self.id!r} holds half a character (a lone surrogate) in its id, "
                "question, answers or system turn; write these texts as UTF-8"
            )


@dataclass(frozen=True)
class Task:
    """One thing to learn: examples to train on, to choose on, and to be measured on.

    Args:
        name: Unique in its benchmark, fit for a file name.
        train: Examples the model learns from.
        validation: Examples for choosing settings; may be empty.
        test: Examples behind every reported number.
        scorer: A name in `undrift.scoring.SCORERS`, or in `undrift.scoring.TASKS` if published.
        max_new_tokens: How long an answer may get.

    Raises:
        DataError: If train or test is empty, if an id occurs twice in a split, or if
            `max_new_tokens` is not positive.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    scorer: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        check_scorer(self.scorer)
        if self.max_new_tokens < 1:
            raise DataError(
                f"task {self.name!r} allows answers of {self.max_new_tokens} tokens; "
                "max_new_tokens must be at least 1"
            )
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        for split, examples in splits.items():
            if not examples and split != "validation":
                raise DataError(
                    f"task {self.name!r} has zero {split} examples; "
                    "check the data directory, --limit and --fraction"
                )
            _refuse_repeated(examples, f"task {self.name!r} has two {split} examples")


def _refuse_repeated(examples: Sequence[Example], whose: str) -> None:
    if len({example.id for example in examples}) < len(examples):
        times = Counter(example.id for example in examples)
        twice = [identity for identity, count in times.items() if count > 1]
        raise DataError(
            f"{whose} with the id {twice[0]!r}; predictions are matched by id, so ids must be "
            "unique"
        )


@dataclass(frozen=True)
class General:
    """What shows whether a model can still do what it could before it learned a benchmark's tasks.

    Nothing here is trained on, chosen by or remembered.

    Args:
        examples: Questions, of whose answers the accuracy is measured.
        texts: Plain text by kind, of which the loss a token is measured.
        prompts: Prompts whose answers are compared with those of the untouched model.
        scorer: The rule for `examples`.
        max_new_tokens: How long an answer may get.
        fingerprint: A digest of all this, pictures included.

    Raises:
        DataError: If two examples, or two prompts, have one id.
    """

    examples: tuple[Example, ...] = ()
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    prompts: tuple[Example, ...] = ()
    scorer: str = "exact"
    max_new_tokens: int = 8
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_scorer(self.scorer)
        for asked in (self.examples, self.prompts):
            _refuse_repeated(asked, "general ability has two questions")


@dataclass(frozen=True)
class Benchmark:
    """A named sequence of tasks.

    Args:
        name: The name on the command line.
        version: Changes whenever an example or a picture changes.
        tasks: In the default order.
        licence: Under which terms the data may be used, in words.
        orders: Named task orders besides "default".
        fingerprint: A digest of all examples and pictures of the tasks.
        general: What measures general ability, where the benchmark has it.
        prompts: What a base may be remembered by, with its own answers; of no task, and nothing of
            `general`.

    Raises:
        DataError: If two tasks share a name.
        UnknownName: If an order names a task that does not exist.
    """

    name: str
    version: str
    tasks: tuple[Task, ...]
    licence: str
    orders: Mapping[str, tuple[str, ...]]
    fingerprint: str
    general: General | None = None
    prompts: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise DataError(f"benchmark {self.name!r} has two tasks of one name: {names}")
        for order in self.orders.values():
            self.in_order(order)

    def in_order(self, order: str | Sequence[str]) -> tuple[Task, ...]:
        """Return the tasks in a named order, or in the order of the names given.

        Args:
            order: "default", a key of `orders`, or task names (any subset, in any order).

        Returns:
            The tasks, first to be learned first.

        Raises:
            UnknownName: If there is no such order or no such task.
        """
        if isinstance(order, str):
            named = {"default": tuple(task.name for task in self.tasks), **self.orders}
            if order not in named:
                raise unknown("order", order, named)
            order = named[order]
        by_name = {task.name: task for task in self.tasks}
        for name in order:
            if name not in by_name:
                raise unknown("task", name, by_name)
        return tuple(by_name[name] for name in order)


def chosen(tasks: Sequence[T], only: Sequence[str] | None) -> list[T]:
    """Return the tasks, or what has their names, that `only` names; all if it is None."""
    names = [getattr(task, "name", "") for task in tasks]
    for wanted in only or ():
        if wanted not in names:
            raise unknown("task", wanted, names)
    return [task for task, name in zip(tasks, names, strict=True) if only is None or name in only]
