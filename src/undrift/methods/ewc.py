"""The LoRA of `finetune`, pulled back to where past tasks left it, by its Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core.step_hook import StepTransform
from undrift.errors import ConfigError, TrainingDiverged
from undrift.methods import base
from undrift.methods.finetune import Finetune, lora_layers
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.added_loss import loss_scale
from undrift.methods.shared.state import State
from undrift.tuner.distributed import full_tensor, processes
from undrift.tuner.token_mask import IGNORED, packed_examples


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and those of the pull.

    Attributes:
        strength: lambda. What it means depends on `normalise`.
        normalise: Scale each task's Fisher to a mean of 1 over all parameters of the LoRA, so that
            one `strength` serves models and tasks of any size.
        gamma: What the Fisher of earlier tasks is multiplied by at the end of a task, in [0, 1].
        anchor: "last", the online form: the pull is towards where the last task ended. "each",
            towards where each task ended, with that task's Fisher; the state is no larger.
        fisher: "sample" squares the gradient of each example's log-likelihood. "batch" squares
            that of a whole batch's loss, as public code does.
        samples: From how many examples it is computed, with fisher="sample".
        batches: From how many batches, with fisher="batch".
    """

    strength: float = base.option(0.1, base.POSITIVE)
    normalise: bool = True
    gamma: float = base.option(1.0, base.SHARE)
    anchor: Literal["last", "each"] = "last"
    fisher: Literal["sample", "batch"] = "sample"
    samples: int = base.option(200, base.POSITIVE)
    batches: int = base.option(50, base.POSITIVE)


class Ewc(Finetune):
    """Sequential LoRA with elastic weight consolidation on A and B.

    At the end of a task the finished model is asked about examples from the trainer's own data
    loader, in evaluation mode: about one forward and one backward pass for each of `samples`
    examples, without activation checkpointing. Later tasks pay one elementwise product a
    parameter and step: lambda F (theta - theta*) is added to the gradient once per optimiser step,
    after clipping, and is not part of the reported loss. F is that of A and of B, though B A does
    not change when A is turned by a matrix and B by its inverse.

    The setting "public" is what public code does: lambda 5000 on squared gradients of 50 whole
    batches, as they are, with one anchor for each task.
    """

    name: ClassVar[str] = "ewc"
    paper: ClassVar[str] = "EWC, Kirkpatrick et al., PNAS 2017, arXiv:1612.00796"
    Config: ClassVar[type[base.Config]] = Config
    settings: ClassVar[base.Settings] = {
        "public": {
            "strength": 5000.0,
            "normalise": False,
            "anchor": "each",
            "fisher": "batch",
            "batches": 50,
        }
    }
    state_name: ClassVar[str] = "ewc_state"
    why_not_sharded: ClassVar[str] = (
        "its Fisher information needs the gradients of each process's own examples, and FSDP2 "
        "gives the mean over all processes"
    )
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._linears: dict[str, nn.Linear] = {}
        self._penalty = QuadraticPenalty({})
        self._pulls = False

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task; the first has nothing that pulls."""
        self.bind(model)
        self._pulls = any(bool(each.any()) for each in self._penalty.weight.values())

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Add the gradient of the penalty."""
        if not self._pulls:
            return {}
        return self._penalty.transforms(self.config.strength * loss_scale(self._optimizer))

    def task_end(self, model: nn.Module) -> None:
        """Compute the task's Fisher information, and put the anchor where the parameters are."""
        if self._loader is None:
            raise ConfigError(
                "ewc computes its Fisher information from the trainer's data at the end of a "
                "task: call on_train_end with train_dataloader, as transformers' Trainer does"
            )
        config, loader = self.config, self._loader
        if hasattr(loader, "set_epoch"):  # the first epoch's order, however training was resumed
            loader.set_epoch(0)  # pyright: ignore[reportAttributeAccessIssue]
        batches = (made for batch in loader if (made := self._inputs_of(batch)) is not None)
        count = config.samples if config.fisher == "sample" else config.batches
        found = fisher_information(model, self._linears, batches, config.fisher, count)
        if config.normalise:
            found = normalised(found)
        self._penalty.add(found, config.anchor, config.gamma)

    # ------------------------------------------------------------ state

    def state(self, model: nn.Module) -> State:
        """Name Fisher information and anchor: twice the LoRA's size."""
        if not self._linears:
            self.bind(model)
        return State(self._penalty.tensors)

    def forget(self, model: nn.Module) -> None:
        """Begin without Fisher information."""
        self._linears = {}
        self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Find A and B of the active LoRA; what is known of the same one stays."""
        wrapped = peft_model(model)
        adapter = active_adapter(wrapped)
        found: dict[str, Any] = {
            f"{name}.{factor}": getattr(layer, factor)[adapter]
            for name, layer in lora_layers(wrapped, adapter).items()
            for factor in ("lora_A", "lora_B")
        }
        weights = {name: each.weight for name, each in found.items()}
        if found == self._linears:
            self._penalty.follow(weights)
            return
        self._linears, self._penalty = found, QuadraticPenalty(weights)


def normalised(fisher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scale to a mean of 1 over all parameters.

    Args:
        fisher: By the parameter's name.

    Returns:
        Likewise; zeros where all are zero.
    """
    total = sum(float(each.double().sum()) for each in fisher.values())
    count = sum(each.numel() for each in fisher.values())
    return {name: each * (count / (total or 1)) for name, each in fisher.items()}


