"""The configuration of the routed experts, as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from undrift.errors import ConfigError, unknown
from undrift.tuner.upstream import add_type

NAME = "moe_lora"
GATES = ("token", "constant")
WEIGHTS = {"token_weights": ("same", "gradient", "share"), "task_weights": ("tokens", "equal")}

MOE_LORA = add_type(NAME)


def check_targets(targets: Any) -> None:
    """Refuse targets that are neither words nor a list of them.

    Args:
        targets: What a user gave.

    Raises:
        ConfigError: If they are anything else.
    """
    listed = isinstance(targets, (list, tuple, set, frozenset))
    if not isinstance(targets, str) and not (listed and all(isinstance(e, str) for e in targets)):
        raise ConfigError(
            f"targets {targets!r}: give ffn, attention, all, a list of names, or an expression"
        )


class KnownFields:
    """A configuration that refuses what it has no field for: nobody would ever read it."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field.

        Args:
            name: The field; names that begin with an underscore are PEFT's own business.
            value: Its value.

        Raises:
            UnknownName: If there is no such field.
        """
        known = type(self).__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue]
        if not name.startswith("_") and name not in known:
            raise unknown(f"setting of {type(self).__name__}", name, known)
        super().__setattr__(name, value)


@dataclass
class MoeLoraConfig(KnownFields, PeftConfig):
    """N LoRA experts and a router on every chosen linear [Eq. 1, 2].

    Args:
        num_experts: N.
        r: The rank of EACH expert; a plain LoRA of the same size has rank N r.
        lora_alpha: The experts' part is scaled by lora_alpha / r.
        target_modules: "ffn" (the feed-forward linears of the language model), "attention", "all"
            (both), a list of module names inside the language model, or a regular expression over
            full module names; see `tuner.targets`. What they stand for is looked up in the model
            and stored as a regular expression.
        exclude_modules: Names or a regular expression of modules to leave out.
        layers_to_transform: Indices of the layers to adapt; all where not given.
        modules_to_save: Modules to train in full and save with the adapter, such as
            "multi_modal_projector".
        top_k: Route each token to its k best experts only; to all of them where not given.
        gate: "token", W_G x decides; "constant", every expert weighs 1/N and W_G stays zero.
        collect: Keep statistics of the inputs, the routes and the experts' outputs while training,
            and the history of earlier tasks with the adapter.
        columns: l, the columns of the sketch of each input [see `core.moment`].
        max_components: The most eigenpairs a history keeps.
        token_fraction: The share of the tokens that enter the statistics, in (0, 1].
        token_weights: What a token counts for in them, "same", "gradient" or "share", see
            `core.settings.Metrics`.
        task_weights: What a task counts for in the history, "tokens" or "equal", see there.
        importance_power: 1 or 2, see `core.activation.Usage`.
        share_inputs: Let linears that read one input (gate and up; q, k and v) share one sketch.
        seed: What the sketches and the choice of tokens are drawn from.
    """

    num_experts: int = field(default=8)
    r: int = field(default=8)
    lora_alpha: float = field(default=16)
    target_modules: list[str] | str | None = field(default="ffn")
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    top_k: int | None = field(default=None)
    gate: str = field(default="token")
    collect: bool = field(default=False)
    columns: int = field(default=128)
    max_components: int = field(default=64)
    token_fraction: float = field(default=1.0)
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
        if self.target_modules is None:
            self.target_modules = "ffn"
        check_targets(self.target_modules)
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        for name in ("num_experts", "r", "columns", "max_components"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.top_k is not None and not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                f"top_k must lie between 1 and num_experts={self.num_experts}, not {self.top_k}"
            )
        if self.gate not in GATES:
            raise ConfigError(f"gate must be one of {', '.join(GATES)}, not {self.gate!r}")
        for name, known in WEIGHTS.items():
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {given!r}")
        if not 0 < self.token_fraction <= 1:
            raise ConfigError(f"token_fraction must lie in (0, 1], not {self.token_fraction}")
