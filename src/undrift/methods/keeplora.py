"""A LoRA a task that reads only what neither the base's weights nor past tasks' inputs need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from undrift.core.moment import MomentSketch
from undrift.methods import base
from undrift.methods.ewc import asked
from undrift.methods.shared import pool
from undrift.methods.shared.frozen_gradient import GradientPool, add_up
from undrift.methods.shared.subspace import extension, leading
from undrift.tuner.pool_lora import PoolLoraLayer, generator_of
from undrift.tuner.targets import frozen_weight


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config):
    """The options of `pool.Config`, and those of what is kept.

    Attributes:
        weight_share: epsilon_w, the share of ||W0||_F^2 that W0's principal subspace holds; 0 to
            protect nothing of the base.
        feature_share: epsilon_f, the share of the energy of a task's inputs that is protected when
            it has ended.
        most: The most directions that a task adds to what is protected of a linear's inputs, so
            that a size can be told beforehand.
        columns: How many columns the sketch of a task's inputs has; exact where the input is no
            wider.
        samples: Of how many of the task's examples the inputs are taken.
    """

    weight_share: float = base.option(0.6, base.SHARE)
    feature_share: float = base.option(0.99, base.SHARE)
    most: int = base.option(32, base.POSITIVE)
    columns: int = base.option(128, base.POSITIVE)
    samples: int = base.option(200, base.POSITIVE)


class KeepLora(GradientPool):
    """A LoRA for every task in the directions that are free: A is fixed there, B alone learns.

        y = W0 x + s sum_{i<t} B_i A_i x + s B_t A_t x                    in training and at test
        W_p: the leading right singular vectors of W0 that hold epsilon_w of its energy
        M_t = [M_{t-1}, U]: U the leading directions of task t's inputs outside [W_p, M_{t-1}], as
            many as it takes for [W_p, M_t] to hold epsilon_f of the inputs' energy
        G' = G (I - W_p W_p^T - M_{t-1} M_{t-1}^T) = B' S A_t,            A_t its first r rows

    A_t never moves, so the update B_t A_t gives 0 for whatever lies in W_p and M_{t-1}; M is kept
    as `protected`. (The paper writes weights as (d_in, d_out), with A and B the other way round.)

    [OURS] where the sources leave it open or the harness asks for it: G is that of the first
    optimiser step, which moves no LoRA, where public code makes a pass over a fifth of the data
    before. B begins at 0; the paper begins with B = S B'^T and takes s B A off W0, which is the
    same function and, without weight decay, the same training. The LoRAs are not merged but kept
    as frozen factors, so that the base is as it was (export merges them). M comes from second
    moments of inputs in a pass over `samples` examples at the task's end (public code for
    LLaVA takes gradients in their place). At least r directions of every input stay free, and a
    task adds `most` at most. W_p is worked out anew from W0 when it is needed, twice a task and
    linear, and not stored. epsilon_w = 0.6 and epsilon_f = 0.99 are those of the public scripts
    for UCIT, where the rank is 32. KeepLoRA++ (smaller steps in shallow layers) is not built.

    W0 has to be there in floating-point numbers: of a quantised base there is no W_p.
    """

    name: ClassVar[str] = "keeplora"
    paper: ClassVar[str] = "KeepLoRA, Luo et al., ICLR 2026, arXiv:2601.19659"
    parts: ClassVar[base.Parts] = "experts"
    state_name: ClassVar[str] = "keeplora_state"
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    def bind(self, model: nn.Module) -> None:
        """Fix A."""
        super().bind(model)
        for layer in self._layers.values():
            layer.pool_lora_A[self._adapter].requires_grad_(False)

    # ------------------------------------------------------------ the moments of a task

    def begin_expert(self, name: str, layer: PoolLoraLayer, G: Tensor) -> None:
        """Put A where the gradient is largest outside what is protected."""
        A = layer.pool_lora_A[self._adapter]
        A[0].copy_(leading(self._kept(name, layer), G, A.shape[1])[0])

    def task_end(self, model: nn.Module) -> None:
        """Protect the inputs of the task."""
        sketches = self._moments(model)
        for name, layer in self._layers.items():
            V, s = sketches[name].eigenpairs()
            moments = V * s.clamp_min(0).sqrt()
            self.protect(name, self._kept(name, layer), moments, self.config.feature_share)
        super().task_end(model)

    def _kept(self, name: str, layer: PoolLoraLayer) -> Tensor:
        """[W_p, M] of a linear, (d_in, k) float64."""
        W = frozen_weight(name, layer).double()
        room, none = layer.in_features - self.config.rank, W.new_zeros(layer.in_features, 0)
        W_p = extension(none, W.mT, self.config.weight_share, room)
        return torch.cat([W_p, self.protected[name].to(W_p)], dim=1)

    def _moments(self, model: nn.Module) -> dict[str, MomentSketch]:
        """Sketch the inputs of every linear, over the examples of all processes."""
        past, handles = self.past(model), list[RemovableHandle]()
        found: dict[str, MomentSketch] = {}
        for name, layer in self._layers.items():
            device = layer.pool_lora_A[self._adapter].device
            seed = generator_of(name, past).initial_seed()
            found[name] = MomentSketch(layer.in_features, self.config.columns, seed, device)
            handles.append(layer.register_forward_pre_hook(partial(self._see, found[name])))
        try:
            with asked(model), torch.no_grad():
                for inputs in self.last_batches():
                    model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        for name, sketch in found.items():
            add_up({f"{name}.{place}": each for place, each in enumerate(sketch.tensors())})
        return found

    def _see(self, sketch: MomentSketch, layer: nn.Module, args: tuple[Tensor]) -> None:
        rows = args[0].detach().flatten(0, -2)
        chosen = self._context.tokens.choose(len(rows), 1.0, 0, rows.device)
        with torch.autocast(rows.device.type, enabled=False):  # the sums are float32
            sketch.update(chosen.rows(rows), chosen.count)


METHOD = KeepLora
