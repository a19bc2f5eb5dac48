"""A frozen linear, whatever its kind, joined by N experts and a router [Eq. 1, 2]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undrift.core.routing import Blend, Observer, Packed, add_mixture, mixture, pack, route
from undrift.tuner.config import MoeLoraConfig
from undrift.tuner.linear import AdaptedLinear, Remade, compute_dtype
from undrift.tuner.observe import LayerStatistics
from undrift.tuner.tokens import TokenContext, Tokens

NOT_MERGEABLE = (
    "experts weighted by token have no merged weight: keep the adapter on the model, or train "
    "method steadylora, whose adapter is a plain LoRA that merges"
)


@dataclass(frozen=True)
class _Options:
    scale: float
    top_k: int | None


@dataclass(frozen=True, eq=False)
class _Made:
    """Packed experts, and what they were made for."""

    forward_pass: Tokens | None
    versions: tuple[Any, ...]
    packed: Packed


class MoeLoraLayer(AdaptedLinear):
    """Wraps a linear layer of any kind and adds the experts' part to its output.

    Args:
        base_layer: What is wrapped, see `tuner.linear.is_linear`.
        name: The layer's name in the model, for messages and seeds.
        context: Where the tokens of the current forward pass are looked up.

    Attributes:
        moe_lora_A: Per adapter, (N, r, d_in).
        moe_lora_B: Per adapter, B transposed, (N, r, d_out); zero at first.
        moe_lora_G: Per adapter, the router W_G, (N, d_in).
        moe_lora_statistics: Per adapter that collects, its `LayerStatistics`.
        as_trained: Leave the frozen experts out in evaluation too, as the current task's training
            does, instead of using all.
        watcher: Makes an observer of one forward pass's tokens, for training; see `core.routing`.
        blend: In evaluation, mix every token's route with weights that are the same for all.
    """

    adapter_layer_names = ("moe_lora_A", "moe_lora_B", "moe_lora_G")
    other_param_names = ("moe_lora_statistics", "moe_lora_options")
    not_mergeable = NOT_MERGEABLE

    def __init__(self, base_layer: nn.Module, name: str, context: TokenContext) -> None:
        super().__init__(base_layer, name)
        self.context = context
        self.moe_lora_A = nn.ParameterDict()
        self.moe_lora_B = nn.ParameterDict()
        self.moe_lora_G = nn.ParameterDict()
        self.moe_lora_statistics = nn.ModuleDict()
        self.moe_lora_options: dict[str, _Options] = {}
        self.as_trained = False
        self.watcher: Callable[[Tokens], Observer] | None = None
        self.blend: Blend | None = None
        self._packed: dict[str, _Made] = Remade()

    def update_layer(
        self, adapter_name: str, config: MoeLoraConfig, shared: LayerStatistics | None = None
    ) -> None:
        """Add an adapter: A Kaiming-uniform as in LoRA, B zero, W_G small [Eq. 1, 2].

        Args:
            adapter_name: Its name.
            config: Its configuration.
            shared: The statistics of a linear that reads the same input, if there is one.
        """
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
        self.moe_lora_options[adapter_name] = _Options(config.lora_alpha / r, config.top_k)
        if config.collect:
            self.moe_lora_statistics[adapter_name] = LayerStatistics(
                self.name,
                d,
                N,
                r,
                columns=config.columns,
                max_components=config.max_components,
                token_fraction=config.token_fraction,
                token_weights=config.token_weights,
                task_weights=config.task_weights,
                importance_power=config.importance_power,
                seed=config.seed,
                shared=shared,
            )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W0 x plus the part of every active adapter.

        Args:
            x: Tokens, (..., d_in).
            *args: Passed on to the base layer.
            **kwargs: Passed on to the base layer.

        Returns:
            (..., d_out), in the base layer's dtype.
        """
        names = [name for name in self.active_adapters if name in self.moe_lora_A]
        if self.disable_adapters or not names:
            return self.base_layer(x, *args, **kwargs)
        plain = self.base_is_plain()
        shape, address = x.shape[:-1], x.data_ptr()
        if plain:  # in two dimensions the output is a fresh matrix, which may be written into
            x = x.reshape(-1, x.shape[-1])
        y = self.base_layer(x, *args, **kwargs)
        for name in names:
            y = self._add(name, y, x, address, in_place=plain)
        return y.view(*shape, y.shape[-1]) if plain else y

    def _add(self, name: str, y: Tensor, x: Tensor, address: int, *, in_place: bool) -> Tensor:
        statistics = self.statistics(name)
        active = observe = None
        if statistics is not None:
            if self.training or self.as_trained:
                active = statistics.active_index
            if self.training and statistics.collecting:
                tokens = self.context.current
                tokens.check_shared(statistics.owner.name, self.name, address)
                observe = statistics.observer(tokens)
        if self.training and self.watcher is not None:
            observe = _both(observe, self.watcher(self.context.current))
        options = self.moe_lora_options[name]
        masters = (self.moe_lora_A[name], self.moe_lora_B[name], self.moe_lora_G[name])
        if self.blend is not None and not self.training:
            mixed = mixture(x.float(), *masters, options.scale, active, options.top_k, self.blend)
            return y + mixed.to(y.dtype)
        return add_mixture(
            y,
            x,
            *masters,
            self._pack(name, compute_dtype(x), active),
            options.scale,
            top_k=options.top_k,
            observe=observe,
            in_place=in_place,
        )

    def _pack(self, name: str, dtype: torch.dtype, active: Tensor | None) -> Packed:
        """The experts as the products read them, made once per forward pass of the model.

        Parameter versions alone would do, were it not for optimisers that write past them.
        """
        masters = (self.moe_lora_A[name], self.moe_lora_B[name], self.moe_lora_G[name])
        forward_pass = self.context.current if self.training else None
        versions = (dtype, *((id(p), p.data_ptr(), p._version) for p in masters))
        made = self._packed.get(name)
        if (
            made is None
            or made.forward_pass is not forward_pass
            or made.packed.active is not active
            or made.versions != versions
        ):
            made = _Made(forward_pass, versions, pack(*masters, dtype, active))
            self._packed[name] = made
        return made.packed

    def routes(self, x: Tensor, router: Tensor | None = None) -> Tensor:
        """Return w(x) [Eq. 1] of the active adapter; of experts that are left out it is 0.

        Args:
            x: Tokens, (..., d_in).
            router: Another W_G to route by, (N, d_in).

        Returns:
            (tokens, N) float32.
        """
        name = next(name for name in self.active_adapters if name in self.moe_lora_G)
        G = self.moe_lora_G[name] if router is None else router.to(x.device)
        statistics = self.statistics(name)
        logits = x.reshape(-1, x.shape[-1]).float() @ G.mT
        if statistics is not None and (self.training or self.as_trained):
            logits = logits.masked_fill(~statistics.active, -torch.inf)
        w = route(logits, self.moe_lora_options[name].top_k)
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

    def forget_packed(self) -> None:
        """Forget what was made of the masters for the products."""
        self._packed.clear()

    def __repr__(self) -> str:
        return f"moe_lora.{super().__repr__()}"


def _both(first: Observer | None, second: Observer) -> Observer:
    def observe(*seen: Tensor) -> None:
        for each in (first, second):
            if each is not None:
                each(*seen)

    return observe
