"""The statistics of one adapted linear's inputs: running sums of a task, and the history of all.

They are taken in the backward pass, of the tokens that count. Running sums are plain tensors
(DistributedDataParallel would overwrite buffers); what is kept between tasks lies in persistent
buffers that are saved with the adapter. Nothing here knows about routers or PEFT, so it serves
plain LoRA as well (N = 1, w = 1).
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from undrift.core.activation import Usage
from undrift.core.moment import History, MomentSketch
from undrift.tuner.distributed import rank
from undrift.tuner.token_mask import Tokens

LEAST, ENOUGH = 1 / 8, 30  # of the tokens; sampled tokens for every dimension of an input

_HISTORY = ("V", "s", "k", "trace", "tokens", "dropped")
_SKETCH = ("Y", "trace", "tokens", "weight")
_RUNNING = (*_SKETCH, "Omega", "w", "energy", "usage_tokens", "z", "z_tokens", "z_weight")


_OPTIONS = "columns max_components token_fraction token_weights task_weights importance_power seed"


def statistics_options(config: Any) -> dict[str, Any]:
    """The part of a configuration that `LayerStatistics` takes."""
    return {name: getattr(config, name) for name in _OPTIONS.split() if hasattr(config, name)}


class _Moment(NamedTuple):
    """`sum u z z^T` over the tokens of a task, (N r, N r), n and `sum u`, () float64."""

    total: Tensor
    tokens: Tensor
    weight: Tensor


class LayerStatistics(nn.Module):
    """What one adapted linear has seen: in this task, and in all tasks before.

    Args:
        name: The linear's name; with `seed` and the number of tasks it decides the sketch's Omega.
        dim: d_in.
        experts: N.
        rank: r of each expert.
        columns: l of the sketch.
        max_components: The most eigenpairs that the history keeps.
        token_fraction: The share of the tokens that count; an eighth, or all in a short task, where
            None, see `core.settings.Metrics`.
        token_weights: What a token counts for in C and C_z, see `core.settings.Metrics`.
        task_weights: What a task counts for in them, see there.
        importance_power: 1 or 2, see `Usage`.
        seed: For Omega and for the choice of tokens.
        shared: The statistics of a linear with the same input, whose sketch and history serve
            this one as well.

    Attributes:
        batches: How many batches the task has, over all processes; 0 where it is not known.
        collecting: Whether `observe` counts anything.
        collecting_z: Whether `observe` counts B's inputs.
        cz: C_z, the mean of z z^T over the tokens of the tasks so far, (N r, N r) float32.
        cz_tokens: How many tokens (or tasks) `cz` stands for, () float64.
        importance: F^pre, (N,) float64 [Eq. 17].
        importance_tokens: alpha, how many tokens F^pre stands for, () float64.
        active: Which experts take part in the current task, (N,) bool.
        tasks: How many tasks were ended, () int64.
    """

    history_tokens: Tensor
    cz: Tensor
    cz_tokens: Tensor
    importance: Tensor
    importance_tokens: Tensor
    active: Tensor
    tasks: Tensor

    def __init__(
        self,
        name: str,
        dim: int,
        experts: int,
        rank: int,
        *,
        columns: int = 128,
        max_components: int = 64,
        token_fraction: float | None = 1.0,
        token_weights: str = "same",
        task_weights: str = "tokens",
        importance_power: int = 1,
        seed: int = 0,
        shared: LayerStatistics | None = None,
    ) -> None:
        super().__init__()
        self.name, self.dim, self.experts, self.rank = name, dim, experts, rank
        self.columns, self.max_components = columns, max_components
        self.token_fraction, self.seed = token_fraction, seed
        self.token_weights, self.task_weights = token_weights, task_weights
        self.importance_power = importance_power
        self.batches = 0
        self.collecting = self.collecting_z = True
        self._shared = (shared,)  # in a tuple: not a submodule, so it is saved once
        if shared is None:
            empty = History.empty(dim, max_components)
            for field in _HISTORY:
                self.register_buffer(f"history_{field}", getattr(empty, field))
        double = torch.float64
        self.register_buffer("cz", torch.zeros(experts * rank, experts * rank))
        self.register_buffer("cz_tokens", torch.zeros((), dtype=double))
        self.register_buffer("importance", torch.zeros(experts, dtype=double))
        self.register_buffer("importance_tokens", torch.zeros((), dtype=double))
        self.register_buffer("active", torch.ones(experts, dtype=torch.bool))
        self.register_buffer("tasks", torch.zeros((), dtype=torch.int64))
        for field in _RUNNING:  # filled by `flush` only, empty otherwise
            self.register_buffer(f"running_{field}", torch.empty(0))
        self._active: tuple[Any, ...] = (None, -1, None, None)
        self._forget()

    def _forget(self) -> None:
        self._sketch: MomentSketch | None = None
        self._usage: Usage | None = None
        self._z: _Moment | None = None

    @property
    def owner(self) -> LayerStatistics:
        """The statistics that hold the sketch and the history: these, or the shared ones."""
        return self._shared[0] or self

    # ---------------------------------------------------------------- the current task

    def begin_history(self, history: History) -> None:
        """Let what is kept begin with the base's own inputs, before the first task.

        Args:
            history: Of the linear's input; it counts as much as it has tokens, or as one task.

        Raises:
            RuntimeError: If a task was learned already.
        """
        if self.tasks > 0:
            raise RuntimeError(f"{self.name}: the history has begun already")
        made = history.resized(self.max_components)
        for field in _HISTORY:
            getattr(self, f"history_{field}").copy_(getattr(made, field))
        self.history_tokens.copy_(self._n(made.tokens))

    def begin_cz(self, A: Tensor) -> None:
        """Let C_z begin as what the history says of B's inputs, every expert with the gate 1 / N.

        Args:
            A: Of all experts, (N r, d_in).
        """
        V, s = self.history.basis()
        AV = A.float() @ V / self.experts
        self.cz.copy_((AV * s) @ AV.mT)
        self.cz_tokens.copy_(self.history.tokens)

    def task_per_history(self) -> Tensor:
        """Tell by what a history without a unit is multiplied to be as large as this task's, ().

        Call inside `summed`; 1 where nothing was seen.
        """
        sketch, trace = self.owner._sketch, self.history.trace
        if sketch is None or not bool(trace > 0) or not bool(sketch.weight > 0):
            return torch.ones_like(trace)
        return sketch.trace / sketch.weight / trace

    def scale_history(self, factor: Tensor) -> None:
        """Multiply what is kept of inputs and of B's inputs by a factor, ()."""
        self.cz.mul_(factor)
        if self.owner is self:
            made = self.history.scaled(factor)
            for field in _HISTORY:
                getattr(self, f"history_{field}").copy_(getattr(made, field))

    def start_task(self, batches: int = 0) -> None:
        """Begin a task: the running sums are zero, all experts take part.

        Args:
            batches: How many batches it has, over all processes, where that is known.
        """
        self.batches = batches
        self.active.fill_(True)
        self._empty_running()
        self._make_sums()

    def _make_sums(self) -> None:
        device = self.cz.device
        self._usage = Usage(self.experts, self.importance_power, device)
        self._z = _Moment(*map(torch.zeros_like, (self.cz, self.cz_tokens, self.cz_tokens)))
        if self.owner is self:
            task_seed = zlib.crc32(f"{self.seed}/{self.name}/{int(self.tasks)}".encode())
            self._sketch = MomentSketch(self.dim, self.columns, task_seed, device)

    @torch.no_grad()
    def observe(self, tokens: Tokens, x: Tensor, w: Tensor, h: Tensor, g: Tensor) -> None:
        """Count a batch.

        Args:
            tokens: Which rows count.
            x: The linear's input, (T, d_in).
            w: The route of the active experts, (T, n).
            h: B's own input w_i A_i x, (T, n r).
            g: The loss's gradient with respect to the linear's output, or what stands for it: a
                row per token, of any width.
        """
        if not self.collecting:
            return
        if self._usage is None:
            self._make_sums()
        usage, z = self.usage, self._z
        chosen = tokens.choose(x.shape[0], self.fraction(x.shape[0]), self.seed, x.device)
        x, w, h = chosen.rows(x).float(), chosen.rows(w), chosen.rows(h).float()
        energy = torch.linalg.vector_norm(x, dim=1).square()
        active = self.active_index
        usage.update(w, energy, chosen.count, active, chosen.times)
        u = tokens.weights(self.token_weights, chosen, g)
        if self._sketch is not None:
            self._sketch.update(x, chosen.count, u, energy)
        if self.collecting_z and z is not None:
            uh = h if u is None else h * u[:, None]
            if active is None:
                z.total.addmm_(uh.mT, h)
            else:
                block = self._active[3]
                z.total.index_put_((block[:, None], block[None, :]), uh.mT @ h, accumulate=True)
            z.tokens.add_(chosen.count)
            z.weight.add_(chosen.count if u is None else u.sum())

    def observe_rows(self, x: Tensor) -> None:
        """Count the rows of x, (T, d_in), in the sketch alone: they are no tokens of a route."""
        if self.owner._sketch is not None:
            self.owner._sketch.update(x)

    def fraction(self, rows: int) -> float:
        """Say which share of a batch's tokens counts.

        Args:
            rows: T, how many tokens the batch has, padding included.

        Returns:
            `token_fraction`; where it is None an eighth, and all in a task too short to give 30
            sampled tokens for every dimension, or whose length is not known. Nothing between the
            two: with another number of processes batches are padded otherwise, and only where a
            task's length is right at the limit may that change the sums.
        """
        if self.token_fraction is not None:
            return self.token_fraction
        total = rows * self.batches
        return LEAST if LEAST * total >= ENOUGH * self.dim else 1.0

    def rebase(self) -> None:
        """Turn the sketch towards what was seen; call inside `summed`."""
        if self._sketch is not None:
            self._sketch.rebase()

    def end_task(self, delta: float) -> None:
        """Merge the task into what is kept; call inside `summed`.

        Args:
            delta: The share of the energy that the history keeps [Eq. 5].
        """
        if self._usage is None:
            return
        self._merge(delta)
        self.tasks += 1
        self._empty_running()
        self._forget()

    def merge_on(self, delta: float, batches: int = 0) -> None:
        """Merge what was seen into what is kept, inside a task; call inside `summed`.

        The sums go on from zero, the sketch as it is turned, and all experts take part.

        Args:
            delta: As for `end_task`.
            batches: As for `start_task`, until the next merge.
        """
        if self._usage is None:
            return
        self._merge(delta)
        self.batches = batches
        for total in self.running().values():
            total.zero_()

    def _merge(self, delta: float) -> None:
        assert self._z is not None
        if self._sketch is not None:
            merged = self.history.merge(self._sketch, delta, self._n(self._sketch.tokens))
            for name in _HISTORY:
                getattr(self, f"history_{name}").copy_(getattr(merged, name))
        self.cz.copy_(self.cz_now())
        self.cz_tokens += self._n(self._z.tokens)
        self.importance.copy_(self.importance_now())
        self.importance_tokens += self.usage.tokens
        self.active.fill_(True)

    # ---------------------------------------------------------------- what methods read

    @property
    def history(self) -> History:
        """C^{t-1} of the linear's input, all tasks ended so far."""
        return History(**{field: getattr(self.owner, f"history_{field}") for field in _HISTORY})

    def history_now(self, delta: float) -> History:
        """C^t, history and current task together; call inside `summed`."""
        sketch = self.owner._sketch
        if sketch is None:
            return self.history
        return self.history.merge(sketch, delta, self._n(sketch.tokens))

    def history_of_task(self) -> History:
        """C_hat^t, the current task alone, as all that its sketch tells; call inside `summed`."""
        sketch, empty = self.owner._sketch, History.empty(self.dim, self.columns, self.cz.device)
        return empty if sketch is None else empty.merge(sketch, 1.0, self._n(sketch.tokens))

    def _n(self, tokens: Tensor) -> Tensor:
        """n_t, how much the current task counts for, ()."""
        return tokens if self.task_weights == "tokens" else (tokens > 0).to(tokens.dtype)

    def cz_now(self) -> Tensor:
        """C_z with the current task in it, (N r, N r); call inside `summed`."""
        if self._z is None:
            return self.cz
        n = self._n(self._z.tokens)
        unit = n / self._z.weight.clamp_min(1e-300)  # as in `History.merge`
        total = (self.cz_tokens + n).clamp_min(1)
        return ((self.cz_tokens * self.cz + unit * self._z.total) / total).float()

    def importance_now(self) -> Tensor:
        """F^t, (N,) [Eq. 17]; call inside `summed`."""
        if self._usage is None:
            return self.importance
        return self._usage.importance(self.importance, self.importance_tokens)

    @property
    def usage(self) -> Usage:
        """The running sums of the routes in the current task; whole inside `summed`.

        Raises:
            RuntimeError: No task has begun.
        """
        if self._usage is None:
            raise RuntimeError(f"{self.name}: call start_task before reading the usage")
        return self._usage

    @property
    def active_index(self) -> Tensor | None:
        """The experts that take part, (n,) int64, or None for all; read back once per change."""
        buffer, version, index, _ = self._active
        if buffer is not self.active or version != self.active._version:
            index = block = None
            if not bool(self.active.all()):
                index = self.active.nonzero().flatten()
                step = torch.arange(self.rank, device=index.device)
                block = (index[:, None] * self.rank + step).flatten()
            self._active = (self.active, self.active._version, index, block)
        return index

    # ---------------------------------------------------------------- saving and ranks

    def running(self) -> dict[str, Tensor]:
        """The running sums themselves, additive over ranks; empty before a task."""
        if self._usage is None or self._z is None:
            return {}
        sums: dict[str, Tensor] = dict(
            zip(("w", "energy", "usage_tokens"), self._usage.tensors(), strict=True)
        )
        sums |= zip(("z", "z_tokens", "z_weight"), self._z, strict=True)
        if self._sketch is not None:
            sums |= zip(_SKETCH, self._sketch.tensors(), strict=True)
        return sums

    def flush(self) -> None:
        """Copy the running sums into the buffers, before a save; call inside `summed`."""
        for name, value in self.running().items():
            setattr(self, f"running_{name}", value.clone())
        if self._sketch is not None and not self._sketch.exact:
            self.running_Omega = self._sketch.Omega.clone()

    @property
    def interrupted(self) -> bool:
        """Whether it was loaded from what `flush` has saved inside a task."""
        return self._usage is None and getattr(self, "running_usage_tokens").dim() == 0  # noqa: B009

    def resume_task(self, batches: int = 0) -> None:
        """Go on with the running sums that `flush` saved; a new task where there are none.

        Args:
            batches: As for `start_task`.
        """
        self.batches = batches
        saved = {name: getattr(self, f"running_{name}") for name in _RUNNING}
        if saved["usage_tokens"].dim() > 0:  # empty
            return self.start_task(batches)
        self._make_sums()
        if self._sketch is not None and not self._sketch.exact:
            self._sketch.Omega = saved["Omega"]
        for name, value in self.running().items():
            value.copy_(saved[name])
            if rank() > 0:  # rank 0 goes on with what all ranks had counted
                value.zero_()
        return None

    def _empty_running(self) -> None:
        for name in _RUNNING:
            setattr(self, f"running_{name}", torch.empty(0, device=self.cz.device))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Give the running buffers the size they were saved with, empty or full."""
        for name in _RUNNING:
            saved = state_dict.get(f"{prefix}running_{name}")
            if saved is not None:
                own = getattr(self, f"running_{name}")
                setattr(self, f"running_{name}", torch.empty_like(saved, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
