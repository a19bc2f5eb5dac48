"""HiDe-LLaVA: an expert a task, all added up, and in the last layer mixed by likeness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared import task_matcher
from undrift.methods.shared.adapter import peft_model
from undrift.methods.shared.state import State
from undrift.tuner import Gates, Prompt
from undrift.tuner.distributed import full_tensor, sharded_like
from undrift.tuner.peft_internals import choose_adapter
from undrift.tuner.pool_lora import PoolLoraLayer

FUSED = "fused"  # the adapter of summed factors


@dataclass(frozen=True, kw_only=True)
class Config(task_matcher.Config):
    """The options of a matched pool, and how its experts are put together.

    Attributes:
        tau: The temperature of the softmax over scores.
        image_share: What the pictures count for in a score; the text counts for the rest.
        fuse: Below the last layer, "product" adds what the experts answer, sum of B_i A_i, as the
            paper writes; "factors" adds their factors, (sum of B_i)(sum of A_i), as the public code
            does, with cross terms that no training ever saw.
        expand: Where experts are mixed and not added up: in the "last" layer, or in "all".
        choice: "softmax"; or "argmax", as in another public version.
        centred: Compare features from the mean of the prototypes, see `Matching` [OURS]; False
            compares them from zero, as published for CLIP's.
        oracle: At test, where experts are mixed, use that of the task that is asked.
    """

    tau: float = base.option(0.1, base.POSITIVE)
    image_share: float = base.option(0.5, base.SHARE)
    fuse: Literal["product", "factors"] = "product"
    expand: Literal["last", "all"] = "last"
    choice: Literal["softmax", "argmax"] = "softmax"
    centred: bool = True
    oracle: bool = False


class Hide(task_matcher.MatchedPool):
    """An expert a task, trained alone; at test all are added, in the last layer weighed.

    Last layer: y = W0 x + s sum_i d_i B_i A_i x with d = softmax(score / tau) over the learned
    tasks, score_i the weighted mean of the prompt's cosines with task i's mean picture and mean
    text; other layers: all d_i = 1. Sums of products stay concatenated factors, which is exact;
    sums of factors are made once, when a task ends. Features are the model's own [OURS; published:
    CLIP's].
    """

    name: ClassVar[str] = "hide"
    paper: ClassVar[str] = "HiDe-LLaVA, Guo et al., ACL 2025, arXiv:2503.12941"
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._last: dict[str, PoolLoraLayer] = {}
        self._below: dict[str, PoolLoraLayer] = {}

    def matching(self) -> task_matcher.Matching:
        """Say how prompts are matched with tasks."""
        c = self.config
        weights = {"image": c.image_share, "text": 1 - c.image_share}
        return task_matcher.Matching(weights, c.tau, c.choice, c.centred, c.oracle)

    def bind(self, model: nn.Module) -> None:
        """Decide a model's gates from now on, and find its last layer."""
        super().bind(model)
        found = self._layers
        everywhere = self.config.expand == "all"
        self._last = found if everywhere else last_layer(peft_model(model), found)
        self._below = {name: each for name, each in found.items() if name not in self._last}

    # ------------------------------------------------------------ gates

    def gates(self, prompt: Prompt) -> Gates | Mapping[str, Gates]:
        """Match the prompts, and use the summed factors where they are asked for."""
        made = super().gates(prompt)
        fused = self.config.fuse == "factors" and self._for is None and made != "newest"
        choose_adapter(self._below.values(), FUSED if fused else self._adapter)
        return made

    def mixed(self, weights: Tensor) -> Mapping[str, Gates]:
        """Weigh the experts in the last layer, and add them up below."""
        return {"": "all", **dict.fromkeys(self._last, weights)}

    # ------------------------------------------------------------ fusion

    def task_end(self, model: nn.Module) -> None:
        """End a task: its prototype is made, and factors are summed where they are to be."""
        super().task_end(model)
        self._fuse(model)

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back the prototypes, and sum the factors where they are to be."""
        super().restore(model, saved)
        self._fuse(model)

    @torch.no_grad()
    def _fuse(self, model: nn.Module) -> None:
        """Sum the factors of all experts into the one expert of a second adapter."""
        if self.config.fuse != "factors":
            return
        wrapped = peft_model(model)
        if FUSED not in wrapped.peft_config:
            wrapped.add_adapter(FUSED, self.peft_config())
        for layer in self._below.values():
            both = zip(layer.pairs(FUSED), layer.pairs(self._adapter), strict=True)
            for (fused, _), (new, past) in both:
                summed = torch.cat([past[self._adapter], full_tensor(new)]).sum(0, keepdim=True)
                fused.copy_(sharded_like(fused, summed))
            layer.forget_packed()


def last_layer(model: Any, found: Mapping[str, PoolLoraLayer]) -> dict[str, PoolLoraLayer]:
    """Find the linears with a pool in the last layer of the language model.

    Args:
        model: A PeftModel.
        found: Its linears with a pool, by name.

    Returns:
        Those in the last layer, at least one.

    Raises:
        ConfigError: If there is none.
    """
    inside = set(model.get_base_model().get_decoder().layers[-1].modules())
    chosen = {name: layer for name, layer in found.items() if layer in inside}
    if not chosen:
        raise ConfigError(
            "hide mixes the experts of the last layer, and none of its linears is adapted; choose "
            "other targets, or expand all"
        )
    return chosen


METHOD = Hide
