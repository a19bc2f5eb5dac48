"""Which learned task a prompt belongs to, and pools whose experts are weighed by that.

Prototypes are mean features, scores are cosines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods import base
from undrift.methods.shared import pool
from undrift.methods.shared.plain_lora import PlainLora, plain_lora
from undrift.methods.shared.prompt_features import FeatureConfig, Features, features
from undrift.methods.shared.state import State
from undrift.tuner import Gates, Prompt
from undrift.tuner.distributed import summed


@dataclass(frozen=True)
class Matching:
    """How prompts are matched with tasks.

    Attributes:
        weights: What each modality counts for in a score; one that a prompt lacks, or that no
            example of a task had, drops out and the others are weighed anew.
        tau: The temperature of the softmax over scores.
        choice: "softmax", or "argmax", which gives the best task everything.
        centred: Take the cosines from the mean of the prototypes, not from zero [OURS]: the words
            of the chat template, which all prompts share, make all texts and so all weights alike.
        oracle: Be told the task instead.
    """

    weights: Mapping[str, float]
    tau: float
    choice: Literal["softmax", "argmax"] = "softmax"
    centred: bool = True
    oracle: bool = False


class Identified:
    """Counts how often the best task was the one that was asked.

    Args:
        base: The last score is the base's, which answers what is near no task.
    """

    def __init__(self, *, base: bool = False) -> None:
        self._base = base
        self._right = self._unclaimed = self._told = 0

    def note(self, scores: Tensor, asked: int | None) -> Tensor:
        """Find the best task of every prompt, and count those that are right.

        Args:
            scores: Of B prompts, (B, T).
            asked: The task's number, from 1; nothing is counted where it is not known or not yet
                learned.

        Returns:
            The index of the best, (B,).
        """
        best = scores.argmax(1)
        if asked is not None and 1 <= asked <= scores.shape[1]:
            self._right += int((best == asked - 1).sum())
            self._unclaimed += int((best == scores.shape[1] - 1).sum()) if self._base else 0
            self._told += len(best)
        return best

    def facts(self) -> dict[str, Any]:
        """Tell the accuracy since the last call.

        Returns:
            `identified` in percent, `base` too where the base may answer, and `prompts`, how many
            that is of; nothing where none counted.
        """
        right, unclaimed, total = self._right, self._unclaimed, self._told
        self._right = self._unclaimed = self._told = 0
        if not total:
            return {}
        base = {"base": 100 * unclaimed / total} if self._base else {}
        return {"identified": 100 * right / total, **base, "prompts": total}


def told(best: Tensor, asked: int | None, tasks: int) -> Tensor:
    """Put the task that was asked in the place of the best one.

    Args:
        best: Indices of tasks, (B,).
        asked: The task's number, from 1.
        tasks: How many are learned; one that is not learned yet cannot be told.

    Returns:
        (B,).

    Raises:
        ConfigError: If it is not known which task is asked.
    """
    if asked is None:
        raise ConfigError(
            "oracle matching needs to be told which task is asked: set the method's `asked` (a "
            "run does), or turn the option oracle off"
        )
    return torch.full_like(best, asked - 1) if 1 <= asked <= tasks else best


def cosines(
    features: Features,
    prototypes: Mapping[str, Tensor],
    weights: Mapping[str, float],
    known: Mapping[str, Tensor] | None = None,
    *,
    centred: bool = False,
) -> Tensor:
    """Compare prompts with prototypes: the weighted mean of the cosines of each modality.

    Args:
        features: Of B prompts.
        prototypes: By modality, (T, d).
        weights: What each modality counts for; one that a prompt or a task lacks drops out.
        known: By modality, which tasks have it, (T,) bool; all where not given.
        centred: Take the cosines from the mean of the prototypes; of a single one they are 0.

    Returns:
        (B, T) float32; -inf where prompt and task share no modality.
    """
    total = weight = torch.zeros((), device=features.of["text"].device)
    for name, share in weights.items():
        mean, there = prototypes[name].double(), features.present[name]
        have = torch.ones_like(mean[:, 0], dtype=torch.bool) if known is None else known[name]
        own = features.of[name].double()
        if centred:
            centre = mean[have].sum(0) / have.sum().clamp_min(1)
            mean, own = mean - centre, own - centre
        near = functional.normalize(own, dim=1) @ functional.normalize(mean, dim=1).mT
        both = there[:, None] & have
        total = total + share * both * near
        weight = weight + share * both
    return torch.where(weight > 0, total / weight, -torch.inf).float()


class TaskMatcher:
    """Prototypes of the tasks learned so far, and of the one that is being learned.

    A prototype is the mean feature of a task's examples, per modality: a float64 sum and an integer
    count, from zero. Sums of several processes are summed when a task ends.

    Args:
        matching: How prompts are matched with tasks.
        size: d, the length of a feature.
        device: Where the sums are kept.

    Attributes:
        sums: By modality, over the examples of each finished task, (T, d) float64.
        counts: By modality, how many they were, (T,) int64.
        identified: How often the best task was the one asked.
    """

    def __init__(self, matching: Matching, size: int, device: torch.device | str = "cpu") -> None:
        self.matching = matching
        self.identified = Identified()
        self._held: dict[str, Tensor] = {}  # by the names that they are saved under
        for name in matching.weights:
            self._held |= {
                f"{name}.sums": torch.zeros(0, size, dtype=torch.float64, device=device),
                f"{name}.counts": torch.zeros(0, dtype=torch.int64, device=device),
                f"{name}.running_sum": torch.zeros(size, dtype=torch.float64, device=device),
                f"{name}.running_count": torch.zeros(1, dtype=torch.int64, device=device),
            }

    @property
    def sums(self) -> dict[str, Tensor]:
        """By modality, over the examples of each finished task, (T, d) float64."""
        return {name: self._held[f"{name}.sums"] for name in self.matching.weights}

    @property
    def counts(self) -> dict[str, Tensor]:
        """By modality, how many examples each finished task had, (T,) int64."""
        return {name: self._held[f"{name}.counts"] for name in self.matching.weights}

    @property
    def tasks(self) -> int:
        """T, how many tasks are finished."""
        return max(len(counts) for counts in self.counts.values())

    # ------------------------------------------------------------ a task's prototype

    def start_task(self) -> None:
        """Begin a task with empty sums."""
        for part in self._running():
            part.zero_()

    def see(self, features: Features) -> None:
        """Add the features of training examples to the sums of the task being learned.

        Args:
            features: Of a batch.
        """
        for name in self.matching.weights:
            self._held[f"{name}.running_sum"] += features.of[name].double().sum(0)  # or zero
            self._held[f"{name}.running_count"] += features.present[name].sum()

    def end_task(self) -> None:
        """Give the task being learned its prototype."""
        held = self._held
        with summed([self.state()]):
            for name in self.matching.weights:
                for kind, one in (("sums", "running_sum"), ("counts", "running_count")):
                    new = held[f"{name}.{one}"].view(1, *held[f"{name}.{kind}"].shape[1:])
                    held[f"{name}.{kind}"] = torch.cat([held[f"{name}.{kind}"], new])
        self.start_task()

    def _running(self) -> list[Tensor]:
        """The sums of the task being learned."""
        kinds = ("running_sum", "running_count")
        return [self._held[f"{name}.{kind}"] for kind in kinds for name in self.matching.weights]

    def prototypes(self, modality: str) -> Tensor:
        """Return the mean features of the finished tasks.

        Args:
            modality: "image" or "text".

        Returns:
            (T, d) float64; zero for a task that had none of the modality.
        """
        return self.sums[modality] / self.counts[modality].clamp_min(1)[:, None]

    # ------------------------------------------------------------ matching

    def scores(self, features: Features) -> Tensor:
        """Compare prompts with prototypes.

        Args:
            features: Of B prompts.

        Returns:
            See `cosines`, (B, T).
        """
        weights = self.matching.weights
        prototypes = {name: self.prototypes(name) for name in weights}
        known = {name: self.counts[name] > 0 for name in weights}
        return cosines(features, prototypes, weights, known, centred=self.matching.centred)

    def match(self, features: Features, asked: int | None = None) -> Tensor:
        """Weigh the finished tasks for each prompt, and note whether the best was the task asked.

        Args:
            features: Of B prompts.
            asked: The number of the task, from 1, that they belong to, where whoever asks knows it.

        Returns:
            (B, T) float32, rows summing to 1; the same for all tasks where nothing can be compared.
        """
        scores = self.scores(features)
        scores = scores.masked_fill(torch.isinf(scores).all(1, keepdim=True), 0.0)
        best = self.identified.note(scores, asked)
        if self.matching.oracle:
            best = told(best, asked, self.tasks)
        if self.matching.oracle or self.matching.choice == "argmax":
            return functional.one_hot(best, self.tasks).float()
        return (scores / self.matching.tau).softmax(1)

    # ------------------------------------------------------------ on disk

    def state(self) -> State:
        """Name all sums and counts."""
        return State(self._held, self._running())

    def restore(self, saved: State) -> None:
        """Take back what `state` named, of any number of tasks.

        Args:
            saved: What was read.

        Raises:
            AdapterMismatch: If it is of another method or model.
        """
        self._held = taken_back(self._held, saved)

    def make_room(self, tasks: int) -> None:
        """Bring what is kept of finished tasks to its size."""
        for key, each in self._held.items():
            if key.endswith(("sums", "counts")):
                self._held[key] = each.new_zeros(tasks, *each.shape[1:])


def taken_back(own: Mapping[str, Tensor], saved: State) -> dict[str, Tensor]:
    """Take what was saved of any number of tasks in the place of what a matcher holds.

    Args:
        own: What it holds; tasks lie along the first dimension.
        saved: What was read.

    Returns:
        It, where the matcher keeps its own.

    Raises:
        AdapterMismatch: If it is of another method, of other options or another model.
    """
    found = saved.tensors or {}
    if own.keys() != found.keys() or any(own[k].shape[1:] != found[k].shape[1:] for k in own):
        raise AdapterMismatch(
            f"{saved.path} is of another method, other options or another backbone: expected "
            f"{', '.join(sorted(own))} with features of this model's size; load it with the method "
            "and options that made it"
        )
    return {key: found[key].to(each.device) for key, each in own.items()}


# --------------------------------------------- pools weighed by a matching


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config, FeatureConfig):
    """The options of a pool, and who looks at the prompts."""


class MatchedPool(pool.PoolMethod[pool.Gate]):
    """While a task is learned its expert works alone; otherwise all are weighed by a matching."""

    Config: ClassVar[type[base.Config]] = Config
    state_name: ClassVar[str] = "task_matcher"
    cut_off: ClassVar[base.CutOff] = "end"
    config: Any  # each method has more options

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._matcher = self.matcher(0, torch.device("cpu"))
        self._learning = False
        self._for: int | None = None  # the number of the task that every prompt is taken for

    # ------------------------------------------------------------ what a method overrides

    def matching(self) -> Matching:
        """Say how prompts are matched with tasks."""
        raise NotImplementedError

    def matcher(self, size: int, device: torch.device) -> Any:
        """Make what matches prompts with tasks, of a model whose features have `size` numbers.

        It has the methods of `TaskMatcher`, which it is by default.
        """
        return TaskMatcher(self.matching(), size, device)

    def mixed(self, weights: Tensor) -> Gates | Mapping[str, Gates]:
        """Make gates of what a matching gave; by default it is the gates of every linear.

        Args:
            weights: Of every expert for every prompt, (B, E).

        Returns:
            See `undrift.tuner.forward.Gates`.
        """
        return weights

    # ------------------------------------------------------------ gates

    def bind(self, model: nn.Module) -> None:
        """Decide a model's gates from now on; what is known of its tasks stays."""
        before = self._model
        super().bind(model)
        if self._model is not before:
            self._matcher = self.matcher(len(self._centre), self._centre.device)
        self._follow(self._centre.device)

    def _follow(self, place: torch.device) -> None:
        """Bring what is known of the tasks to where the model was moved, bound already or not."""
        self._centre, held = self._centre.to(place), self._matcher
        known = held.state()
        if any(each.device != place for each in (known.tensors or {}).values()):
            self._matcher = self.matcher(len(self._centre), place)
            self._matcher.restore(known)
            self._matcher.identified = held.identified

    def gates(self, prompt: Prompt) -> Gates | Mapping[str, Gates]:
        """Match the prompts; those trained on are added to the task's prototype instead."""
        self._follow(prompt.embeds.device)
        found = features(prompt, self._centre, self.config.encoder)
        if self._learning and self._model.training:
            self._matcher.see(found)
        if self._learning or not self._matcher.tasks:
            return "newest"
        if self._for is not None:
            own = torch.arange(self.past(self._model) + 1, device=prompt.embeds.device)
            return (own == self._for - 1).float()
        weights = self._matcher.match(found, self.asked)
        missing = self.past(self._model) + 1 - self._matcher.tasks  # an expert not yet taught
        return self.mixed(functional.pad(weights, (0, missing)))

    @contextmanager
    def answering_for(self, task: int) -> Iterator[None]:
        """Within this context the expert of one task, from 1, answers alone, as it was trained."""
        self._for = task
        try:
            yield
        finally:
            self._for = None

    def as_lora(self, model: nn.Module, task: int | None = None) -> PlainLora:
        """Name the expert of one task; that of all prompts depends on what is read."""
        return super().as_lora(model) if task is None else plain_lora(model, task - 1)

    def facts(self) -> dict[str, Any]:
        """Tell how often the best task was the one that was asked, since the last call."""
        return self._matcher.identified.facts()

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task: from the second on with a new expert, and with an empty prototype."""
        super().task_start(model, task_index, steps_total)
        self._matcher.start_task()

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on with the experts and the sums that the checkpoint brought."""
        super().task_resume(model, task_index, steps_total)
        self._learning = True

    def task_end(self, model: nn.Module) -> None:
        """End a task: its prototype is made."""
        super().task_end(model)
        self._matcher.end_task()
        self._learning = False

    # ------------------------------------------------------------ state and its size

    def state(self, model: nn.Module) -> State:
        """Name the prototypes."""
        return self._matcher.state()

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back the prototypes, whatever the number of tasks that were learned."""
        self._matcher.restore(saved)
        self._learning = False

    def forget(self, model: nn.Module) -> None:
        """Begin without prototypes."""
        self._model = None
        super().forget(model)

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring pool and prototypes to their size after so many tasks."""
        super().make_room(model, tasks)
        self._matcher.make_room(tasks)
