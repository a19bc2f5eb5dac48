"""SAME: routers held, experts moved by the history's metric, and experts that may rest.

The mathematics is in `undrift.core`; this file says when it is applied, and to what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core import SETTINGS, Settings, steps
from undrift.core.activation import choose_frozen, scores
from undrift.core.step_hook import StepTransform
from undrift.methods import base, moelora
from undrift.methods.moelora import MoeLora, expert_layers
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.history import (
    Basis,
    Histories,
    a_turn,
    at_share,
    make_statistics,
    statistics_options,
    z_metric,
)
from undrift.tuner import LayerStatistics, MoeLoraConfig, MoeLoraLayer


@dataclass(frozen=True, kw_only=True)
class Config(moelora.Config, Settings):
    """The options of `moelora`, and all of `core.Settings`."""

    def __post_init__(self) -> None:
        moelora.Config.__post_init__(self)
        Settings.__post_init__(self)


@dataclass(frozen=True)
class _Linear:
    """One adapted linear, and what its steps go through; None where a step is free."""

    layer: MoeLoraLayer
    statistics: LayerStatistics
    past: Basis
    turn_a: StepTransform | None
    turn_g: StepTransform | None
    b_metric: Tensor | None = None
    frozen: Tensor | None = None  # (N,) bool


class Same(MoeLora):
    """MoE-LoRA whose router and experts move with regard to what earlier tasks have seen.

    The three switches of the paper's ablation are the options `router`, `expert`, `activation`;
    with all three off it is `moelora`. Named settings: "undrift", the default, and "paper".
    """

    name: ClassVar[str] = "same"
    paper: ClassVar[str] = "SAME, arXiv:2602.01990"
    Config: ClassVar[type[base.Config]] = Config
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {name: asdict(setting) for name, setting in SETTINGS.items()}
    )
    ends_itself: ClassVar[bool] = True
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._adapter = "default"
        self._histories = Histories({}, self.config)
        self._linears: list[_Linear] = []

    def in_adapter(self, model: nn.Module) -> int | None:
        """Count the tasks in the statistics; None if the experts were trained without them."""
        name = active_adapter(peft_model(model))
        found = [layer.statistics(name) for layer in expert_layers(model).values()]
        tasks = [int(each.tasks) + each.interrupted for each in found if each is not None]
        if not self.observes:
            return 0
        return min(tasks) or None if len(tasks) == len(found) else None

    @property
    def observes(self) -> bool:
        """Whether any switch is on, so that statistics are needed."""
        return self.config.router or self.config.expert or self.config.activation

    def peft_config(self, model: nn.Module | None = None) -> MoeLoraConfig:
        """Make the configuration of the adapter, for `get_peft_model` or a trainer."""
        return replace(
            super().peft_config(),
            collect=self.observes,
            importance_power=self.config.importance_power,
            **statistics_options(self.config),
        )

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task: fresh sums, all experts active, the history's metrics made ready."""
        super().task_start(model, task_index, steps_total)
        self._prepare(model, resumed=False)

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on with the sums and the frozen experts that the checkpoint brought."""
        super().task_start(model, task_index, steps_total)
        self._prepare(model, resumed=True)

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Re-base the sketches, refresh V where it runs along, freeze experts: each when due."""
        self._histories.step_end(step, steps_total)
        every = max(10, round(self.config.refresh_share * steps_total))
        if self.config.history == "running" and step % every == 0:
            self._refresh_router()
        if self.config.activation and step == at_share(self.config.warmup_share, steps_total):
            self._freeze()

    def before_save(self, model: nn.Module) -> None:
        """Bring the running sums into buffers; a V that runs along is refreshed with them."""
        self._histories.flush()
        if self.config.history == "running":  # so that a resumed task starts from the same V
            self._refresh_router()

    def task_end(self, model: nn.Module) -> None:
        """Merge the task into the history and wake all experts."""
        self._histories.end()
        self._linears = []

    def resting(self, model: nn.Module) -> dict[str, int] | None:
        """Count the frozen experts of every linear."""
        if not self.config.activation:
            return None
        return {each.layer.name: int((~each.statistics.active).sum()) for each in self._linears}

    # ------------------------------------------------------------ what becomes of a step

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Turn the steps, and write the rows of frozen experts back last."""
        turns = dict(self._turns()) if self.config.space != "gradient" else {}
        for linear in self._linears:
            if linear.frozen is not None:
                for p in self._masters(linear.layer):
                    turns[p] = partial(_hold, turns.get(p), linear.frozen)
        return turns

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Turn the gradients, instead or as well, where the setting says so."""
        return dict(self._turns()) if self.config.space != "step" else {}

    def _turns(self) -> Iterator[tuple[Parameter, StepTransform]]:
        for linear in self._linears:
            A, B, W_G = self._masters(linear.layer)
            if linear.turn_a is not None:
                yield A, linear.turn_a
            if linear.turn_g is not None:
                yield W_G, linear.turn_g
            if linear.b_metric is not None:
                yield B, partial(steps.expert_b_step_z, P=linear.b_metric)
            elif self.config.expert and self.config.b_metric == "aca" and linear.past[1].numel():
                V, s = linear.past
                mu_b = self.config.mu_b
                yield B, partial(steps.expert_b_step_aca, A=A.detach(), V=V, s=s, mu_b=mu_b)

    def _masters(self, layer: MoeLoraLayer) -> tuple[Parameter, Parameter, Parameter]:
        name = self._adapter
        return layer.moe_lora_A[name], layer.moe_lora_B[name], layer.moe_lora_G[name]

    # ------------------------------------------------------------ how it is made ready

    def _prepare(self, model: nn.Module, *, resumed: bool) -> None:
        self._linears = []
        if not self.observes:
            return
        found = expert_layers(model)
        self._adapter = active_adapter(peft_model(model))
        statistics = self._statistics(model, found)
        self._histories = Histories(statistics, self.config)
        self._histories.start(resumed=resumed)
        bases = self._histories.bases()
        self._linears = [
            _Linear(
                layer,
                statistics[name],
                bases[name],
                turn_a=a_turn(bases[name], self.config) if self.config.expert else None,
                turn_g=self._router_turn(bases[name]),
            )
            for name, layer in found.items()
        ]
        self._weigh_experts()
        if resumed and self.config.history == "running":
            self._refresh_router()

    def _statistics(
        self, model: nn.Module, found: Mapping[str, MoeLoraLayer]
    ) -> dict[str, LayerStatistics]:
        """The statistics of every layer; made now if the adapter came without."""
        known = {name: layer.statistics(self._adapter) for name, layer in found.items()}
        have = {name: each for name, each in known.items() if each is not None}
        if len(have) == len(found):
            return have
        adapter: Any = peft_model(model).peft_config[self._adapter]
        adapter.collect = True  # saved with the adapter, so that loading makes room for them
        made = make_statistics(
            {name: (layer.in_features, _device(layer)) for name, layer in found.items()},
            adapter.num_experts,
            adapter.r,
            importance_power=adapter.importance_power,
            **statistics_options(adapter),
        )
        for name, layer in found.items():
            layer.moe_lora_statistics[self._adapter] = made[name]
        return made

    def _router_turn(self, basis: Basis) -> StepTransform | None:
        V, s = basis
        c = self.config
        if not c.router or s.numel() == 0:
            return None
        g = steps.gain(s, c.half_width, c.rho, c.clamp_gain)
        return partial(
            steps.router_step, V=V, g=g, lambda_par=c.lambda_par, lambda_perp=c.lambda_perp
        )

    def _refresh_router(self) -> None:
        """Take V from C^t as it now is, for the router only [Eq. 3]."""
        if self.config.router:
            bases = self._histories.bases(running=True)
            self._linears = [
                replace(linear, turn_g=self._router_turn(bases[linear.statistics.name]))
                for linear in self._linears
            ]

    def _freeze(self) -> None:
        """Let experts rest that this task hardly uses and the past needed [Eq. 18]."""
        with self._histories.summed():
            for linear in self._linears:
                each = linear.statistics
                if not bool(each.importance_tokens > 0):
                    continue  # no task before this one
                score = scores(each.usage.utilisation(), each.importance)
                most = self.config.frozen_at_most(each.experts)
                each.active.copy_(~choose_frozen(score, self.config.tau, most))
        self._weigh_experts()

    def _weigh_experts(self) -> None:
        """Note who is frozen, and make B's metric of those who are not."""
        self._linears = [
            replace(
                linear,
                b_metric=z_metric(linear.statistics, self.config) if self.config.expert else None,
                frozen=None if bool(linear.statistics.active.all()) else ~linear.statistics.active,
            )
            for linear in self._linears
        ]


def _hold(turn: StepTransform | None, frozen: Tensor, step: Tensor) -> Tensor:
    """Turn a step (N, ...), and take the frozen experts' rows out of it altogether."""
    step = step if turn is None else turn(step)
    return step.masked_fill(frozen.view(-1, *[1] * (step.dim() - 1)), 0)


def _device(layer: MoeLoraLayer) -> Any:
    return next(iter(layer.moe_lora_A.values())).device


METHOD = Same
