"""The diagonal of the Fisher information of a LoRA, from the gradient of every single example.

The gradient of one example's log-likelihood with respect to a linear's weight is the sum over its
tokens of dy x^T. Hooks on A and B form it for each example of a batch from what one forward and
one backward pass hold anyway, so that a batch costs one pass of each and no loop over examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.tuner.packing import packed_examples

IGNORED = -100  # the label that cross entropy leaves out


def sample_fisher(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    batches: Iterable[Mapping[str, Any]],
    samples: int,
) -> dict[str, Tensor]:
    """Average the squared gradient of log p(answer | question) over examples.

    In evaluation mode, with the labels of the data. Nothing is left behind in the gradients.

    Args:
        model: What is asked; its gradients flow through the linears.
        linears: Whose weights are meant, by name; they read (examples, tokens, features).
        batches: The model's inputs with labels, as many as are needed.
        samples: How many examples to take, on all ranks together; the last batch is not cut.

    Returns:
        The mean of the squares, by name, in the weight's shape.

    Raises:
        ConfigError: If there are no examples, or a linear reads tokens whose example is not known.
    """
    sums = {name: torch.zeros_like(each.weight) for name, each in linears.items()}
    weights = [each.weight for each in linears.values()]
    seen = 0
    with asked(model), ExitStack() as stack:
        for name, each in linears.items():
            hook = each.register_forward_hook(_squares_into(sums[name]))
            stack.callback(hook.remove)
        for inputs in batches:
            if packed_examples(inputs) is not None:
                raise ConfigError(
                    "the Fisher information is one of examples, and a packed row holds several: "
                    'train without packing, or with fisher="batch"'
                )
            seen += _rows(inputs)
            torch.autograd.grad(log_likelihood(model, inputs), weights, allow_unused=True)
            if seen * _ranks() >= samples:
                break
    return _mean(sums, seen)


def batch_fisher(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    batches: Iterable[Mapping[str, Any]],
    count: int,
) -> dict[str, Tensor]:
    """Average the squared gradient of a whole batch's loss over batches, as public code does.

    This is no Fisher information: the gradients of a batch are averaged before they are squared,
    which shrinks the result by about the batch's size.

    Args:
        model: What is asked.
        linears: Whose weights are meant, by name.
        batches: The model's inputs with labels.
        count: How many batches to take.

    Returns:
        The mean of the squares, by name.

    Raises:
        ConfigError: If there are no batches.
    """
    sums = {name: torch.zeros_like(each.weight) for name, each in linears.items()}
    weights = [each.weight for each in linears.values()]
    seen = 0
    with asked(model):
        for inputs in batches:
            found = torch.autograd.grad(model(**inputs).loss, weights)
            for total, gradient in zip(sums.values(), found, strict=True):
                total += gradient.square()
            seen += 1
            if seen == count:
                break
    return _mean(sums, seen)


def log_likelihood(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Sum log p over all labelled tokens of a batch.

    Args:
        model: What is asked.
        inputs: Its inputs, with labels.

    Returns:
        The sum, ().
    """
    labels = inputs["labels"]
    logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits
    kept = labels[:, 1:].to(logits.device)
    return -F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), kept.flatten(), ignore_index=IGNORED, reduction="sum"
    )


@contextmanager
def asked(model: nn.Module) -> Iterator[None]:
    """Within this context a model is in evaluation mode, with gradients."""
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)


def _squares_into(total: Tensor) -> Any:
    """A hook on a linear that adds the squares of each example's gradient to `total`."""

    def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        x = args[0].detach()
        if x.dim() != 3:
            raise ConfigError(
                f"a linear reads tokens of shape {tuple(x.shape)}, and which example each belongs "
                'to cannot be told; use fisher="batch" for this model'
            )

        def add(dy: Tensor) -> None:
            own = torch.einsum("bto,bti->boi", dy, x.to(dy.dtype))
            total.add_(own.square().sum(0))

        if y.requires_grad:
            y.register_hook(add)

    return hook


def _rows(inputs: Mapping[str, Any]) -> int:
    if "labels" not in inputs:
        raise ConfigError(
            "the trainer's batches hold no labels, from which the Fisher information is computed"
        )
    return len(inputs["labels"])


def _mean(sums: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Divide by how many there were, on all ranks."""
    device = next(iter(sums.values())).device
    seen = torch.tensor(float(count), device=device)
    if _ranks() > 1:
        for total in (seen, *sums.values()):
            dist.all_reduce(total)
    if not seen:
        raise ConfigError("the trainer's data loader gave no batch to compute the Fisher with")
    return {name: total / seen for name, total in sums.items()}


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
