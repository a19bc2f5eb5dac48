"""SAME: routers held, experts moved by the history's metric, and experts that may rest.

The mathematics is in `undrift.core`; this file says when it is applied, and to what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core import SETTINGS, Settings, steps
from undrift.core.activation import choose_frozen, scores
from undrift.core.step_hook import StepTransform
from undrift.methods import base, moelora
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.history import Basis, HistoryMethod, at_share, make_statistics
from undrift.tuner import LayerStatistics, MoeLoraConfig, MoeLoraLayer, summed
from undrift.tuner.input_statistics import statistics_options


@dataclass(frozen=True, kw_only=True)
class Config(moelora.Config, Settings):
    """The options of `moelora`, and all of `core.Settings`."""

    def __post_init__(self) -> None:
        moelora.Config.__post_init__(self)
        Settings.__post_init__(self)


class Same(HistoryMethod, moelora.MoeLora):
    """MoE-LoRA whose router and experts move with regard to what earlier tasks have seen.

    The three switches of the paper's ablation are the options `router`, `expert`, `activation`;
    with all three off it is `moelora`. Named settings: "undrift", the default, and "paper".
    """

    name: ClassVar[str] = "same"
    paper: ClassVar[str] = "SAME, arXiv:2602.01990"
    Config: ClassVar[type[base.Config]] = Config
    streams: ClassVar[bool] = True
    settings: ClassVar[base.Settings] = {name: asdict(each) for name, each in SETTINGS.items()}
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._adapter = "default"
        self._layers: dict[str, MoeLoraLayer] = {}
        self._bases: dict[str, Basis] = {}

    def in_adapter(self, model: nn.Module) -> int | None:
        """Count the tasks in the statistics; None if the experts were trained without them."""
        name = active_adapter(peft_model(model))
        found = [layer.statistics(name) for layer in moelora.expert_layers(model).values()]
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
            **statistics_options(self.config),
        )

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task, all experts active; or go on with the sums and frozen experts there are.

        The history's metrics are made ready.
        """
        super().task_start(model, task_index, steps_total)
        if self.observes:
            self._prepare(model, steps_total, resumed=self._step > 0)

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Re-base the sketches, refresh V where it runs along, freeze experts: each when due."""
        super().step_end(model, step, steps_total)
        every = max(10, round(self.config.refresh_share * steps_total))
        if step % every == 0:
            self._refresh_router()
        now, length = self.window(step, steps_total)
        due = now == at_share(self.config.warmup_share, length)
        merged = now == length and step < steps_total  # which has woken all experts
        if self.config.activation and due and not merged:
            self._freeze()

    def before_save(self, model: nn.Module) -> None:
        """Bring the running sums into buffers; a V that runs along is refreshed with them.

        So a task that is resumed starts from the same V.
        """
        super().before_save(model)
        self._refresh_router()

    def task_end(self, model: nn.Module) -> None:
        """Merge the task into the history and wake all experts."""
        super().task_end(model)
        self._layers = {}

    def resting(self, model: nn.Module) -> dict[str, int] | None:
        """Count the frozen experts of every linear; None if `activation` is off."""
        if not self.config.activation:
            return None
        return {name: int((~self.statistics[name].active).sum()) for name in self._layers}

    # ------------------------------------------------------------ what becomes of a step

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Turn the steps, and write the rows of frozen experts back last."""
        turns = dict(super().step_transforms(model))
        for name, layer in self._layers.items():
            active = self.statistics[name].active
            if self.statistics[name].active_index is not None:
                for p in self._masters(layer):
                    turns[p] = partial(_hold, turns.get(p), ~active)
        return turns

    def _masters(self, layer: MoeLoraLayer) -> tuple[Parameter, Parameter, Parameter]:
        name = self._adapter
        return layer.moe_lora_A[name], layer.moe_lora_B[name], layer.moe_lora_G[name]

    # ------------------------------------------------------------ how it is made ready

    def _prepare(self, model: nn.Module, steps_total: int, *, resumed: bool) -> None:
        self._layers = moelora.expert_layers(model)
        self._adapter = active_adapter(peft_model(model))
        self.statistics = self._find_statistics(model)
        self.begin(steps_total, resumed=resumed)
        self.hold()
        if resumed:
            self._refresh_router()

    def hold(self) -> None:
        """Turn routers and experts by what the history says."""
        self._bases = self.bases()
        if self.config.expert:
            for name, layer in self._layers.items():
                self.turn(layer.moe_lora_A[self._adapter], self.turn_a(self._bases[name]))
        self._turn_routers(self._bases)
        self._turn_experts()

    def _find_statistics(self, model: nn.Module) -> dict[str, LayerStatistics]:
        """The statistics of every layer; made now if the adapter came without, or with others.

        Where a history has begun its options go on.

        Raises:
            ConfigError: It was kept with other options than were asked for by name.
        """
        known = {name: layer.statistics(self._adapter) for name, layer in self._layers.items()}
        have = {name: each for name, each in known.items() if each is not None}
        adapter: Any = peft_model(model).peft_config[self._adapter]
        asked, kept = statistics_options(self.config), statistics_options(adapter)
        if len(have) == len(known):
            if any(int(each.tasks) or each.interrupted for each in have.values()):
                self.refuse_other(kept, "the adapter's history was kept with")
                self.config = replace(self.config, **kept)
                return have
            if asked == kept:
                return have
        for name, value in ({"collect": True} | asked).items():  # saved, so that loading makes room
            setattr(adapter, name, value)
        made = make_statistics(
            {
                name: (layer.in_features, layer.moe_lora_A[self._adapter].device)
                for name, layer in self._layers.items()
            },
            adapter.num_experts,
            adapter.r,
            **asked,
        )
        for name, layer in self._layers.items():
            layer.moe_lora_statistics[self._adapter] = made[name]
        return made

    def _turn_routers(self, bases: Mapping[str, Basis]) -> None:
        """Hold W_G inside what the past has seen [Eq. 6 to 11]."""
        c = self.config
        for name, layer in self._layers.items() if c.router else ():
            (V, s), turn = bases[name], None
            if s.numel():
                g = steps.gain(s, c.half_width, c.rho, c.clamp_gain)
                lambdas = {"lambda_par": c.lambda_par, "lambda_perp": c.lambda_perp}
                turn = partial(steps.router_step, V=V, g=g, **lambdas)
            self.turn(layer.moe_lora_G[self._adapter], turn)

    def _refresh_router(self) -> None:
        """Take V from C^t as it now is, for the router only, where it runs along [Eq. 3]."""
        if self.config.router and self.config.history == "running":
            self._turn_routers(self.bases(running=True))

    def _turn_experts(self) -> None:
        """Make B's metric of the experts that are not frozen."""
        for name, layer in self._layers.items() if self.config.expert else ():
            A, B, _ = self._masters(layer)
            self.turn(B, self.turn_b(A, self._bases[name], self.statistics[name]))

    def _freeze(self) -> None:
        """Let experts rest that this task hardly uses and the past needed [Eq. 18]."""
        with summed(self.statistics.values()):
            for each in self.statistics.values():
                if not bool(each.importance_tokens > 0):
                    continue  # no task before this one
                score = scores(each.usage.utilisation(), each.importance)
                most = self.config.frozen_at_most(each.experts)
                each.active.copy_(~choose_frozen(score, self.config.tau, most))
        self._turn_experts()


def _hold(turn: StepTransform | None, frozen: Tensor, step: Tensor) -> Tensor:
    """Turn a step (N, ...), and take the frozen experts' rows out of it altogether."""
    step = step if turn is None else turn(step)
    return step.masked_fill(frozen.view(-1, *[1] * (step.dim() - 1)), 0)


METHOD = Same
