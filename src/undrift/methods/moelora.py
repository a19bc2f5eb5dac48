"""Experts and a token router, trained freely on task after task [Eq. 2]: SAME's parent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.tuner import MoeLoraConfig, MoeLoraLayer, layers, restore_float32


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and one more.

    Attributes:
        top_k: Route each token to its k best experts only; to all of them where None.
    """

    top_k: int | None = None


class MoeLora(base.Method):
    """LoRA experts and a token router, trained freely on task after task [Eq. 2]."""

    name: ClassVar[str] = "moelora"
    paper: ClassVar[str] = "CoIN, Chen et al., NeurIPS 2024, arXiv:2403.08350"
    parts: ClassVar[base.Parts] = "router and experts"
    streams: ClassVar[bool] = True
    Config: ClassVar[type[base.Config]] = Config

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
        restore_float32(model)


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