def _zeros(p: Tensor) -> Tensor:
    """Zeros in a parameter's shape, float32 where it is less: sums and squares need the room."""
    return torch.zeros_like(p.detach(), dtype=torch.promote_types(p.dtype, torch.float32))


# --------------------------------------------- the diagonal of the Fisher information
#
# The gradient of one example's log-likelihood with respect to a linear's weight is the sum over its
# tokens of dy x^T. Hooks on A and B form it for each example of a batch from what one forward and
# one backward pass hold anyway, so that a batch costs one pass of each and no loop over examples.


def fisher_information(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    batches: Iterable[Mapping[str, Any]],
    kind: Literal["sample", "batch"],
    count: int,
) -> dict[str, Tensor]:
    """Average squared gradients, in evaluation mode, with the labels of the data.

    With "sample" they are those of log p(answer | question) of each example. "batch" takes the loss
    of a whole batch, as public code does. That is no Fisher information: the gradients of a batch
    are averaged before they are squared, which shrinks the result by about the batch's size.

    Nothing is left behind in the gradients.

    Args:
        model: What is asked; its gradients flow through the linears.
        linears: Whose weights are meant, by name; for "sample" they read (examples, tokens,
            features).
        batches: The model's inputs with labels, as many as are needed.
        kind: Whose gradients are squared.
        count: How many examples to take, on all ranks together, where the last batch is not cut; or
            how many batches.

    Returns:
        The mean of the squares, by name, in the weight's shape, in float32 at least.

    Raises:
        ConfigError: If there are no batches, or a linear reads tokens whose example is not known.
        TrainingDiverged: If a gradient is not finite.
    """
    sums = {name: _zeros(each.weight) for name, each in linears.items()}
    weights = [each.weight for each in linears.values()]
    seen = 0
    with asked(model), ExitStack() as stack:
        for name, each in linears.items() if kind == "sample" else ():
            stack.callback(each.register_forward_hook(_squares_into(sums[name])).remove)
        for inputs in batches:
            if kind == "sample":
                seen += _examples(inputs)
                torch.autograd.grad(log_likelihood(model, inputs), weights, allow_unused=True)
                enough = seen * processes() >= count
            else:
                found = torch.autograd.grad(model(**inputs).loss, weights)
                for total, gradient in zip(sums.values(), found, strict=True):
                    total += gradient.to(total.dtype).square()
                seen += 1
                enough = seen == count
            if enough:
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
            own = torch.einsum("bto,bti->boi", dy.to(total.dtype), x.to(total.dtype))
            total.add_(own.square().sum(0))

        if y.requires_grad:
            y.register_hook(add)

    return hook


