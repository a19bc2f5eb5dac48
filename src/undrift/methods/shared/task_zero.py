"""The base as task zero: a history of what it reads before any task, or of what its weights read.

Nothing is trained. A history made here serves any method that keeps one, with any number of
experts: of a linear it holds the second moment of the inputs [Eq. 3 to 5], and what B reads of them
follows from A once there is an A.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from undrift.core import Metrics
from undrift.core.moment import History
from undrift.errors import ConfigError
from undrift.methods.shared.history import make_statistics
from undrift.tuner import ForwardContext, LayerStatistics, find_targets, observed_identity
from undrift.tuner.input_statistics import statistics_options
from undrift.tuner.targets import blocks, frozen_weight, widths


@dataclass(frozen=True, eq=False)
class TaskZero:
    """What a model's linears read, before the first task.

    Args:
        histories: By a linear's name in the base.
        measured: Whether eigenvalues are those of inputs; those of weights have no such unit.
    """

    histories: Mapping[str, History]
    measured: bool = True


def of_inputs(
    model: nn.Module, targets: str | Sequence[str], losses: Iterable[Tensor], options: Metrics
) -> TaskZero:
    """Make the history of what linears read while losses are computed.

    Args:
        model: The base, without adapters.
        targets: Which linears, as for `find_targets`.
        losses: Of a batch each, computed with the model when they are asked for; tokens are weighed
            by their gradients as `token_weights` says.
        options: How the history is kept; every token counts.

    Returns:
        The history, one task.

    Raises:
        ConfigError: If no loss was given.
    """
    linears = _linears(model, targets)
    statistics = _empty(linears, options)
    with ExitStack() as watch:
        context = watch.enter_context(ForwardContext.attached(model))
        first = next(iter(blocks(model).values()), model)
        handle = first.register_forward_pre_hook(_with_gradient, with_kwargs=True)
        watch.callback(handle.remove)
        for name, linear in linears.items():
            see = partial(_see, statistics[name], context)
            watch.callback(linear.register_forward_hook(see).remove)
        number = 0
        for number, loss in enumerate(losses, 1):
            loss.backward()
            if number == 1:
                for each in statistics.values():
                    each.rebase()
    if number == 0:
        raise ConfigError("there is no prompt to remember")
    return TaskZero(_ended(statistics, options))


def of_weights(model: nn.Module, targets: str | Sequence[str], options: Metrics) -> TaskZero:
    """Make a history of the directions that the frozen weights read most: W^T W [KeepLoRA, ours].

    The rows of W are taken for tokens, so that the same sketch serves.

    Args:
        model: The base.
        targets: Which linears, as for `find_targets`.
        options: How the history is kept.

    Returns:
        The history, in no unit.

    Raises:
        ConfigError: If weights are quantised.
    """
    linears = _linears(model, targets)
    statistics = _empty(linears, options)
    for turn in range(2):  # once more after the sketches were turned towards what was seen
        for name, linear in linears.items():
            statistics[name].observe_rows(frozen_weight(name, linear))
        for each in statistics.values() if turn == 0 else ():
            each.rebase()
    return TaskZero(_ended(statistics, options), measured=False)


def _linears(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in find_targets(model, targets).names}


def _empty(linears: Mapping[str, nn.Module], options: Metrics) -> dict[str, LayerStatistics]:
    places = {
        name: (widths(linear)[0], next(linear.parameters()).device)
        for name, linear in linears.items()
    }
    own = {**statistics_options(options), "token_fraction": 1.0, "task_weights": "tokens"}
    statistics = make_statistics(places, experts=1, rank=1, **own)
    for each in statistics.values():
        each.collecting_z = False
        each.start_task()
    return statistics


def _ended(statistics: Mapping[str, LayerStatistics], options: Metrics) -> dict[str, History]:
    for each in statistics.values():
        each.end_task(options.delta)
    return {name: each.history for name, each in statistics.items()}


def _with_gradient(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let what the first block reads need a gradient, so that every linear behind it gets one."""

    def asked(value: Any) -> Any:
        reads = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
        return value.detach().requires_grad_() if reads else value

    if args:
        return (asked(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": asked(kwargs["hidden_states"])}


def _see(
    statistics: LayerStatistics, context: ForwardContext, module: nn.Module, x: Any, y: Tensor
) -> Tensor:
    """Show a linear's tokens in the backward pass."""
    nothing = x[0].new_zeros(*x[0].shape[:-1], 1, dtype=torch.float32)
    return observed_identity(y, x[0], nothing, partial(statistics.observe, context.tokens))
