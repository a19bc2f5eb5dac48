"""A plain LoRA a task: the nearest task's answers a prompt, and the base where none is near.

With phi(x) the look of a prompt, mu_c and Cov_c its mean and covariance over the prompts of task c,
and S = sum_c Cov_c over the tasks learned so far:

    d_c(x)^2 = (phi(x) - mu_c)^T (S + Lambda)^-1 (phi(x) - mu_c)
    c(x)     = argmin_c d_c(x)^2,  or the base, where d_c(x)^2 > kappa r_c

r_c is what d_c^2 is on average over prompts of task c that the metric has not seen: one half of
them is measured by the other. All of it follows from sums over examples, so that no order of the
tasks matters, and what is known of a task is never changed by a later one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from undrift.errors import AdapterMismatch
from undrift.methods import base
from undrift.methods.shared import task_matcher
from undrift.methods.shared.prompt_features import MODALITIES, Features
from undrift.methods.shared.state import State
from undrift.methods.shared.task_matcher import Identified, told
from undrift.tuner.distributed import summed

FEW = 8  # prompts; a task of fewer may have none in one of its halves by chance
GRAIN = 1e-3  # of the number by which a prompt belongs to one half or the other
LEAST = 1e-9  # of the variance in any direction


@dataclass(frozen=True, kw_only=True)
class Config(task_matcher.Config):
    """The options of a matched pool, and when a prompt is near a task.

    Attributes:
        width: D, how many numbers say what a prompt looks like: half for its picture, half for its
            text. Where the model's embeddings are wider a fixed random matrix shortens them.
        damping: Lambda: what is added to the variance in every direction, in units of the mean
            variance of the picture's part, or of the text's.
        reach: kappa, how many times further than a task's own prompts a prompt may be and still be
            the task's; infinite, and every prompt belongs to some task.
        oracle: At test, use the LoRA of the task that is asked.
    """

    width: int = base.option(512, ("an even number from 2", lambda v: v >= 2 and v % 2 == 0))
    damping: float = base.option(1e-4, base.POSITIVE)
    reach: float = base.option(4.0, base.POSITIVE)
    oracle: bool = False


class NearLora(task_matcher.MatchedPool):
    """A LoRA a task, trained alone; at test each prompt gets the nearest task's, or the base.

    y = W0 x + s B_c A_c x, with c the task whose prompts the prompt looks like, told by a Gaussian
    a task with one covariance for all. What looks like no task's prompts is answered by the base,
    bit for bit as ever: what it could do is kept without data of it. [A pool of LoRAs behind a
    linear classifier is the strongest router of FLEX, arXiv:2608.01437, and Any-SSR's idea,
    arXiv:2503.13575; the distance is that of Lee et al., NeurIPS 2018, arXiv:1807.03888; the base
    as an answer, the halves and the sum of covariances are ours.]
    """

    name: ClassVar[str] = "nearlora"
    paper: ClassVar[str] = "ours, after FLEX, arXiv:2608.01437, and Lee et al., arXiv:1807.03888"
    Config: ClassVar[type[base.Config]] = Config
    state_name: ClassVar[str] = "nearest_task"
    config: Config

    def matcher(self, size: int, device: torch.device) -> NearestTask:
        """Make what tells tasks apart, of a model whose features have `size` numbers."""
        c = self.config
        return NearestTask(size, c.width, c.damping, c.reach, oracle=c.oracle, device=device)


class NearestTask:
    """Means and covariances of the prompts of tasks, and the sums of the task being learned.

    Args:
        size: d, the length of a feature of one modality.
        width: The most numbers of a prompt's look; D is 2 d where that is less.
        damping: See `Config`.
        reach: See `Config`.
        oracle: Be told the task instead.
        device: Where the sums are kept.

    Attributes:
        identified: How often the task found was the one asked.
    """

    def __init__(
        self,
        size: int,
        width: int,
        damping: float,
        reach: float,
        *,
        oracle: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.damping, self.reach, self.oracle = damping, reach, oracle
        self.identified = Identified()
        half = min(size, width // 2)
        self._R = None if half == size else projection(size, half).to(device)
        D, double = len(MODALITIES) * half, {"dtype": torch.float64, "device": device}
        self._held: dict[str, Tensor] = {  # by the names that they are saved under
            "scatter": torch.zeros(D, D, **double),
            "means": torch.zeros(0, D, **double),
            "spread": torch.zeros(0, **double),
            "running_moment": torch.zeros(0, D, D, **double),  # of two halves, in a task
            "running_sum": torch.zeros(2, D, **double),
            "running_count": torch.zeros(2, dtype=torch.int64, device=device),
        }
        self._metric: Tensor | None = None

    @property
    def tasks(self) -> int:
        """T, how many tasks are finished."""
        return len(self._held["means"])

    # ------------------------------------------------------------ a task's sums

    def start_task(self) -> None:
        """Begin a task with empty sums."""
        held = self._held
        held["running_moment"] = torch.zeros_like(held["scatter"]).expand(2, -1, -1).clone()
        held["running_sum"].zero_()
        held["running_count"].zero_()

    def see(self, features: Features) -> None:
        """Add the look of training prompts to the sums; the same prompt always to the same half.

        Args:
            features: Of a batch.
        """
        phi, held = self.look(features), self._held
        grains = torch.arange(1.0, phi.shape[1] + 1, dtype=phi.dtype, device=phi.device).sin()
        halves = (phi @ grains / GRAIN).floor().long() % 2
        for half in range(2):
            own = phi[halves == half]
            held["running_moment"][half].addmm_(own.mT, own)
            held["running_sum"][half] += own.sum(0)
            held["running_count"][half] += len(own)

    def end_task(self) -> None:
        """Make a class of the task being learned."""
        with summed([self.state()]):
            held = self._held
            moments, sums, counts = (held[f"running_{name}"] for name in ("moment", "sum", "count"))
            n = counts.sum().clamp_min(1)
            mean = sums.sum(0) / n
            spread = self._spread(moments, sums, counts)
            held["scatter"] += _covariance(moments.sum(0) / n, mean)
            held["means"] = torch.cat([held["means"], mean[None]])
            held["spread"] = torch.cat([held["spread"], spread.view(1)])
        self.start_task()
        held["running_moment"] = held["running_moment"][:0].clone()
        self._metric = None

    def _spread(self, moments: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """r: the mean squared distance of one half from the other, in its metric, ()."""
        if int(counts.min()) == 0:  # no prompt to measure, or all are one and the same
            return counts.new_tensor(math.inf if int(counts.sum()) < FEW else 1, dtype=sums.dtype)
        (mean, other), (moment, apart) = sums / counts[:, None], moments / counts[:, None, None]
        P = self._inverse(self._held["scatter"] + _covariance(moment, mean))
        shift = other - mean
        about = _covariance(apart, other) + torch.outer(shift, shift)
        return (P * about).sum().clamp_min(1)

    def _inverse(self, S: Tensor) -> Tensor:
        """(S + Lambda)^-1, with Lambda of each modality's own size, (D, D)."""
        parts = S.diagonal().view(len(MODALITIES), -1).mean(1, keepdim=True)
        floor = (self.damping * parts).clamp_min(LEAST).expand(-1, len(S) // len(MODALITIES))
        L, _ = torch.linalg.cholesky_ex(S + floor.flatten().diag())
        return torch.cholesky_inverse(L)

    def _running(self) -> list[Tensor]:
        """The sums of the task being learned."""
        return [self._held[f"running_{part}"] for part in ("moment", "sum", "count")]

    # ------------------------------------------------------------ which task

    def look(self, features: Features) -> Tensor:
        """Put picture and text of B prompts side by side, phi, (B, D) float64."""
        parts = [features.of[name].double() for name in MODALITIES]
        return torch.cat([each if self._R is None else each @ self._R for each in parts], 1)

    def distances(self, features: Features) -> Tensor:
        """Measure how far prompts are from each task's, d^2.

        Args:
            features: Of B prompts.

        Returns:
            (B, T) float64.
        """
        held = self._held
        if self._metric is None:
            self._metric = self._inverse(held["scatter"])
        apart = self.look(features)[:, None] - held["means"]
        return ((apart @ self._metric) * apart).sum(2)

    def match(self, features: Features, asked: int | None = None) -> Tensor:
        """Choose a finished task for each prompt, or none, and note whether it was the task asked.

        Args:
            features: Of B prompts.
            asked: The number of the task, from 1, that they belong to, where whoever asks knows it.

        Returns:
            (B, T) float32: a one in each row, or zeros alone where the base is to answer.
        """
        distances, tasks = self.distances(features), self.tasks
        nearest, best = distances.min(1)
        near = nearest <= self.reach * self._held["spread"][best]
        scores = functional.one_hot(torch.where(near, best, tasks), tasks + 1)
        best = self.identified.note(scores, asked if asked is None or asked <= tasks else None)
        if self.oracle:
            best = told(best, asked, tasks)
        return functional.one_hot(best, tasks + 1)[:, :tasks].float()

    # ------------------------------------------------------------ on disk

    def state(self) -> State:
        """Name what is kept of finished tasks, and the sums."""
        return State(self._held, self._running())

    def restore(self, saved: State) -> None:
        """Take back what `state` named, of any number of tasks.

        Args:
            saved: What was read.

        Raises:
            AdapterMismatch: If it is of another method, width or model.
        """
        own, found = self._held, saved.tensors or {}
        if own.keys() != found.keys() or any(own[k].shape[1:] != found[k].shape[1:] for k in own):
            raise AdapterMismatch(
                f"{saved.path} is of another method, width or backbone: expected "
                f"{', '.join(sorted(own))} of {len(own['scatter'])} features; load it with the "
                "method and options that made it"
            )
        self._held = {key: found[key].to(each.device) for key, each in own.items()}
        self._metric = None

    def make_room(self, tasks: int) -> None:
        """Bring what is kept of finished tasks to its size."""
        for key in ("means", "spread"):
            each = self._held[key]
            self._held[key] = each.new_zeros(tasks, *each.shape[1:])


def projection(size: int, half: int) -> Tensor:
    """Draw the matrix that shortens a feature, (d, D / 2) float64: always the same."""
    drawn = torch.randn(size, half, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn / math.sqrt(half)


def _covariance(moment: Tensor, mean: Tensor) -> Tensor:
    return moment - torch.outer(mean, mean)


METHOD = NearLora
