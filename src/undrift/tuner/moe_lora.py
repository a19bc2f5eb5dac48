"""MOE_LORA: N LoRA experts and a router on frozen linears [Eq. 1, 2], as a type for PEFT."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from torch import Tensor, nn

from undrift.core.routing import Blend, Observer, Packed, add_mixture, mixture, pack, route
from undrift.errors import ConfigError
from undrift.tuner.adapted_linear import (
    AdaptedLinear,
    LinearConfig,
    LinearTuner,
    compute_dtype,
    versions,
)
from undrift.tuner.forward import ForwardContext
from undrift.tuner.input_statistics import LayerStatistics, statistics_options
from undrift.tuner.peft_internals import add_type, register_type
from undrift.tuner.token_mask import Tokens

NAME = "moe_lora"
MOE_LORA = add_type(NAME)
SAME_INPUT = (("gate_proj", "up_proj"), ("w1", "w3"), ("q_proj", "k_proj", "v_proj"))


@dataclass
class MoeLoraConfig(LinearConfig):
    """N LoRA experts and a router on every chosen linear [Eq. 1, 2].

    Args:
        num_experts: N.
        top_k: Route each token to its k best experts only; to all of them where not given.
        gate: "token", W_G x decides; "constant", every expert weighs 1/N and W_G stays zero.
        collect: Keep statistics of the inputs, the routes and the experts' outputs while training,
            and the history of earlier tasks with the adapter.
        columns: l, the columns of the sketch of each input [see `core.moment`].
        max_components: The most eigenpairs a history keeps.
        token_fraction: The share of the tokens that enter the statistics, in (0, 1]; where None,
            an eighth, or all in a short task, see `core.settings.Metrics`.
        token_weights: What a token counts for in them, "same", "gradient", "share" or "answer", see
            `core.settings.Metrics`.
        task_weights: What a task counts for in the history, "tokens" or "equal", see there.
        importance_power: 1 or 2, see `core.activation.Usage`.
        share_inputs: Let linears that read one input (gate and up; q, k and v) share one sketch.
        seed: What the sketches and the choice of tokens are drawn from.
    """

    num_experts: int = field(default=8)
    top_k: int | None = field(default=None)
    gate: str = field(default="token")
    collect: bool = field(default=False)
    columns: int = field(default=128)
    max_components: int = field(default=64)
    token_fraction: float | None = field(default=1.0)
    token_weights: str = field(default="same")
    task_weights: str = field(default="tokens")
    importance_power: int = field(default=1)
    share_inputs: bool = field(default=True)
    seed: int = field(default=0)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: A value cannot be used; the message names it.
        """
        super().__post_init__()
        self.peft_type = MOE_LORA
        self.check_positive("num_experts", "columns", "max_components")
        if self.top_k is not None and not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                f"top_k must lie between 1 and num_experts={self.num_experts}, not {self.top_k}"
            )
        self.check_among("gate", ("token", "constant"))
        self.check_among("token_weights", ("same", "gradient", "share", "answer"))
        self.check_among("task_weights", ("tokens", "equal"))
        if self.token_fraction is not None and not 0 < self.token_fraction <= 1:
            raise ConfigError(f"token_fraction must lie in (0, 1], not {self.token_fraction}")


