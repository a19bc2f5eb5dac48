"""A term that a method adds to the model's own loss, or to its gradient, in anyone's trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from undrift.core.step_hook import innermost
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared.adapter import peft_model


def without_graph(method: base.Method) -> ConfigError:
    """Make (not raise) the error for a term that would move nothing."""
    return ConfigError(
        f"{method.name}'s losses have no graph in checkpoints of the old kind: train with "
        "gradient_checkpointing_kwargs={'use_reentrant': False}, or without them"
    )


def loss_scale(optimizer: Any) -> float:
    """Tell what a term has to be multiplied by that is added to the gradients of a step.

    Under float16 a fused optimiser takes the loss's scale off by itself, behind the hooks of its
    step, unless the trainer clips: what is added there is divided by the scale as well.

    Args:
        optimizer: Which is about to step; None outside of a training.

    Returns:
        The scale that is still on the gradients; 1 in all other trainings.
    """
    scale = getattr(innermost(optimizer), "grad_scale", None) if optimizer is not None else None
    return 1.0 if scale is None else float(scale)


class AddedLoss:
    """A hook on a whole model, so that trainers and DDP see one loss and one graph.

    Args:
        method: Whose term it is.
        term: Called behind every pass that learns; the term, (), a mean over the pass's examples,
            or None where there is none.
        alone: Whether the pass just made learns by the term alone. The model's own loss is then of
            the same value and has no gradient.
    """

    def __init__(
        self,
        method: base.Method,
        term: Callable[[], Tensor | None],
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._method, self._term, self._alone = method, term, alone
        self._model: nn.Module | None = None
        self._handle: RemovableHandle | None = None

    def watch(self, model: nn.Module) -> None:
        """Add the term to a model's loss from now on, and to no other's."""
        whole = peft_model(model).get_base_model()
        if whole is self._model:
            return
        if self._handle is not None:
            self._handle.remove()
        self._model, self._handle = whole, whole.register_forward_hook(self._end, with_kwargs=True)

    def _end(self, module: nn.Module, _: Any, given: Mapping[str, Any], output: Any) -> Any:
        learns = module.training and torch.is_grad_enabled()
        extra = self._term() if learns and getattr(output, "loss", None) is not None else None
        if extra is not None:
            if not extra.requires_grad:
                raise without_graph(self._method)
            added_up = given.get("num_items_in_batch") is not None
            share = 1 / self._method.parts_of_step if added_up else self._method.example_share
            added = extra * share
            if self._alone():  # no_grad in the pass would outlive a Ctrl-C there
                output.loss, added = output.loss.detach(), added - added.detach()
            output.loss = output.loss + added
        return output
