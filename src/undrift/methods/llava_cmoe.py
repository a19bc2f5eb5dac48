"""LLaVA-CMoE: experts where a probe finds them needed, a router and a locator for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.parts import pool
from undrift.methods.parts.adapter import active_adapter, peft_model
from undrift.methods.parts.features import hidden_features
from undrift.methods.parts.matcher import Identified, told
from undrift.methods.parts.pool import GATE_FILE, PoolMethod
from undrift.methods.parts.probe import copy_expert, forget_momentum, needed
from undrift.methods.parts.task_routers import TaskRouters
from undrift.tuner import Gates, Prompt
from undrift.tuner.pool import PoolLoraLayer, grow, pool_layers
from undrift.tuner.ranks import gathered, rank, summed


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config):
    """The options of a pool, and those of probe, routers and locator.

    Attributes:
        top_k: How many experts a token is routed to.
        probe_share: The share of a task's steps, from the second task on, that are the probe.
        slack: a: a linear gets an expert if its probe is used more than mean - a * deviation.
        balance: The weight of the load-balancing loss during the probe.
        perturb: How far the copy of an old expert begins from it, relative to its size.
        hidden: Width of a locator's layers, at most the model's.
        code: Length of its code, at most a quarter of the model's width.
        epochs: Passes over the features that a locator is trained on.
        features: How many prompts of a task these are at most.
        oracle: Be told the task instead.
    """

    top_k: int = 2
    probe_share: float = 0.1
    slack: float = 0.0
    balance: float = 0.01
    perturb: float = 0.01
    hidden: int = 512
    code: int = 64
    epochs: int = 20
    features: int = 512
    oracle: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "hidden", "code", "epochs", "features"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if not 0 <= self.probe_share < 1:
            raise ConfigError(f"probe_share is {self.probe_share}, expected 0 up to below 1")


class LlavaCMoE(PoolMethod):
    """Experts added where a probe shows that they are needed, routed by the router of the task.

    y = W0 x + s sum_{i in top-k} softmax(R_t x)_i B_i A_i x, with R_t the router of the task that
    the locator names, over the experts there were in its time. There is no public code, and the
    reviews leave numbers open; [OURS] are all defaults, and:

    - the probe is the first part of the task's own training. Its experts and routers are then
      thrown away, their optimiser state too; the schedule goes on. A task of one step has no probe;
    - a new expert begins near the one that its linear used most during the probe. The first task
      has no probe, one expert on every linear and LoRA's own start;
    - usage and balance are taken over the prompt's tokens, without answers and padding, and a token
      counts for its first choice: of two experts, k = 2 would take both;
    - locators see the last hidden state of the first `features` prompts of a task, which costs one
      more prefill each; at test every prompt has one. They are fitted when the task ends.

    A router a task over all experts of its time makes routers, unlike experts, grow with the square
    of the tasks. The balancing loss needs a trainer that takes `loss`.
    """

    name: ClassVar[str] = "llava_cmoe"
    paper: ClassVar[str] = "LLaVA-CMoE, Zhao et al., 2025, arXiv:2503.21227 (later CoPE)"
    Config: ClassVar[type[base.Config]] = Config
    beside: ClassVar[tuple[str, ...]] = (GATE_FILE,)
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self.identified = Identified()
        self._layers: dict[str, PoolLoraLayer] = {}
        self._adapter = "default"
        self._model: Any = None
        self._optimizer: Any = None
        self._step = self._probe_until = 0

    # ------------------------------------------------------------ the model

    def bind(self, model: nn.Module) -> None:
        """Decide a model's gates from now on.

        Args:
            model: What `attach` returned, or a user's model with the `peft_config` on it.
        """
        wrapped = peft_model(model)
        self._layers, self._adapter = pool_layers(wrapped), active_adapter(wrapped)
        self._model = wrapped
        super().bind(model)

    def make_gate(self, width: int) -> TaskRouters:
        """Make the routers and the locator.

        Args:
            width: d, of the hidden states.

        Returns:
            Of no task yet.
        """
        inputs = [layer.in_features for layer in self._layers.values()]
        config = self.config
        return TaskRouters(inputs, width, min(config.hidden, width), min(config.code, width // 4))

    @property
    def _routers(self) -> TaskRouters:
        assert isinstance(self._gate, TaskRouters)  # `bind` has made it
        return self._gate

    def gates(self, prompt: Prompt) -> Mapping[str, Gates]:
        """Route by the task at hand, or by the one that the locator names.

        Args:
            prompt: The prompts.

        Returns:
            By linear, its router.
        """
        routers, names = self._routers, self._layers
        if routers.training:
            self._remember(prompt)
            made = routers.current(self.config.top_k, prompt.mask)
        elif not len(routers.locator):
            made = [torch.zeros(layer.experts(self._adapter)) for layer in names.values()]
        else:
            made = routers.past(self.config.top_k, self._locate(prompt))
        return dict(zip(names, made, strict=True))

    def _locate(self, prompt: Prompt) -> Tensor:
        scores = self._routers.locator.scores(hidden_features(self._model, prompt))
        best = self.identified.note(scores, self.asked)
        return told(best, self.asked, scores.shape[1]) if self.config.oracle else best

    @torch.no_grad()
    def _remember(self, prompt: Prompt) -> None:
        kept = self._routers.features
        if len(kept) < self.config.features:
            found = gathered(hidden_features(self._model, prompt).to(kept))
            self._routers.features = torch.cat([kept, found])[: self.config.features]

    def facts(self) -> dict[str, Any]:
        """Tell how often the locator was right since the last call, see `Identified.facts`."""
        return self.identified.facts()

    # ------------------------------------------------------------ the probe

    @property
    def probing(self) -> bool:
        """Whether what is trained now is the probe."""
        return self._step < self._probe_until

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Compute the model's loss, and during the probe that of an unequal load.

        Args:
            model: What `attach` returned.
            batch: The model's inputs, with labels.

        Returns:
            The sum, ().
        """
        spoken = super().loss(model, batch)
        unequal = self._routers.imbalance() if self.probing else 0.0
        return spoken + self.config.balance * unequal

    @torch.no_grad()
    def _end_probe(self) -> None:
        """Decide which linears get an expert, and begin anew in all of them."""
        routers = self._routers
        with summed([routers]):
            used, tokens = routers.used.clone(), routers.tokens.clamp_min(1)
        layers = list(self._layers.values())
        counts = [layer.experts(self._adapter) for layer in layers]
        share = torch.stack([used[i, n - 1] for i, n in enumerate(counts)]) / tokens
        routers.open.copy_(needed(share, self.config.slack))
        for i, layer in enumerate(layers):
            layer.begin_anew(self._adapter)
            if routers.open[i]:
                old = int(used[i, : counts[i] - 1].argmax())
                aside = routers.generator(layer.name)
                copy_expert(layer, self._adapter, old, self.config.perturb, aside)
        routers.draw()
        experts = (m for each in layers for m in (each.pool_lora_A, each.pool_lora_B))
        replaced = (p for master in experts for p in master.values())
        forget_momentum(self._optimizer, [*replaced, *routers.routers])

    # ------------------------------------------------------------ the moments of a task

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Begin the task, at the step where the trainer is."""
        self._step, self._optimizer = state.global_step, optimizer
        super().on_train_begin(args, state, control, model, optimizer)

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task: room for its expert was made when the last one ended.

        Args:
            model: What `attach` returned, or a user's model with the `peft_config` on it.
            task_index: The number of the task, from 1.
            steps_total: How many optimiser steps the task will take.
        """
        self.task_resume(model, task_index, steps_total)
        self._routers.start()

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on; the probe ends where it would have.

        Args:
            model: As for `task_start`.
            task_index: As for `task_start`.
            steps_total: As for `task_start`.
        """
        super().task_resume(model, task_index, steps_total)
        probe = min(math.ceil(self.config.probe_share * steps_total), steps_total - 1)
        self._probe_until = probe if len(self._routers.locator) else 0
        if rank() > 0:  # a checkpoint holds the sums of all processes, and the first goes on
            self._routers.used.zero_()
            self._routers.tokens.zero_()

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """End the probe when it is time.

        Args:
            model: What `attach` returned.
            step: How many steps of the task are done, from 1.
            steps_total: How many it will be.
        """
        self._step = step
        if step == self._probe_until:
            self._end_probe()

    def before_save(self, model: nn.Module) -> None:
        """Bring the sums of all processes to the first.

        Args:
            model: What `attach` returned.
        """
        with summed([self._routers]):
            pass

    def task_end(self, model: nn.Module) -> None:
        """Keep the task's experts, router and locator, and make room for the next ones.

        Args:
            model: What `attach` returned.
        """
        routers, wrapped = self._routers, peft_model(model)
        seed = torch.initial_seed() % 2**63
        fitted = routers.locator.fit(routers.features, self.config.epochs, seed)
        routers.locator.add(fitted)
        kept = [name for i, name in enumerate(self._layers) if routers.open[i]]
        routers.end()
        grow(wrapped, self._adapter, only=kept)
        super().task_end(model)

    # ------------------------------------------------------------ state and its size

    def _load_gate(self, model: nn.Module, path: Path) -> None:
        self._routers.load(path)

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring a fresh pool to its largest size after so many tasks.

        Args:
            model: What `attach` returned; its tensors may have shapes only.
            tasks: How many tasks.
        """
        super().make_room(model, tasks + 1)  # room for the next expert is made at a task's end

    def idle_parameters(self, model: nn.Module) -> int:
        """Count all but the k experts and the one router that a token meets.

        Args:
            model: What `attach` returned.

        Returns:
            The others, with the locator, which is asked once a prompt.
        """
        idle = self._routers.size() - self._routers.one_router()
        for layer in self._layers.values():
            A, B = layer.pool_lora_A[self._adapter], layer.pool_lora_B[self._adapter]
            experts = layer.experts(self._adapter)
            met = min(self.config.top_k, max(1, experts - 1))
            idle += (experts - met) * (A.numel() + B.numel())
        return idle


METHOD = LlavaCMoE
