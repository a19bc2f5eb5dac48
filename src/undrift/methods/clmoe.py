"""CL-MoE: routed experts, merged after each task with what they were, by the role each has had."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core.routing import Observer
from undrift.methods import base, moelora
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.state import State
from undrift.tuner import MoeLoraLayer
from undrift.tuner.distributed import full_tensor, sharded_like
from undrift.tuner.token_mask import Tokens


@dataclass(frozen=True, kw_only=True)
class Config(moelora.Config):
    """The options of `moelora`, and those of roles and merging.

    Attributes:
        gamma: How much of an old expert that both tasks need stays in the merge, in [0, 1].
        beta: The weight of the token's own route at test; the rest is the task level's. 1 leaves
            the task level out.
        important: K, how many experts a task counts as its own in each linear; half of them where
            None.
        roles: "paper", see `ClMoe`; or "code", the roles of the public merge script, and one set
            of important experts for the whole network.
    """

    gamma: float = base.option(0.7, base.SHARE)
    beta: float = base.option(0.5, base.SHARE)
    important: int | None = None
    roles: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.experts
        possible = f"one from 1 to experts={most}"
        self.require("important", (possible, lambda v: v is None or 1 <= v <= most))


class ClMoe(moelora.MoeLora):
    """MoE-LoRA with a momentum merge after each task, and task-level weights at test.

    While a task is learned each linear counts how often an expert is among the two best of a
    token. The K most counted are the task's own, E_t. At the task's end each expert becomes
    lambda * before + (1 - lambda) * after, with lambda = gamma where both tasks count it, or
    neither; 1 - gamma where only the new task does; 1 where only the task before did. That is the
    stated purpose of the merge; the public script does it the other way round for the last case
    (roles="code"), and its pattern of names matches no tensor, so that published numbers may be
    those of plain MoE-LoRA. The router is the new one.

    Training uses the token's route alone. At test it is mixed with the task level's weights, the
    tasks' normalised counts; which task is asked about is not known, so their mean over the tasks
    seen is taken. The counts are the only state that grows: N numbers a linear and task.
    """

    name: ClassVar[str] = "clmoe"
    paper: ClassVar[str] = "CL-MoE, Huai et al., CVPR 2025, arXiv:2503.00413"
    Config: ClassVar[type[base.Config]] = Config
    alone: ClassVar[bool] = False
    state_name: ClassVar[str] = "clmoe_state"
    cut_off: ClassVar[base.CutOff] = "end"
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self.counts: dict[str, Tensor] = {}  # by linear, (tasks, N)
        self._running: dict[str, Tensor] = {}  # this task's, (N,)
        self._before: dict[str, Tensor] = {}  # A and B as the task found them
        self._layers: dict[str, MoeLoraLayer] = {}

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin to count, and note what the experts are; or go on with what was loaded.

        Where the task's training was cut off and begins anew, they are still what they were then.
        """
        super().task_start(model, task_index, steps_total)
        self.bind(model)
        if not self._step:
            self._empty_running()
        if not (self._step or self._before):
            learned = any(len(counts) for counts in self.counts.values())
            experts = self._experts(model).items() if learned else ()
            self._before = {name: full_tensor(p.detach()).clone() for name, p in experts}
        for name, layer in self._layers.items():
            layer.watcher = partial(count_best, self._running[name])

    @torch.no_grad()
    def task_end(self, model: nn.Module) -> None:
        """Merge every expert with what it was, by its role."""
        with self.summed(model):
            for name, layer in self._layers.items():
                layer.watcher = None
                self.counts[name] = torch.cat([self.counts[name], self._running[name][None].cpu()])
        self._empty_running()
        experts = self._experts(model)
        for name, found in self._before.items():
            p = experts[name]
            before = found.to(p.device)
            keep = self.kept(name.rpartition(".")[0]).to(before).view(-1, 1, 1)
            p.copy_(sharded_like(p, keep * before + (1 - keep) * full_tensor(p)))
        self._before = {}

    def kept(self, linear: str) -> Tensor:
        """Return lambda of each expert after the last task.

        Args:
            linear: The linear's name.

        Returns:
            (N,) in [0, 1].
        """
        of_code = self.config.roles == "code"
        names = self.counts if of_code else (linear,)
        counts = torch.stack([self.counts[name] for name in names]).sum(0)
        old, new = self._own(counts[-2]), self._own(counts[-1])
        gamma = torch.full(old.shape, self.config.gamma)
        if of_code:
            return torch.where(old & ~new, 1 - gamma, gamma)
        return torch.where(old & ~new, 1.0, torch.where(new & ~old, 1 - gamma, gamma))

    def _own(self, counts: Tensor) -> Tensor:
        """Which experts are a task's own, (N,) bool."""
        size = self.config.important or max(1, len(counts) // 2)
        own = torch.zeros(len(counts), dtype=torch.bool)
        own[counts.argsort(descending=True, stable=True)[:size]] = True
        return own

    # ------------------------------------------------------------ at test

    @contextmanager
    def predicting(self, model: nn.Module, task: int | None = None) -> Iterator[None]:
        """Within this context routes are mixed with the task level's weights."""
        found = moelora.expert_layers(model)
        try:
            for name, layer in found.items():
                if self.config.beta < 1 and len(self.counts.get(name, ())):
                    layer.blend = (self.config.beta, self.task_level(name).to(_master(layer)))
            with super().predicting(model, task):
                yield
        finally:
            for layer in found.values():
                layer.blend = None

    def task_level(self, linear: str) -> Tensor:
        """Return G^T, the mean over the tasks seen of how much each used the experts.

        Args:
            linear: The linear's name.

        Returns:
            (N,), the sum is 1.
        """
        counts = self.counts[linear].double()
        return (counts / counts.sum(1, keepdim=True).clamp_min(1)).mean(0)

    # ------------------------------------------------------------ counting

    def bind(self, model: nn.Module) -> None:
        """Find the experts of a model; what is counted of one that is known already stays."""
        found = moelora.expert_layers(model)
        made = {name: _master(layer) for name, layer in found.items()}
        if self._layers == found:
            self._running = {name: c.to(made[name].device) for name, c in self._running.items()}
            return
        self._layers = found
        self.counts = {n: torch.zeros(0, len(A), dtype=torch.int64) for n, A in made.items()}
        self._running = {
            name: torch.zeros(len(A), dtype=torch.int64, device=A.device)
            for name, A in made.items()
        }

    def _empty_running(self) -> None:
        for count in self._running.values():
            count.zero_()

    def _experts(self, model: nn.Module) -> Mapping[str, Parameter]:
        adapter = active_adapter(peft_model(model))
        return {
            f"{name}.{key}": masters[adapter]
            for name, layer in self._layers.items()
            for key, masters in (("A", layer.moe_lora_A), ("B", layer.moe_lora_B))
        }

    # ------------------------------------------------------------ state

    def state(self, model: nn.Module) -> State:
        """Name the counts, and inside a task what the merge needs too."""
        if not self._layers:
            self.bind(model)
        kinds = {"counts": self.counts, "running": self._running, "before": self._before}
        tensors = {f"{n}:{kind}": t for kind, found in kinds.items() for n, t in found.items()}
        return State(tensors, [*self._running.values()])

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back the counts of however many tasks."""
        kinds: dict[str, dict[str, Tensor]] = {"counts": {}, "running": {}, "before": {}}
        for name, each in (saved.tensors or {}).items():
            linear, _, kind = name.rpartition(":")
            kinds.setdefault(kind, {})[linear] = each
        if kinds["running"].keys() != self._running.keys():
            raise saved.mismatch("its linears are others")
        self.counts = kinds["counts"]
        for name, count in self._running.items():
            count.copy_(kinds["running"][name])
        self._before = kinds["before"]

    def forget(self, model: nn.Module) -> None:
        """Begin without counts."""
        self._layers, self._before = {}, {}
        self.bind(model)

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Make room for the counts of so many tasks."""
        self.bind(model)
        self.counts = {n: torch.zeros(tasks, len(c)).long() for n, c in self._running.items()}


def _master(layer: MoeLoraLayer) -> Any:
    return next(iter(layer.moe_lora_A.values()))


def count_best(total: Tensor, tokens: Tokens) -> Observer:
    """Count which two experts are the best of each token that is not padding.

    Args:
        total: The counts, (N,) integers; they are added to in the backward pass.
        tokens: Those of the forward pass.

    Returns:
        What a layer shows its tokens to.
    """

    def observe(x: Tensor, w: Tensor, h: Tensor, dy: Tensor) -> None:
        w = tokens.choose(len(w), 1.0, 0, w.device).rows(w)
        best = w.topk(min(2, w.shape[1]), dim=1).indices
        counts = (w.sum(1, keepdim=True) > 0).to(total.dtype).expand_as(best)
        total.index_add_(0, best.flatten(), counts.flatten())

    return observe


METHOD = ClMoe
