"""What a method costs in parameters and bytes, and the rank at which it costs what `finetune` does.

Methods are compared fairly only at the same cost, and there is more than one cost. A method that
grows meets the budget at the END of the run, after its last task, when it is largest: a pool with
an expert a task gets the rank at which all its experts together weigh what one LoRA does. A method
that grows where it has to is counted as if it had to everywhere, so that it never exceeds the
budget. Where the rank decides nothing (a soft prompt is as long as it is) or where rank 1 is
already too much, there is no such rank, and that is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from peft import get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods.base import Method
from undrift.methods.finetune import Finetune
from undrift.methods.shared.adapter import peft_model, transformer
from undrift.tuner.frozen import count_parameters

_NO_STATE = (
    "README.md",
    "undrift.json",
    "undrift_state.json",
)  # what PEFT and a run tell people about an adapter

Kind = Literal["total", "active", "state"]


@dataclass(frozen=True)
class Budget:
    """What a method costs after a task.

    Attributes:
        trainable: Parameters that the optimiser moved in this task.
        active: Parameters that a token is multiplied with when the model answers.
        stored: All parameters that the method has put on the model, frozen ones included.
        state_bytes: Everything on disk that answering and learning one more task need.
    """

    trainable: int
    active: int
    stored: int
    state_bytes: int

    def __str__(self) -> str:
        return (
            f"{short_number(self.trainable)} parameters trained, {short_number(self.active)} "
            f"active, {short_number(self.stored)} stored, "
            f"{short_number(self.state_bytes)}B of state"
        )

    def of(self, kind: Kind) -> int:
        """Return the number that is held equal.

        Args:
            kind: "total" for what is stored, "active", or "state" for bytes.

        Returns:
            Parameters or bytes.
        """
        return {"total": self.stored, "active": self.active, "state": self.state_bytes}[kind]


def measured(method: Method, model: nn.Module, backbone: int, directory: Path) -> Budget:
    """Measure what a method costs after a task.

    Args:
        method: The method.
        model: What its `attach` returned.
        backbone: The size of the model before that.
        directory: Where `save_state` has saved it.

    Returns:
        The budget.
    """
    return _counted(method, model, backbone, state_bytes(directory))


def state_bytes(directory: Path) -> int:
    """Count the bytes of a saved adapter, but for what tells people about it.

    Args:
        directory: Where `save_state` has saved it.

    Returns:
        The bytes.
    """
    files = (path for path in directory.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.name not in _NO_STATE)


def expected(method: Method, model: PreTrainedModel, tasks: int) -> Budget:
    """Work out what a method costs after its last task, without training it.

    The method is put on a copy of the model that has shapes and no numbers. Of the files the
    tensors are counted, not the few kilobytes of names around them.

    Args:
        method: The method.
        model: The backbone.
        tasks: How many tasks it will learn.

    Returns:
        The budget; of a method that grows where it has to, the largest that it may come to.
    """
    with torch.device("meta"):
        shell = type(model)(model.config)
    backbone = count_parameters(shell)
    with torch.device("meta"):
        wrapped = method.attach(shell)
        method.make_room(wrapped, tasks)
        beside = method.state(wrapped).size
    state = get_peft_model_state_dict(peft_model(wrapped), save_embedding_layers=False)
    tensors = sum(value.numel() * value.element_size() for value in state.values())
    return _counted(method, wrapped, backbone, tensors + beside)


def check_fits(method: Method, model: PreTrainedModel, directory: Path) -> None:
    """Refuse options under which a method would put far more on a model than was saved of it.

    What a record says is somebody else's word: the sizes are worked out before anything is made.

    Args:
        method: The method, made from a record.
        model: The backbone.
        directory: What `save_state` has saved, beside the record.

    Raises:
        AdapterMismatch: If the two cannot belong together.
    """
    there = sum(path.stat().st_size for path in directory.glob("*") if path.is_file())
    try:
        needed = expected(method, model, 1).state_bytes
    except (RuntimeError, OverflowError, TypeError) as error:
        raise AdapterMismatch(
            f"the options in {directory} cannot be used with this backbone: "
            f"{' '.join(str(error).split())}"
        ) from error
    if needed > 4 * there + 2**20:
        raise AdapterMismatch(
            f"the options in {directory} are of an adapter of {short_number(needed)}B, and its "
            f"files have {short_number(there)}B; get its files anew from where they come from"
        )


def _counted(method: Method, model: nn.Module, backbone: int, size: int) -> Budget:
    stored = count_parameters(model) - backbone
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Budget(trainable, stored - method.idle_parameters(model), stored, size)


def rank_to_meet(method: Method, kind: Kind, model: nn.Module, tasks: int) -> int:
    """Find the rank at which a method costs what `finetune` costs at `experts * rank`.

    Args:
        method: The method, with `experts` and `rank` as configured.
        kind: Which cost is held equal: "total", "active" or "state".
        model: The backbone.
        tasks: How many tasks are learned.

    Returns:
        The rank whose cost is nearest.

    Raises:
        ConfigError: If the method cannot meet the budget at any rank.
    """
    config, backbone = method.config, transformer(model)
    if not method.needs_training:
        raise ConfigError(f"{method.name!r} trains nothing, so no budget can be matched")
    shared = {name: getattr(config, name) for name in ("experts", "rank", "targets")}
    target = expected(Finetune(**shared), backbone, 1).of(kind)
    options = {field.name: getattr(config, field.name) for field in fields(config)}

    @cache
    def cost(rank: int) -> int:
        return expected(type(method)(**{**options, "rank": rank}), backbone, tasks).of(kind)

    step = cost(2) - cost(1)
    if step <= 0:
        raise ConfigError(
            f"{method.name!r} cannot meet a budget ({kind}): its size does not depend on the rank; "
            "leave out --match-budget, and set the method's own options"
        )
    if cost(1) - target > step / 2:
        raise ConfigError(
            f"{method.name!r} cannot meet the budget ({kind}): even at rank 1 it comes to "
            f"{cost(1):,} after {tasks} tasks, and finetune to {target:,} at rank "
            f"{config.experts * config.rank}; raise method.rank"
        )
    rank = max(1, 1 + round((target - cost(1)) / step))  # exact where the cost is affine
    while abs(cost(rank + 1) - target) < abs(cost(rank) - target):
        rank += 1
    while rank > 1 and abs(cost(rank - 1) - target) < abs(cost(rank) - target):
        rank -= 1
    return rank


def short_number(number: int) -> str:
    """Write 1234567 as "1.23 M", and 12 as "12 ", for a unit to follow."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number} "
