"""The configuration of a pool of experts, as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

from undrift.errors import ConfigError
from undrift.tuner.config import KnownFields, check_targets
from undrift.tuner.upstream import add_type

NAME = "pool_lora"
GATES = ("given", "all")

POOL_LORA = add_type(NAME)


@dataclass
class PoolLoraConfig(KnownFields, PeftConfig):
    """Past LoRA experts, never trained again, and new ones beside them, on every chosen linear.

    Args:
        num_new: How many experts are trained.
        num_past: How many are past; by the linear's name where linears differ, and then 0 for one
            that is not named. `grow` keeps it.
        r: The rank of EACH expert.
        lora_alpha: The experts' part is scaled by lora_alpha / r.
        target_modules: As in `MoeLoraConfig`.
        exclude_modules: As in `MoeLoraConfig`.
        layers_to_transform: Indices of the layers to adapt; all where not given.
        modules_to_save: As in `MoeLoraConfig`.
        gates: What counts where no gates were set: "given", nothing, and a forward pass without
            them is refused; "all", every expert counts 1, so the adapter needs its method no more.
    """

    num_new: int = field(default=1)
    num_past: int | dict[str, int] = field(default=0)
    r: int = field(default=8)
    lora_alpha: float = field(default=16)
    target_modules: list[str] | str | None = field(default="ffn")
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    gates: str = field(default="given")

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: A value cannot be used; the message names it.
        """
        super().__post_init__()
        self.peft_type = POOL_LORA
        if self.target_modules is None:
            self.target_modules = "ffn"
        check_targets(self.target_modules)
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        for name in ("num_new", "r"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.gates not in GATES:
            raise ConfigError(f"gates must be one of {', '.join(GATES)}, not {self.gates!r}")

    def past_of(self, name: str) -> int:
        """Return how many experts of a linear are past.

        Args:
            name: The linear's name in the model.

        Returns:
            Their number.
        """
        return self.num_past if isinstance(self.num_past, int) else self.num_past.get(name, 0)
