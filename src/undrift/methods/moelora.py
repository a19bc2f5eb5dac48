"""Experts and a token router, trained freely on task after task [Eq. 2]: SAME's parent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isclose
from typing import Any, ClassVar

from torch import nn

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.tuner import MoeLoraConfig, MoeLoraLayer, layers, restore_float32


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and one more.

    Attributes:
        top_k: Route each token to its k best experts only; to all of them where None.
    """

    top_k: int | None = None


class MoeLora(base.Method):
    """LoRA experts and a token router, trained freely on task after task [Eq. 2].

    A begins Kaiming-uniform and the router with normal entries of deviation 0.1 / sqrt(d_in), and
    there is no dropout [OURS].
    """

    name: ClassVar[str] = "moelora"
    paper: ClassVar[str] = "CoIN, Chen et al., NeurIPS 2024, arXiv:2403.08350"
    parts: ClassVar[base.Parts] = "router and experts"
    streams: ClassVar[bool] = True
    Config: ClassVar[type[base.Config]] = Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._given = {*self.settings.get(setting or "", {}), *options}

    def peft_config(self, model: nn.Module | None = None) -> MoeLoraConfig:
        """Make the configuration of the adapter, for `get_peft_model` or a trainer."""
        config = self.config
        return MoeLoraConfig(
            num_experts=config.experts,
            r=config.rank,
            lora_alpha=config.alpha_over_rank * config.rank,
            target_modules=config.targets,
            top_k=config.top_k,
        )

    def idle_parameters(self, model: nn.Module) -> int:
        """Count the experts that a token is not routed to."""
        N, k = self.config.experts, self.config.top_k or self.config.experts
        return sum(each.trained_size() for each in layers(model).values()) * (N - k) // N

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Check that the model has experts, and that their masters are float32."""
        expert_layers(model)
        self._take_over(peft_model(model).peft_config[active_adapter(peft_model(model))])
        restore_float32(model)

    def _take_over(self, adapter: Any) -> None:
        """Take over what an adapter is that was made with a configuration of its own."""
        own, there = self.config, {"experts": adapter.num_experts, "rank": adapter.r}
        there["top_k"] = adapter.top_k
        if not isclose(adapter.scale, own.alpha_over_rank):
            there["alpha_over_rank"] = adapter.scale
        self.refuse_other(there, "the adapter on the model has")
        self.config = replace(own, **there)

    def refuse_other(self, there: Mapping[str, Any], what: str) -> None:
        """Refuse what is other than somebody has asked for by name.

        Args:
            there: What there is, by option.
            what: What says so.

        Raises:
            ConfigError: If an option that was given has another value.
        """
        other = {
            name: value for name, value in there.items() if value != getattr(self.config, name)
        }
        if asked := sorted(self._given & other.keys()):
            said = ", ".join(f"{name}={other[name]!r}" for name in asked)
            raise ConfigError(
                f"{what} {said}, and {self.name} was given "
                f"{', '.join(f'{name}={getattr(self.config, name)!r}' for name in asked)}; put "
                f"method.peft_config() on a new model, or give {self.name} {said}"
            )


def expert_layers(model: nn.Module) -> dict[str, MoeLoraLayer]:
    """Find the linears that have experts.

    Args:
        model: A model with a `MoeLoraConfig` on it.

    Returns:
        By name, at least one.

    Raises:
        ConfigError: If there is none.
    """
    found = layers(model)
    if not found:
        raise ConfigError(
            "the model has no experts to train: use the model that Method.attach returns, or give "
            "your trainer peft_config=undrift.MoeLoraConfig()"
        )
    return found


METHOD = MoeLora
