"""A term that a method adds to the model's own loss, in undrift's trainer and in anyone's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared.adapter import peft_model


def without_graph(method: base.Method) -> ConfigError:
    """Make (not raise) the error for a term that would move nothing."""
    return ConfigError(
        f"{method.name}'s losses have no graph in checkpoints of the old kind: train with "
        "gradient_checkpointing_kwargs={'use_reentrant': False}, or without them"
    )


class AddedLoss:
    """Hooks on a whole model, so that trainers and DDP see one loss and one graph.

    Args:
        method: Whose term it is.
        term: Called behind every pass that learns; the term, (), a mean over the pass's examples,
            or None where there is none.
        alone: Whether the pass that begins learns by the term alone. The model's own loss is then
            of the same value and has no gradient.
    """

    def __init__(
        self,
        method: base.Method,
        term: Callable[[], Tensor | None],
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._method, self._term, self._alone = method, term, alone
        self._model: nn.Module | None = None
        self._handles: list[RemovableHandle] = []
        self._pass = ExitStack()

    def watch(self, model: nn.Module) -> None:
        """Add the term to a model's loss from now on, and to no other's."""
        whole = peft_model(model).get_base_model()
        if whole is self._model:
            return
        for handle in self._handles:
            handle.remove()
        self._model = whole
        self._handles = [
            whole.register_forward_pre_hook(self._begin),
            whole.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        ]

    def _begin(self, module: nn.Module, _: Any) -> None:
        self._pass.close()
        if module.training and torch.is_grad_enabled() and self._alone():
            self._pass.enter_context(torch.no_grad())

    def _end(self, module: nn.Module, _: Any, given: Mapping[str, Any], output: Any) -> Any:
        self._pass.close()
        learns = module.training and torch.is_grad_enabled()
        extra = self._term() if learns and getattr(output, "loss", None) is not None else None
        if extra is not None:
            if not extra.requires_grad:
                raise without_graph(self._method)
            added_up = given.get("num_items_in_batch") is not None
            share = 1 / self._method.parts_of_step if added_up else self._method.example_share
            added = extra * share
            output.loss = output.loss + (added - added.detach() if self._alone() else added)
        return output
