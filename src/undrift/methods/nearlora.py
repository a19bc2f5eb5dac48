"""A plain LoRA a task: the nearest task's answers a prompt, and the base where none is near.

A prompt looks like phi(x): a unit vector for its pictures, one for its text, and whether it has
either. With mu_c and Cov_c the mean and covariance of phi over the prompts of task c, and
S = sum_c Cov_c over the tasks learned so far, the nearest task is

    c(x) = argmin_c (phi(x) - mu_c)^T (S + Lambda)^-1 (phi(x) - mu_c)

and x is near it if it lies about as close to the mean as the task's own prompts,

    q_c(x) <= E_c[q_c] + kappa std_c[q_c],   q_c(x) = sum_m |phi_m(x) - mu_cm|^2 / v_cm

over m, pictures and text, v_cm the mean of |phi_m - mu_cm|^2 over the task's prompts. For unit
vectors q_c is linear in phi, so that its mean and deviation follow from mu_c and Cov_c. All of it
is sums over examples: no order of the tasks matters, and what is known of a task is never changed
by a later one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from undrift.methods import base
from undrift.methods.shared import task_matcher
from undrift.methods.shared.prompt_features import MODALITIES, Features
from undrift.methods.shared.state import State
from undrift.methods.shared.task_matcher import Identified, taken_back, told
from undrift.tuner.distributed import summed

FEW = 8  # prompts; of fewer nobody can tell how the next one may look
ENDLESS = 1e300  # of q: nothing is further, and it can be kept in a file, as infinity cannot
LEAST = 1e-6  # of a variance; the rounding of a unit vector is far below
LEAST_APART = 1e-4  # of what prompts of a task differ by; another question is further by far
LEAST_STD = 1e-2  # of q, where all prompts of a task look alike


@dataclass(frozen=True, kw_only=True)
class Config(task_matcher.Config):
    """The options of a matched pool, and when a prompt is near a task.

    Attributes:
        rank: r, the rank of each task's LoRA.
        width: How many numbers say what a prompt looks like, half for its pictures and half for its
            text. A fixed random matrix shortens embeddings that are wider.
        damping: Lambda: what is added to the variance in every direction, in units of the mean
            variance of the pictures' part, or of the text's.
        reach: kappa, by how many standard deviations a prompt may be further from a task than its
            own prompts are on average; with 1e9 every prompt belongs to some task.
        oracle: At test, use the LoRA of the task that is asked.
    """

    rank: int = base.option(16, base.POSITIVE)
    width: int = base.option(512, ("an even number from 2", lambda v: v >= 2 and v % 2 == 0))
    damping: float = base.option(1e-3, base.POSITIVE)
    reach: float = base.option(4.0, base.POSITIVE)
    oracle: bool = False


class NearLora(task_matcher.MatchedPool):
    """A LoRA a task, trained alone; at test each prompt gets the nearest task's, or the base.

    y = W0 x + s B_c A_c x, with c the task whose prompts the prompt looks like, told by a Gaussian
    a task with one covariance for all. What looks like no task's prompts is answered by the base,
    bit for bit as ever: what it could do is kept without data of it. [A pool of LoRAs behind a
    linear classifier is the strongest router of FLEX, arXiv:2608.01437, and Any-SSR's idea,
    arXiv:2503.13575; one covariance for all classes is that of Lee et al., NeurIPS 2018,
    arXiv:1807.03888; the base as an answer, and when it is one, are ours.]
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
    """What the prompts of finished tasks look like, and the sums of the task being learned.

    Args:
        size: d, the length of a feature of one modality.
        width: The most numbers for both modalities; D is what they have, and 2.
        damping: See `Config`.
        reach: See `Config`.
        oracle: Be told the task instead.
        device: Where the sums are kept.

    Attributes:
        identified: How often the task found was the one asked, and how often it was none.
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
        self.identified = Identified(base=True)
        self.half = min(size, width // 2)
        self._R = None if self.half == size else projection(size, self.half).to(device)
        M = len(MODALITIES)
        D, double = M * self.half + M, {"dtype": torch.float64, "device": device}
        self._held: dict[str, Tensor] = {  # by the names that they are saved under
            "scatter": torch.zeros(D, D, **double),  # S
            "means": torch.zeros(0, D, **double),  # mu_c
            "apart": torch.zeros(0, M, **double),  # v_cm
            "usual": torch.zeros(0, 2, **double),  # mean and deviation of q_c
            "running_moment": torch.zeros(0, D, **double),  # with rows while a task is learned
            "running_sum": torch.zeros(D, **double),
            "running_count": torch.zeros(1, dtype=torch.int64, device=device),
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
        held["running_moment"] = torch.zeros_like(held["scatter"])
        held["running_sum"].zero_()
        held["running_count"].zero_()

    def see(self, features: Features) -> None:
        """Add the look of training prompts to the sums.

        Args:
            features: Of a batch.
        """
        phi = self.look(features)
        self._held["running_moment"].addmm_(phi.mT, phi)
        self._held["running_sum"] += phi.sum(0)
        self._held["running_count"] += len(phi)

    def end_task(self) -> None:
        """Keep of the task being learned what tells its prompts from others."""
        with summed([self.state()]):
            held, n = self._held, self._held["running_count"].clamp_min(1)
            mean = held["running_sum"] / n
            covariance = held["running_moment"] / n - torch.outer(mean, mean)
            variance = covariance.diagonal()[: -len(MODALITIES)]
            apart = variance.view(len(MODALITIES), -1).sum(1).clamp_min(LEAST_APART)
            held["scatter"] += covariance
            for name, new in (
                ("means", mean),
                ("apart", apart),
                ("usual", self._usual(mean, covariance, apart, int(n))),
            ):
                held[name] = torch.cat([held[name], new[None]])
        self.start_task()
        held["running_moment"] = held["running_moment"][:0].clone()
        self._metric = None

    def _usual(self, mean: Tensor, covariance: Tensor, apart: Tensor, n: int) -> Tensor:
        """The mean of q over prompts that mu was not made of, and its standard deviation, (2,)."""
        if n < FEW:
            return apart.new_tensor([ENDLESS, 1])
        slope = self._slope(mean, apart)
        own = (covariance.diagonal()[: -len(apart)].view(len(apart), -1).sum(1) / apart).sum()
        return torch.stack([
            own * (1 + 2 / n),
            (slope @ covariance @ slope).clamp_min(0).sqrt().clamp_min(LEAST_STD),
        ])  # fmt: skip

    def _slope(self, mean: Tensor, apart: Tensor) -> Tensor:
        """The gradient of q: |phi_m - mu_m|^2 is 1 - 2 mu_m phi_m + |mu_m|^2, or |mu_m|^2, (D,).

        Where prompts do not differ it is left out: all that it would find there is rounding.
        """
        parts = mean[: -len(apart)].view(len(apart), -1)
        steep = torch.where(apart > LEAST_APART, 1 / apart, 0.0)
        return torch.cat([(-2 * parts * steep[:, None]).flatten(), steep])

    def _inverse(self, S: Tensor) -> Tensor:
        """(S + Lambda)^-1, with Lambda of each modality's own size, (D, D)."""
        M = len(MODALITIES)
        parts = S.diagonal()[:-M].view(M, -1).mean(1)
        floor = torch.cat([parts.repeat_interleave(self.half), S.diagonal()[-M:]])
        L, _ = torch.linalg.cholesky_ex(S + (self.damping * floor).clamp_min(LEAST).diag())
        return torch.cholesky_inverse(L)

    def _running(self) -> list[Tensor]:
        """The sums of the task being learned."""
        return [self._held[f"running_{part}"] for part in ("moment", "sum", "count")]

    # ------------------------------------------------------------ which task

    def look(self, features: Features) -> Tensor:
        """Tell what B prompts look like, phi, (B, D) float64."""
        parts = [features.of[name].double() for name in MODALITIES]
        if self._R is not None:
            parts = [functional.normalize(each @ self._R, dim=1) for each in parts]
        return torch.cat([*parts, *(features.present[name][:, None] for name in MODALITIES)], 1)

    def distances(self, phi: Tensor) -> Tensor:
        """Measure how far prompts are from the means of the tasks in the metric of all.

        Args:
            phi: Their look, (B, D).

        Returns:
            (B, T) float64.
        """
        if self._metric is None:
            self._metric = self._inverse(self._held["scatter"])
        apart = phi[:, None] - self._held["means"]
        return ((apart @ self._metric) * apart).sum(2)

    def excess(self, phi: Tensor) -> Tensor:
        """Measure by how many deviations prompts are further from tasks than their own are.

        Args:
            phi: Their look, (B, D).

        Returns:
            (B, T) float64.
        """
        held, M = self._held, len(MODALITIES)
        apart = (phi[:, None] - held["means"])[..., :-M].unflatten(2, (M, -1))
        q = (apart.square().sum(3) / held["apart"]).sum(2)
        return (q - held["usual"][:, 0]) / held["usual"][:, 1]

    def match(self, features: Features, asked: int | None = None) -> Tensor:
        """Choose a finished task for each prompt, or none, and note whether it was the task asked.

        Args:
            features: Of B prompts.
            asked: The number of the task, from 1, that they belong to, where whoever asks knows it.

        Returns:
            (B, T) float32: a one in each row, or zeros alone where the base is to answer.
        """
        phi, tasks = self.look(features), self.tasks
        best = self.distances(phi).argmin(1)
        near = self.excess(phi).gather(1, best[:, None])[:, 0] <= self.reach
        found = functional.one_hot(torch.where(near, best, tasks), tasks + 1)
        best = self.identified.note(found, asked if asked is None or asked <= tasks else None)
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
        self._held = taken_back(self._held, saved)
        self._metric = None

    def make_room(self, tasks: int) -> None:
        """Bring what is kept of finished tasks to its size."""
        for key in ("means", "apart", "usual"):
            each = self._held[key]
            self._held[key] = each.new_zeros(tasks, *each.shape[1:])


def projection(size: int, half: int) -> Tensor:
    """Draw the matrix that shortens a feature, (d, D / 2) float64: always the same."""
    drawn = torch.randn(size, half, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn / math.sqrt(half)


METHOD = NearLora
