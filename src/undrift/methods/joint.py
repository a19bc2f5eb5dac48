"""The LoRA of `finetune`, trained once on all tasks together: the ceiling."""

from __future__ import annotations

from typing import ClassVar, Literal

from undrift.methods.finetune import Finetune


class Joint(Finetune):
    """LoRA on the union of all tasks."""

    name: ClassVar[str] = "joint"
    schedule: ClassVar[Literal["sequential", "joint", "none"]] = "joint"


METHOD = Joint