class MoeLoraLayer(AdaptedLinear):
    """A linear joined by experts and a router.

    Args:
        base_layer: As for `AdaptedLinear`.
        name: As for `AdaptedLinear`.
        context: As for `AdaptedLinear`.

    Attributes:
        moe_lora_A: Per adapter, (N, r, d_in).
        moe_lora_B: Per adapter, B transposed, (N, r, d_out); zero at first.
        moe_lora_G: Per adapter, the router W_G, (N, d_in).
        moe_lora_statistics: Per adapter that collects, its `LayerStatistics`.
        watcher: Makes an observer of one forward pass's tokens, for training; see `core.routing`.
        blend: In evaluation, mix every token's route with weights that are the same for all.
    """

    adapter_layer_names = ("moe_lora_A", "moe_lora_B", "moe_lora_G")
    other_param_names = ("moe_lora_statistics", "moe_lora_config")
    not_mergeable: ClassVar[str] = (
        "experts weighted by token have no merged weight: keep the adapter on the model, or train "
        "method steadylora, whose adapter is a plain LoRA that merges"
    )

    def __init__(self, base_layer: nn.Module, name: str, context: ForwardContext) -> None:
        super().__init__(base_layer, name, context)
        self.moe_lora_A = nn.ParameterDict()
        self.moe_lora_B = nn.ParameterDict()
        self.moe_lora_G = nn.ParameterDict()
        self.moe_lora_statistics = nn.ModuleDict()
        self.moe_lora_config: dict[str, MoeLoraConfig] = {}
        self.watcher: Callable[[Tokens], Observer] | None = None
        self.blend: Blend | None = None

    def update_layer(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, adapter_name: str, config: MoeLoraConfig, shared: LayerStatistics | None = None
    ) -> None:
        """Add an adapter: A Kaiming-uniform as in LoRA, B zero, W_G small [Eq. 1, 2]."""
        N, r, d = config.num_experts, config.r, self.in_features
        A, G = torch.empty(N, r, d), torch.zeros(N, d)
        nn.init.kaiming_uniform_(A.view(N * r, d), a=math.sqrt(5))
        if config.gate == "token":
            nn.init.normal_(G, std=0.1 / math.sqrt(d))
        else:  # a router of zeros weighs every expert alike, and stays so
            self.frozen_peft_weight_names = {
                **self.frozen_peft_weight_names,
                adapter_name: ("moe_lora_G",),
            }
        self.moe_lora_A[adapter_name] = nn.Parameter(A)
        self.moe_lora_B[adapter_name] = nn.Parameter(torch.zeros(N, r, self.out_features))
        self.moe_lora_G[adapter_name] = nn.Parameter(G)
        self.moe_lora_config[adapter_name] = config
        if config.collect:
            self.moe_lora_statistics[adapter_name] = LayerStatistics(
                self.name, d, N, r, shared=shared, **statistics_options(config)
            )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _look(self, name: str, x: Tensor) -> int:
        return x.data_ptr()  # linears that share a sketch must read one tensor

    def _add(self, name: str, y: Tensor, x: Tensor, looked: int, *, in_place: bool) -> Tensor:
        statistics = self.statistics(name)
        active = observe = None
        if statistics is not None and self.training:
            active = statistics.active_index
            if statistics.collecting:
                tokens = self.context.tokens
                tokens.check_shared(statistics.owner.name, self.name, looked)
                observe = partial(statistics.observe, tokens)
        if self.training and self.watcher is not None:
            observe = _both(observe, self.watcher(self.context.tokens))
        config, masters = self.moe_lora_config[name], self._masters(name)
        if self.blend is not None and not self.training:
            mixed = mixture(x.float(), *masters, config.scale, active, config.top_k, self.blend)
            return y + mixed.to(y.dtype)
        return add_mixture(
            y,
            x,
            *masters,
            self._pack(name, compute_dtype(x), active),
            config.scale,
            top_k=config.top_k,
            observe=observe,
            in_place=in_place,
        )

    def _masters(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        return self.moe_lora_A[name], self.moe_lora_B[name], self.moe_lora_G[name]

    def _pack(self, name: str, dtype: torch.dtype, active: Tensor | None) -> Packed:
        """The experts as the products read them, made once per forward pass of the model.

        Parameter versions alone would do, were it not for optimisers that write past them.
        """
        masters = self._masters(name)
        forward_pass = self.context.tokens if self.training else None
        made_of = (forward_pass, id(active), dtype, versions(masters))
        if name not in self._packed or self._packed[name][0] != made_of:
            self._packed[name] = made_of, pack(*masters, dtype, active)
        return self._packed[name][1]

    def routes(self, x: Tensor, router: Tensor | None = None) -> Tensor:
        """Return w(x) [Eq. 1] of the active adapter; of experts that are left out it is 0.

        Args:
            x: Tokens, (..., d_in).
            router: Another W_G to route by, (N, d_in).

        Returns:
            (tokens, N) float32.
        """
        name = self._active()[0]
        G = self.moe_lora_G[name] if router is None else router.to(x.device)
        statistics = self.statistics(name)
        logits = x.reshape(-1, x.shape[-1]).float() @ G.mT
        if statistics is not None and self.training:
            logits = logits.masked_fill(~statistics.active, -torch.inf)
        w = route(logits, self.moe_lora_config[name].top_k)
        if self.blend is not None and not self.training:
            beta, fixed = self.blend
            w = beta * w + (1 - beta) * fixed
        return w

    def statistics(self, adapter_name: str) -> LayerStatistics | None:
        """The statistics of an adapter, or None where it does not collect."""
        if adapter_name not in self.moe_lora_statistics:
            return None
        found = self.moe_lora_statistics[adapter_name]
        return found if isinstance(found, LayerStatistics) else None


def _both(first: Observer | None, second: Observer) -> Observer:
    def observe(*seen: Tensor) -> None:
        for each in (first, second):
            if each is not None:
                each(*seen)

    return observe


class MoeLoraModel(LinearTuner):
    """Puts a `MoeLoraLayer` around every target of a `MoeLoraConfig`.

    Use it through `peft.get_peft_model(model, MoeLoraConfig(...))`. The model's own `add_adapter`
    and `load_adapter` do it too, except in transformers 5.24, which asks for a later PEFT than
    there is.
    """

    prefix = f"{NAME}_"
    config_cls: ClassVar[type[PeftConfig]] = MoeLoraConfig
    tuner_layer_cls = MoeLoraLayer

    def _more(
        self, config: MoeLoraConfig, adapter_name: str, parent: nn.Module, target_name: str
    ) -> dict[str, Any]:
        """The statistics of an earlier linear of the same block that reads the same input."""
        for group in SAME_INPUT if config.share_inputs else ():
            for sibling in group if target_name in group else ():
                layer = getattr(parent, sibling, None)
                if sibling != target_name and isinstance(layer, MoeLoraLayer):
                    found = layer.statistics(adapter_name)
                    if found is not None:
                        return {"shared": found.owner}
        return {}


def layers(model: nn.Module) -> dict[str, MoeLoraLayer]:
    """All linears that have experts, by the name they have in the base model."""
    return {module.name: module for module in model.modules() if isinstance(module, MoeLoraLayer)}


def statistics(model: nn.Module, adapter: str = "default") -> dict[str, LayerStatistics]:
    """The statistics of an adapter, by the name that the linear has in the base model.

    Args:
        model: With or without a PeftModel around it.
        adapter: The adapter's name; it must have been made with `collect=True`.

    Returns:
        By name, in the order of the model; empty where nothing is collected.
    """
    found = {name: layer.statistics(adapter) for name, layer in layers(model).items()}
    return {name: each for name, each in found.items() if each is not None}


register_type(MOE_LORA, MoeLoraConfig, MoeLoraModel)
