"""The LoRA of `finetune`, trained once on all tasks together: the ceiling."""

from __future__ import annotations

from typing import ClassVar

from undrift.methods.base import Schedule
from undrift.methods.finetune import Finetune


class Joint(Finetune):
    """The LoRA of `finetune`, trained once on the union of all tasks."""

    name: ClassVar[str] = "joint"
    paper: ClassVar[str] = "LoRA, Hu et al., ICLR 2022, arXiv:2106.09685"
    schedule: ClassVar[Schedule] = "joint"


METHOD = Joint
