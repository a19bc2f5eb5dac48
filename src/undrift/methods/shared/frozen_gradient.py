"""Gradients of weights that are never trained, and pools whose experts begin with them.

    G = dL/dW = sum over tokens of dy x^T        W the frozen weight with all that past tasks added

x is what an adapted linear reads, dy the gradient at its output: both are there in a backward pass
anyway, so that W need not require gradients, may be quantised and is never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from undrift.core.step_hook import StepTransform
from undrift.errors import ConfigError, TrainingDiverged
from undrift.methods import base
from undrift.methods.shared.pool import Gate, PoolMethod
from undrift.methods.shared.state import State
from undrift.methods.shared.subspace import extension, restored
from undrift.tuner.distributed import processes
from undrift.tuner.pool_lora import PoolLoraLayer

See = Callable[[str, Tensor, Tensor], None]
"""Called in a backward pass with a linear's name, x (T, d_in) and dy (T, d_out)."""


def watch(layers: Mapping[str, nn.Module], see: See) -> list[RemovableHandle]:
    """Call a function with x and dy of every adapted linear in every backward pass from now on.

    Args:
        layers: By name.
        see: It.

    Returns:
        Handles, to be removed.
    """

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        x = args[0].detach()
        if torch.is_grad_enabled() and y.requires_grad:
            y.register_hook(lambda dy: see(name, x.flatten(0, -2), dy.detach().flatten(0, -2)))

    return [m.register_forward_hook(partial(hook, name)) for name, m in layers.items()]


def add_up(tensors: Mapping[str, Tensor]) -> None:
    """Add up tensors over all processes, in place; all have to call it."""
    for _, each in sorted(tensors.items()) if processes() > 1 else ():
        dist.all_reduce(each)


