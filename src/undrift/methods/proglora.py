"""A LoRA for every task, weighed once per sample by keys that a small network asks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared import pool
from undrift.methods.shared.added_loss import AddedLoss
from undrift.tuner import Prompt
from undrift.tuner.frozen import count_parameters, freeze
from undrift.tuner.pool_lora import generator_of


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config):
    """The options of `pool.Config`, and those of the gate.

    Attributes:
        gate: "dynamic", every sample's own gate; or "static", at test the mean gate of the task
            that the sample comes from, which has to be told.
        hidden: The width of the query network in the middle.
        recall: The weight of the task recall, which keeps the gate from moving among old experts.
    """

    gate: Literal["dynamic", "static"] = "dynamic"
    hidden: int = base.option(100, base.POSITIVE)
    recall: float = base.option(1.0, base.NOT_NEGATIVE)


class ProgLora(pool.PoolMethod["KeyGate"]):
    """A LoRA for every task; a gate, decided once per sample, weighs them all in all layers.

        q = f(max over the prompt's embeddings),  g = softmax(k_i q / sqrt(d)),
        y = W0 x + s sum_{i<=t} g_i B_i A_i x                             in training and at test

    Trained in task t are A_t, B_t, its key k_t and the query network f. The gate sees the prompt
    alone, image features included. What the sources leave open is decided thus:

    - task recall, which shall keep the gate of old tasks where it was, needs no old data: on the
      current prompts, KL(softmax_{i<t} k_i f_{t-1} || softmax_{i<t} k_i f_t) is added to the loss
      with the weight `recall`. It can say something from the third task on. In a trainer of your
      own it takes part if `compute_loss` returns the method's `loss`;
    - the setting "static" is told at test which task a sample comes from (`asked`, an oracle)
      and uses the mean gate of that task over the samples of the second half of its training; a
      task that is not learned yet gets the gate of "dynamic", the default.
    """

    name: ClassVar[str] = "proglora"
    why_not_sharded: ClassVar[str] = (
        "its keys are read outside the layers that FSDP2 brings together"
    )
    paper: ClassVar[str] = "ProgLoRA, Yu et al., ACL 2025 Findings"
    Config: ClassVar[type[base.Config]] = Config
    settings: ClassVar[base.Settings] = {
        "dynamic": {"gate": "dynamic"},
        "static": {"gate": "static"},
    }
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._recall: Tensor | None = None
        self._added = AddedLoss(self, self._weighed_recall)

    @property
    def must_be_told(self) -> bool:
        """Whether it answers only who names the task of a question, see `predicting`."""
        return self.config.gate == "static"

    def make_gate(self, width: int) -> KeyGate:
        """Make the first key and the query network."""
        return KeyGate(width, self.config.hidden)

    def gates(self, prompt: Prompt) -> Tensor:
        """Decide the gates of a batch of prompts."""
        gate = self.gate
        if self.must_be_told and not gate.training:
            if self.asked is None:
                raise ConfigError(
                    "proglora-static has to be told which task its questions come from: ask "
                    "within method.predicting(model, task=number), or use proglora-dynamic"
                )
            mean = gate.mean_of(self.asked)
            if mean is not None:
                return mean
        there = prompt.mask.unsqueeze(-1)
        x = prompt.embeds.float().masked_fill(~there, -torch.inf).amax(1)
        found = gate(x)
        if gate.training and torch.is_grad_enabled():
            self._recall = gate.recall(x)
            if self._late:
                gate.add(found)
        return found

    def bind(self, model: nn.Module) -> None:
        """Decide a model's gates, and add the task recall to its loss."""
        super().bind(model)
        self._added.watch(model)

    def _weighed_recall(self) -> Tensor | None:
        recall, self._recall = self._recall, None
        return None if recall is None else self.config.recall * recall

    # ------------------------------------------------------------ the mean gate, led through a task

    @property
    def _late(self) -> bool:
        """Whether the next step is in the second half of the task."""
        return self.learning and 2 * self._step + 1 >= self._steps

    def idle_parameters(self, model: nn.Module) -> int:
        """Count the copy of f that only the recall asks."""
        return count_parameters(self.gate.past_query)


# --------------------------------------------- the gate


class Query(nn.Module):
    """f: from the largest embeddings of a prompt to what the keys are asked.

    Args:
        width: d.
        hidden: The width in the middle.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute q, (B, d)."""
        return self.norm(self.up(F.silu(self.down(x))))


class KeyGate(pool.Gate):
    """g = softmax(k_1 q / sqrt(d), .., k_t q / sqrt(d)),  q = f(max over the prompt).

    Args:
        width: d.
        hidden: The width of f in the middle.

    Attributes:
        key: k_t, (d,).
        past_keys: k_1 to k_{t-1}, never trained again, (t-1, d).
        query: f_t.
        past_query: f_{t-1}, as the last task left it. Earlier ones are asked no more, and not kept.
        means: g*_i in row i; zero for a task that is not finished, (t, t).
        sums: Of the gates in the task at hand, and in the last place how many, (t + 1,) float64.
    """

    frozen_names = ("past_keys",)
    past_keys: Tensor
    means: Tensor

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(width))
        self.query = Query(width, hidden)
        self.past_query = copy.deepcopy(self.query)
        freeze(self.past_query)
        self.make_room(0)
        self._draw_key()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the gates.

        Args:
            x: The largest value in every dimension of the prompt's embeddings, (B, d).

        Returns:
            g, (B, t).
        """
        keys = torch.cat([self.past_keys, self.key[None]])
        return _asked(self.query, keys, x).softmax(-1)

    def recall(self, x: Tensor) -> Tensor | None:
        """Compare what f_{t-1} and f_t say of the old experts [KL(old || new)].

        Args:
            x: As for `forward`.

        Returns:
            The mean over the batch, (); None where there are not two old experts to choose among.
        """
        if len(self.past_keys) < 2:
            return None
        with torch.no_grad():
            old = _asked(self.past_query, self.past_keys, x).log_softmax(-1)
        new = _asked(self.query, self.past_keys, x).log_softmax(-1)
        return F.kl_div(new, old, log_target=True, reduction="batchmean")

    # ------------------------------------------------------------ the mean gate of a task

    def add(self, gates: Tensor) -> None:
        """Add the gates of a batch, (B, t)."""
        self.sums[:-1] += gates.detach().sum(0)
        self.sums[-1] += len(gates)

    def running(self) -> dict[str, Tensor]:
        """Name the sums that are summed over processes."""
        return {"sums": self.sums}

    def end_task(self) -> None:
        """Keep the mean gate of the task."""
        self.means[-1] = self.sums[:-1] / self.sums[-1].clamp_min(1)

    def mean_of(self, task: int) -> Tensor | None:
        """Return g* of a task.

        Args:
            task: Its number, from 1.

        Returns:
            (t,); None for a task that is not learned.
        """
        if task > len(self.means) or not bool(self.means[task - 1].any()):
            return None
        return self.means[task - 1]

    # ------------------------------------------------------------ from task to task

    @torch.no_grad()
    def grow(self, past: int) -> None:
        """Let the key become a past one, keep a copy of f, and draw the next key."""
        keys, means = torch.cat([self.past_keys, self.key[None]]), self.means
        self.make_room(past)
        self.past_keys.copy_(keys)
        self.means[: len(means), : len(means)] = means
        self.past_query.load_state_dict(self.query.state_dict())
        self._draw_key()

    def make_room(self, past: int) -> None:
        """Bring keys and mean gates to their size after so many tasks."""
        room = self.key.detach().new_zeros
        self.register_buffer("past_keys", room(past, len(self.key)))
        self.register_buffer("means", room(past + 1, past + 1))
        self.sums = room(past + 2, dtype=torch.float64)

    @torch.no_grad()
    def _draw_key(self) -> None:
        drawn, bound = torch.empty(len(self.key), device="cpu"), len(self.key) ** -0.5
        self.key.copy_(drawn.uniform_(-bound, bound, generator=generator_of(len(self.past_keys))))


def _asked(query: nn.Module, keys: Tensor, x: Tensor) -> Tensor:
    """Ask keys (n, d) about x (B, d): k q / sqrt(d), (B, n)."""
    with torch.autocast(x.device.type, enabled=False):
        return query(x) @ keys.mT / keys.shape[1] ** 0.5


METHOD = ProgLora
