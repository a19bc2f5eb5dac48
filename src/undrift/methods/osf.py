"""PEFT's own OSF in this harness: the weight's small singular directions learn, the large stay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from peft import OSFConfig
from torch import nn

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.tuner import find_targets


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and one more; `alpha_over_rank` has no meaning here.

    Attributes:
        preserved: The share of each weight's singular directions that stays as it is; where None,
            as many that `experts * rank` are left to learn.
    """

    preserved: float | None = base.option(
        None, ("one between 0 and 1", lambda v: v is None or 0 < v < 1)
    )


class Osf(base.Method):
    """PEFT's orthogonal subspace fine-tuning, as PEFT ships it: an outside tuner fits.

    Every weight is decomposed once, when the adapter is made (a singular value decomposition a
    linear: slow on a large model). U, S and V of the small singular values are trained, with
    gradients orthogonal to the directions of the large ones; PEFT turns the gradient, not the step,
    so that Adam's are orthogonal only nearly. One adapter goes from task to task:
    PEFT's recipe of merging after each task and decomposing anew would change the base, which this
    harness never does. Trained are R (d_in + d_out + 1) numbers a linear, and PEFT keeps as many
    beside them. It needs plain linears, not quantised ones.
    """

    name: ClassVar[str] = "osf"
    why_not_sharded: ClassVar[str] = (
        "PEFT turns its gradients in hooks on parameters, in whose place FSDP2 puts others"
    )
    paper: ClassVar[str] = "Sculpting Subspaces, Nayak et al., 2025, arXiv:2504.07097"
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    def peft_config(self, model: nn.Module | None = None) -> OSFConfig:
        """Make the configuration of the adapter."""
        if model is None:
            raise ConfigError("osf decomposes the model's own weights: call peft_config(model)")
        found = find_targets(model, self.config.targets)
        if found.transposed:
            raise ConfigError(
                f"osf decomposes plain linears, and {type(model).__name__} has Conv1D; every other "
                "method takes them, such as steadylora"
            )
        targets = found.expression
        if self.config.preserved is not None:
            return OSFConfig(target_modules=targets, effective_rank=self.config.preserved)
        learning = self.config.experts * self.config.rank
        kept: dict[str, int | float] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and re.fullmatch(targets, name):
                smaller = min(module.weight.shape)
                if smaller <= learning:
                    raise ConfigError(
                        f"{name} has {smaller} singular directions, and experts * rank = "
                        f"{learning} of them are to learn; lower either, or give preserved"
                    )
                kept[f"{re.escape(name)}$"] = smaller - learning
        if len(set(kept.values())) == 1:
            return OSFConfig(target_modules=targets, effective_rank=next(iter(kept.values())))
        return OSFConfig(target_modules=targets, rank_pattern=kept)


METHOD = Osf