class Gradients:
    """G of every linear, summed over the backward passes while it is open.

    Args:
        layers: By name.

    Attributes:
        sums: By name, (d_out, d_in) float32: as large as the weights, while it is there.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.sums: dict[str, Tensor] = {}
        self._handles = watch(layers, self._add)

    def _add(self, name: str, x: Tensor, dy: Tensor) -> None:
        x, dy = x.float(), dy.float()
        if name not in self.sums:
            self.sums[name] = x.new_zeros(dy.shape[1], x.shape[1])
        self.sums[name].addmm_(dy.mT, x)

    def stop(self) -> None:
        """See nothing more."""
        while self._handles:
            self._handles.pop().remove()

    def close(self) -> dict[str, Tensor]:
        """Stop, and give the sums of all processes.

        Returns:
            By name; a linear that no pass came through is left out.

        Raises:
            TrainingDiverged: If one is not finite.
        """
        self.stop()
        sums, self.sums = self.sums, {}
        add_up(sums)
        for name, each in sums.items():
            if not bool(torch.isfinite(each).all()):
                raise TrainingDiverged(
                    f"the gradient of {name} is not finite; train in bfloat16 or float32"
                )
        return sums


class LooksBack(base.Method):
    """A method that looks at a task's own data once more when it has ended.

    Attributes:
        config: Its options; `samples` says at how many examples it looks.
    """

    def last_batches(self) -> Iterator[Mapping[str, Any]]:
        """Give the inputs of the task's batches, until all processes together had `samples`.

        Yields:
            What the model takes, with labels.

        Raises:
            ConfigError: If the trainer's data are not at hand, or not what is needed.
        """
        if self._loader is None:
            raise ConfigError(
                f"{self.name} looks at the trainer's data once more at the end of a task: call "
                "on_train_end with train_dataloader, as transformers' Trainer does"
            )
        if hasattr(self._loader, "set_epoch"):  # the first epoch's order, however it was resumed
            self._loader.set_epoch(0)  # pyright: ignore[reportAttributeAccessIssue]
        seen = 0
        for batch in self._loader:
            inputs = self._inputs_of(batch)
            if inputs is None:
                continue
            if "labels" not in inputs:
                raise ConfigError(f"{self.name} needs labels, and the trainer's batches have none")
            yield inputs
            seen += len(inputs["labels"])
            if seen * processes() >= self.config.samples:
                return
        if not seen:
            raise ConfigError(f"the trainer's data loader gave no batch for {self.name} to look at")


class GradientPool(LooksBack, PoolMethod[Gate]):
    """A pool in which the expert of a task begins with the first gradient of the frozen weight.

    The first optimiser step of a task moves nothing of the pool (a projector that is trained beside
    it takes that step like any other). It gathers G, which is exact whatever A is, since B is still
    zero; then `begin_expert` gives the expert its values. So no pass is added, and where the rate
    warms up the step would have been next to nothing.

    Args:
        setting: As for `Method`.
        **options: As for `Method`.

    Attributes:
        config: Its options; a task adds at most `most` directions to what is protected.
        protected: Directions of a linear's inputs that later tasks leave alone, orthonormal columns
            by linear, (d_in, k).
    """

    reads_prompts = False
    alone = True
    why_not_sharded = "it takes the gradients of whole frozen weights apart, which FSDP2 shards"

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._first: Gradients | None = None
        self.protected: dict[str, Tensor] = {}

    def bind(self, model: nn.Module) -> None:
        """Protect nothing of a linear of which nothing is known."""
        super().bind(model)
        for name, layer in self._layers.items():
            A, known = layer.pool_lora_A[self._adapter], self.protected.get(name)
            if known is None or known.is_meta:  # float32 at least, though a trainer has cast A
                wide = torch.promote_types(A.dtype, torch.float32)
                known = A.detach().new_zeros(layer.in_features, 0, dtype=wide)
            self.protected[name] = known.to(A.device)

    def begin_expert(self, name: str, layer: PoolLoraLayer, G: Tensor) -> None:
        """Give the newest expert of a linear its first values.

        Args:
            name: The linear's.
            layer: It; B of its newest expert is zero.
            G: The gradient, up to a factor, (d_out, d_in) float32.
        """
        raise NotImplementedError

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task: its first step only looks, with nothing of a training that was cut off."""
        super().task_start(model, task_index, steps_total)
        for layer in self._layers.values():
            self._empty(layer)
        self._first = Gradients(self._layers)

    @torch.no_grad()
    def _empty(self, layer: PoolLoraLayer) -> None:
        """Let the newest expert of a linear add nothing."""
        layer.pool_lora_B[self._adapter].zero_()
        layer.forget_packed()

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Make ready; what an earlier training was looking for is forgotten."""
        if self._first is not None:
            self._first.stop()
            self._first = None
        super().task_resume(model, task_index, steps_total)

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Let the first step move nothing."""
        if self._first is None:
            return {}
        held = (each for m in self._layers.values() for each in (m.pool_lora_A, m.pool_lora_B))
        return {p: torch.zeros_like for each in held if (p := each[self._adapter]).requires_grad}

    @torch.no_grad()
    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """After the first step begin with the experts."""
        if self._first is None:
            return
        found, self._first = self._first.close(), None
        for name, G in found.items():
            layer = self._layers[name]
            self._empty(layer)  # an optimiser that goes from task to task brings momentum
            self.begin_expert(name, layer, G)
            layer.forget_packed()
        if not any(bool(each.pool_lora_A[self._adapter].any()) for each in self._layers.values()):
            raise ConfigError(
                f"nothing is left for {self.name} to learn in: all that the first gradient asks "
                "for is protected; lower the shares of energy that it keeps"
            )

    def protect(self, name: str, Q: Tensor, M: Tensor, share: float) -> None:
        """Protect more directions of a linear's inputs; r of them always stay free.

        Args:
            name: The linear's.
            Q: What is held anyway, orthonormal columns, (d_in, k).
            M: Whose columns weigh the directions, (d_in, n).
            share: Of the energy of M, which Q and the new directions are to hold.
        """
        room = min(self.config.most, len(Q) - self.config.rank - Q.shape[1])
        kept = self.protected[name]
        self.protected[name] = torch.cat([kept, extension(Q, M, share, room).to(kept)], dim=1)

    # ------------------------------------------------------------ state

    def state(self, model: nn.Module) -> State:
        """Name the directions that are protected."""
        if not self._layers:
            self.bind(model)
        return State(self.protected)

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back the directions that are protected."""
        self.protected = restored(saved, self.protected)

    def forget(self, model: nn.Module) -> None:
        """Protect nothing."""
        self.protected = {}
        super().forget(model)

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Make room for as many directions as so many tasks may add."""
        super().make_room(model, tasks)
        for name, layer in self._layers.items():
            most = min(tasks * self.config.most, max(0, layer.in_features - self.config.rank))
            self.protected[name] = torch.zeros(layer.in_features, most)