def _examples(inputs: Mapping[str, Any]) -> int:
    """Count the examples of a batch; each must be a row with labels."""
    if packed_examples(inputs) is not None:
        raise ConfigError(
            "the Fisher information is one of examples, and a packed row holds several: train "
            'without packing, or with fisher="batch"'
        )
    if "labels" not in inputs:
        raise ConfigError(
            "the trainer's batches hold no labels, from which the Fisher information is computed"
        )
    return len(inputs["labels"])


def _mean(sums: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Divide by how many there were, on all ranks."""
    seen = torch.tensor(float(count), device=next(iter(sums.values())).device)
    if processes() > 1:
        for total in (seen, *sums.values()):
            dist.all_reduce(total)
    if not seen:
        raise ConfigError("the trainer's data loader gave no batch to compute the Fisher with")
    for name, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise TrainingDiverged(
                f"the gradient of {name} is not finite; train in bfloat16 or float32"
            )
    return {name: total / seen for name, total in sums.items()}


# --------------------------------------------- the pull
#
# towards where parameters have been, lambda/2 sum_j W_j (theta_j - c_j)^2.
# A sum of such pulls, one for each past task, is again one of the same form, up to a constant:
#
#     sum_k F_k (theta - theta_k)^2 = W (theta - c)^2 + ...
#     W = sum_k F_k                  W c = sum_k F_k theta_k
#
# so that one weight and one centre a parameter are the whole state, however many tasks there were.


class QuadraticPenalty:
    """The pull on a set of parameters; none at first.

    Args:
        parameters: By name.

    Attributes:
        weight: W of each, >= 0.
        centre: c of each.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)
        self.weight = {name: _zeros(p) for name, p in parameters.items()}
        self.centre = {name: _zeros(p) for name, p in parameters.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state: what is saved."""
        weights = {f"{name}.weight": each for name, each in self.weight.items()}
        return weights | {f"{name}.centre": each for name, each in self.centre.items()}

    def follow(self, parameters: Mapping[str, Parameter]) -> None:
        """Go on with the same parameters where a move of the model has put them.

        Args:
            parameters: By the names they had.
        """
        self.parameters = dict(parameters)
        for held in (self.weight, self.centre):
            held.update({name: held[name].to(p.device) for name, p in parameters.items()})

    def add(
        self, omega: Mapping[str, Tensor], anchor: Literal["last", "each"], keep: float
    ) -> None:
        """Add a pull towards where the parameters are now.

        Args:
            omega: Its weight, by the parameter's name, >= 0.
            anchor: "last" moves the whole pull to where the parameters are now (the online form);
                "each" leaves what was there, so that the centre becomes the weighted mean.
            keep: What the pull so far is multiplied by first.
        """
        for name, p in self.parameters.items():
            weight, centre = self.weight[name].mul_(keep).add_(omega[name]), self.centre[name]
            if anchor == "last":
                centre.copy_(p.detach())
            else:
                share = torch.where(weight > 0, omega[name] / weight, 0)
                centre.lerp_(p.detach().to(centre.dtype), share)

    def transforms(self, strength: float) -> dict[Parameter, StepTransform]:
        """Say what becomes of the gradients: lambda W (theta - c) is added, once a step.

        Args:
            strength: lambda.

        Returns:
            By parameter.
        """
        return {
            p: partial(_pulled, p=p, weight=self.weight[n], centre=self.centre[n], lam=strength)
            for n, p in self.parameters.items()
        }


def _pulled(gradient: Tensor, p: Tensor, weight: Tensor, centre: Tensor, lam: float) -> Tensor:
    away = full_tensor(p.detach()) - centre
    return torch.addcmul(gradient, weight, away, value=lam).to(gradient.dtype)


METHOD = Ewc
