"""LLaVA-CMoE: experts where a probe finds them needed, a router and a locator for each task."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from undrift.core.step_hook import innermost
from undrift.methods import base
from undrift.methods.shared import pool
from undrift.methods.shared.adapter import peft_model
from undrift.methods.shared.added_loss import AddedLoss
from undrift.methods.shared.prompt_features import hidden_features
from undrift.methods.shared.state import State
from undrift.methods.shared.task_matcher import Identified, told
from undrift.tuner import Gates, Prompt
from undrift.tuner.distributed import gathered
from undrift.tuner.frozen import Frozen, count_parameters
from undrift.tuner.pool_lora import PoolLoraLayer, grow

_FROM_1 = ("1 or more", lambda v: v >= 1)


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config):
    """The options of a pool, and those of probe, routers and locator.

    Attributes:
        top_k: How many experts a token is routed to.
        probe_share: The share of a task's steps, from the second task on, that are the probe.
        slack: a: a linear gets an expert if its probe is used more than mean - a * deviation.
        balance: The weight of the load-balancing loss during the probe.
        perturb: How far the copy of an old expert begins from it, relative to its size.
        hidden: Width of a locator's layers, at most the model's.
        code: Length of its code, at most a quarter of the model's width.
        epochs: Passes over the features that a locator is trained on.
        features: How many prompts of a task these are at most.
        oracle: Be told the task instead.
    """

    top_k: int = base.option(2, _FROM_1)
    probe_share: float = base.option(0.1, ("0 up to below 1", lambda v: 0 <= v < 1))
    slack: float = 0.0
    balance: float = 0.01
    perturb: float = 0.01
    hidden: int = base.option(512, _FROM_1)
    code: int = base.option(64, _FROM_1)
    epochs: int = base.option(20, _FROM_1)
    features: int = base.option(512, _FROM_1)
    oracle: bool = False


class LlavaCMoE(pool.PoolMethod["TaskRouters"]):
    """Experts added where a probe shows that they are needed, routed by the router of the task.

    y = W0 x + s sum_{i in top-k} softmax(R_t x)_i B_i A_i x, with R_t the router of the task that
    the locator names, over the experts there were in its time. There is no public code, and the
    reviews leave numbers open; [OURS] are all defaults, and:

    - the probe is the first part of the task's own training. Its experts and routers are then
      thrown away, their optimiser state too; the schedule goes on. A task of one step has no probe;
    - a new expert begins near the one that its linear used most during the probe. The first task
      has no probe, one expert on every linear and LoRA's own start;
    - usage and balance are taken over the prompt's tokens, without answers and padding, and a token
      counts for its first choice: of two experts, k = 2 would take both;
    - locators see the last hidden state of the first `features` prompts of a task, which costs one
      more prefill each; at test every prompt has one. They are fitted when the task ends.

    A router a task over all experts of its time makes routers, unlike experts, grow with the square
    of the tasks. The balancing loss needs a trainer that takes `loss`.
    """

    name: ClassVar[str] = "llava_cmoe"
    why_not_sharded: ClassVar[str] = "its routers grow inside a training, which FSDP2 cannot see"
    paper: ClassVar[str] = "LLaVA-CMoE, Zhao et al., 2025, arXiv:2503.21227 (later CoPE)"
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self.identified = Identified()
        self._probe_until = 0
        self._shown = False  # a prompt, in the pass that is made
        self._added = AddedLoss(self, self._unequal)

    # ------------------------------------------------------------ the model

    def make_gate(self, width: int) -> TaskRouters:
        """Make the routers and the locator."""
        inputs = [layer.in_features for layer in self._layers.values()]
        config = self.config
        return TaskRouters(inputs, width, min(config.hidden, width), min(config.code, width // 4))

    def bind(self, model: nn.Module) -> None:
        """Decide a model's gates, and add the probe's balance to its loss."""
        super().bind(model)
        self._added.watch(model)

    def gates(self, prompt: Prompt) -> Mapping[str, Gates]:
        """Route by the task at hand, or by the one that the locator names."""
        routers, names = self.gate, self._layers
        if routers.training:
            self._remember(prompt)
            self._shown = True
            made = routers.current(self.config.top_k, prompt.mask)
        elif not len(routers.locator):
            made = [torch.zeros(layer.experts(self._adapter)) for layer in names.values()]
        else:
            made = routers.past(self.config.top_k, self._locate(prompt))
        return dict(zip(names, made, strict=True))

    def _locate(self, prompt: Prompt) -> Tensor:
        scores = self.gate.locator.scores(hidden_features(self._model, prompt))
        best = self.identified.note(scores, self.asked)
        return told(best, self.asked, scores.shape[1]) if self.config.oracle else best

    @torch.no_grad()
    def _remember(self, prompt: Prompt) -> None:
        kept = self.gate.features
        if len(kept) < self.config.features:
            found = gathered(hidden_features(self._model, prompt).to(kept))
            self.gate.features = torch.cat([kept, found])[: self.config.features]

    def facts(self) -> dict[str, Any]:
        """Tell how often the locator was right since the last call, see `Identified.facts`."""
        return self.identified.facts()

    # ------------------------------------------------------------ the probe

    @property
    def probing(self) -> bool:
        """Whether what is trained now is the probe."""
        return self._step < self._probe_until

    def _unequal(self) -> Tensor | None:
        """Return the loss of an unequal load in the pass just made, during the probe."""
        shown, self._shown = self._shown, False
        return self.config.balance * self.gate.imbalance() if shown and self.probing else None

    @torch.no_grad()
    def _end_probe(self) -> None:
        """Decide which linears get an expert, and begin anew in all of them."""
        routers = self.gate
        with self.summed(self._model):
            used, tokens = routers.used.clone(), routers.tokens.clamp_min(1)
        layers = list(self._layers.values())
        counts = [layer.experts(self._adapter) for layer in layers]
        share = torch.stack([used[i, n - 1] for i, n in enumerate(counts)]) / tokens
        routers.open.copy_(needed(share, self.config.slack))
        for i, layer in enumerate(layers):
            layer.begin_anew(self._adapter)
            if routers.open[i]:
                old = int(used[i, : counts[i] - 1].argmax())
                aside = routers.generator(layer.name)
                copy_expert(layer, self._adapter, old, self.config.perturb, aside)
        routers.draw()
        experts = (m for each in layers for m in (each.pool_lora_A, each.pool_lora_B))
        replaced = (p for master in experts for p in master.values())
        forget_momentum(self._optimizer, [*replaced, *routers.routers])

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task: room for its expert was made when the last one ended."""
        self.task_resume(model, task_index, steps_total)
        self.gate.start()

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on; the probe ends where it would have."""
        super().task_resume(model, task_index, steps_total)
        probe = min(math.ceil(self.config.probe_share * steps_total), steps_total - 1)
        self._probe_until = probe if len(self.gate.locator) else 0

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """End the probe when it is time."""
        if step == self._probe_until:
            self._end_probe()

    def task_end(self, model: nn.Module) -> None:
        """Keep the task's experts, router and locator, and make room for the next ones."""
        routers = self.gate
        seed = torch.initial_seed() % 2**63
        fitted = routers.locator.fit(routers.features, self.config.epochs, seed)
        routers.locator.add(fitted)
        kept = [name for i, name in enumerate(self._layers) if routers.open[i]]
        super().task_end(model)
        grow(peft_model(model), self._adapter, only=kept)

    # ------------------------------------------------------------ state and its size

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back routers and locator of however many tasks."""
        self.gate.take_shapes(saved.tensors or {})
        self.state(model).fill(saved)

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring a fresh pool to its largest size after so many tasks."""
        super().make_room(model, tasks + 1)  # room for the next expert is made at a task's end

    def idle_parameters(self, model: nn.Module) -> int:
        """Count all but the k experts and the one router that a token meets."""
        idle = count_parameters(self.gate) - self.gate.one_router()
        for layer in self._layers.values():
            A, B = layer.pool_lora_A[self._adapter], layer.pool_lora_B[self._adapter]
            experts = layer.experts(self._adapter)
            met = min(self.config.top_k, max(1, experts - 1))
            idle += (experts - met) * (A.numel() + B.numel())
        return idle


# --------------------------------------------- the locator: which task a feature comes from
#
# A small variational autoencoder for each task, scored against itself:
#
#     bound(z) = -|x - D(mu(x))|^2 / 2 - KL(N(mu(x), sigma(x)^2) || N(0, 1)),  x = (z - c) / s
#
# c and s are the task's mean feature and its spread. The score is the bound less its mean over the
# task's own features, in their standard deviations, so that tasks that are hard to describe do not
# lose for that. All tasks are stacked: one product serves all of them.

Weights = Mapping[str, Tensor]


class Locator(nn.Module):
    """The autoencoders of the finished tasks; they never require gradients.

    Args:
        width: d, of the features.
        hidden: Of the layer on either side of the code.
        code: How long it is.

    Attributes:
        tasks: By part, those of all tasks, stacked, (T, ...).
    """

    def __init__(self, width: int, hidden: int, code: int) -> None:
        super().__init__()
        self.shapes = {
            "encode": (hidden, width),
            "encode_bias": (hidden,),
            "describe": (2 * code, hidden),
            "describe_bias": (2 * code,),
            "decode": (hidden, code),
            "decode_bias": (hidden,),
            "restore": (width, hidden),
            "restore_bias": (width,),
            "centre": (width,),
            "spread": (),
            "mean": (),
            "deviation": (),
        }
        self.tasks = Frozen()
        self.make_room(0)

    def __len__(self) -> int:
        return len(self.tasks["centre"])

    def make_room(self, tasks: int) -> None:
        """Make room for so many tasks, whose values are then loaded."""
        old = self.tasks["centre"] if len(self.tasks) else torch.zeros(0)
        for name, shape in self.shapes.items():
            room = torch.zeros(tasks, *shape, device=old.device)
            self.tasks[name] = room

    def add(self, fitted: Weights) -> None:
        """Add the autoencoder of a task.

        Args:
            fitted: From `fit`.
        """
        for name, value in fitted.items():
            self.tasks[name] = torch.cat([self.tasks[name], value[None].to(self.tasks[name])])

    def scores(self, z: Tensor) -> Tensor:
        """Score features against every task.

        Args:
            z: (B, d).

        Returns:
            (B, T); about 0 for a feature like the task's own, below for others.
        """
        known = dict(self.tasks.items())
        with torch.autocast(z.device.type, enabled=False):
            found = (bound(known, z.float()) - known["mean"][:, None]) / known["deviation"][:, None]
        return found.mT

    def fit(self, z: Tensor, epochs: int, seed: int, batch: int = 64) -> dict[str, Tensor]:
        """Train an autoencoder on the features of a task.

        Args:
            z: (n, d), at least one.
            epochs: Passes over them.
            seed: Of the first weights, the order and the noise.
            batch: Features a step.

        Returns:
            By part, without the axis of tasks.
        """
        generator = torch.Generator().manual_seed(seed)
        x = z.detach().float().cpu()
        made = {name: torch.zeros(1, *shape) for name, shape in self.shapes.items()}
        for value in made.values():
            if value.dim() == 3:
                limit = value.shape[2] ** -0.5
                value.uniform_(-limit, limit, generator=generator)
        made["centre"][0] = x.mean(0)
        made["spread"][0] = (x - made["centre"]).square().mean().sqrt().clamp_min(1e-6)
        trained = [v.requires_grad_() for n, v in made.items() if v.dim() == 3 or "bias" in n]
        optimizer = torch.optim.Adam(trained, lr=1e-3)
        with torch.enable_grad():
            for _ in range(epochs):
                for rows in torch.randperm(len(x), generator=generator).split(batch):
                    loss = -bound(made, x[rows], generator).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        with torch.no_grad():
            own = bound(made, x)[0]
            made["mean"][0] = own.mean()
            made["deviation"][0] = own.std(correction=0).clamp_min(1e-6)
        return {name: value.detach()[0].to(z.device) for name, value in made.items()}


def bound(known: Weights, z: Tensor, noise: torch.Generator | None = None) -> Tensor:
    """Compute the lower bound of the log-likelihood of features, up to a constant.

    Args:
        known: By part, of T tasks.
        z: (B, d).
        noise: What codes are drawn with; the mean code is taken where not given.

    Returns:
        (T, B).
    """
    x = (z - known["centre"][:, None]) / known["spread"][:, None, None]  # (T, B, d)
    inner = F.silu(_affine(x, known["encode"], known["encode_bias"]))
    mu, log_variance = _affine(inner, known["describe"], known["describe_bias"]).chunk(2, -1)
    code = mu
    if noise is not None:
        code = mu + (log_variance / 2).exp() * torch.randn(mu.shape, generator=noise)
    inner = F.silu(_affine(code, known["decode"], known["decode_bias"]))
    apart = _affine(inner, known["restore"], known["restore_bias"]) - x
    divergence = (mu.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2
    return -apart.square().sum(-1) / 2 - divergence


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.mT + bias[:, None]


# --------------------------------------------- a router for each task

Router = Callable[[Tensor], Tensor]


class TaskRouters(pool.Gate):
    """The routers of M linears, those of finished tasks frozen, and the locator of tasks.

    Args:
        inputs: d_in of each linear.
        width: d, of the locator's features.
        hidden: Of the locator's layers.
        code: The length of its code.

    Attributes:
        routers: Of the task at hand, by linear, over past experts and the newest, (E, d_in).
        rows: Of finished tasks, by linear, one below the other.
        counts: How many rows each task has on each linear, (T, M).
        locator: Says which task a prompt is of.
        used: For how many prompt tokens each expert was the first choice, (M, E).
        tokens: How many tokens there were.
        open: On which linears the newest expert takes part, (M,) bool.
        features: What the locator will learn of the task at hand, (n, d).
    """

    counts: Tensor
    open: Tensor
    features: Tensor

    def __init__(self, inputs: list[int], width: int, hidden: int, code: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.routers = nn.ParameterList([Parameter(torch.zeros(1, d)) for d in inputs])
        self.rows = Frozen({str(i): torch.zeros(0, d) for i, d in enumerate(inputs)})
        self.locator = Locator(width, hidden, code)
        self.register_buffer("counts", torch.zeros(0, len(inputs), dtype=torch.int64))
        self.used = torch.zeros(len(inputs), 1, dtype=torch.float64)
        self.tokens = torch.zeros((), dtype=torch.float64)
        self.register_buffer("open", torch.ones(len(inputs), dtype=torch.bool))
        self.register_buffer("features", torch.zeros(0, width))
        self._imbalance: dict[int, Tensor] = {}
        self.draw()

    # ------------------------------------------------------------ gates

    def current(self, top_k: int, mask: Tensor) -> list[Router]:
        """Route by the task at hand.

        Args:
            top_k: How many experts a token is routed to.
            mask: The tokens that are counted, (B, L) bool.

        Returns:
            By linear, inputs (B, L, d_in) to gates (B, L, E).
        """
        self._imbalance = {}
        self.tokens += mask.sum()

        def router(i: int) -> Router:
            def gates(x: Tensor) -> Tensor:
                with torch.autocast(x.device.type, enabled=False):
                    logits = F.linear(x.float(), self.routers[i])
                closed = torch.where(self.open[i], 0.0, -torch.inf)
                last = F.pad(closed[None], (logits.shape[-1] - 1, 0))
                weights = (logits + last).softmax(-1)
                self._count(i, weights, mask)
                return _best(weights, top_k)

            return gates

        return [router(i) for i in range(len(self.inputs))]

    def past(self, top_k: int, tasks: Tensor) -> list[Router]:
        """Route by finished tasks.

        Args:
            top_k: How many experts a token is routed to.
            tasks: The index of each sample's task, (B,).

        Returns:
            By linear, inputs (B, L, d_in), or of copies of the samples, to gates (..., E).
        """

        def router(i: int) -> Router:
            counts = self.counts[:, i]
            places = torch.arange(int(counts[-1]) + 1, device=counts.device)  # the newest: unused
            known = places < counts[tasks][:, None]  # (B, E)
            first = counts.cumsum(0)[tasks] - counts[tasks]
            rows = self.rows[str(i)][(first[:, None] + places) * known]  # (B, E, d_in)

            def gates(x: Tensor) -> Tensor:
                copies = len(x) // len(rows)
                R = rows.repeat_interleave(copies, 0)
                with torch.autocast(x.device.type, enabled=False):
                    logits = x.float() @ R.mT
                logits = logits.masked_fill(
                    ~known.repeat_interleave(copies, 0)[:, None], -torch.inf
                )
                return _best(logits.softmax(-1), top_k)

            return gates

        return [router(i) for i in range(len(self.inputs))]

    def _count(self, i: int, weights: Tensor, mask: Tensor) -> None:
        """Add up who is used, and how unequal the load is: E sum_e f_e P_e, 1 where it is equal."""
        tokens = mask.sum()
        first = F.one_hot(weights.detach().argmax(-1), weights.shape[-1])
        hits = (first * mask[..., None]).sum((0, 1))
        if i not in self._imbalance:  # not when activations are recomputed
            self.used[i, : len(hits)] += hits
        likely = (weights * mask[..., None]).sum((0, 1)) / tokens
        self._imbalance[i] = len(hits) * (hits / tokens * likely).sum()

    def imbalance(self) -> Tensor:
        """Return the load-balancing loss of the last forward pass, over linears, ()."""
        return torch.stack(list(self._imbalance.values())).mean()

    # ------------------------------------------------------------ tasks

    @torch.no_grad()
    def draw(self) -> None:
        """Give the routers of the task at hand their first values, small ones."""
        for i, router in enumerate(self.routers):
            drawn = torch.empty(router.shape).normal_(generator=self.generator(f"router {i}"))
            router.copy_(drawn * (0.1 / router.shape[1] ** 0.5))

    def generator(self, name: str) -> torch.Generator:
        """Make random numbers from torch's seed, a name and the number of finished tasks alone."""
        text = f"{torch.initial_seed()} {name} {len(self.counts)}"
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def start(self) -> None:
        """Begin a task: everything open, nothing counted."""
        most = max(len(router) for router in self.routers)
        self.used = self.used.new_zeros(len(self.inputs), most)
        self.tokens.zero_()
        self.open.fill_(True)
        self.features = self.features[:0]

    @torch.no_grad()
    def end_task(self) -> None:
        """Keep the task's routers, without rows of experts that were not added; begin others."""
        counts = []
        for i, router in enumerate(self.routers):
            added = router.detach()[: len(router) - int(not self.open[i])]
            counts.append(len(added))
            self.rows[str(i)] = torch.cat([self.rows[str(i)], added])
            self.routers[i] = Parameter(router.new_zeros(len(added) + 1, router.shape[1]))
        self.counts = torch.cat([self.counts, self.counts.new_tensor([counts])])
        self.draw()
        self.start()

    def running(self) -> dict[str, Tensor]:
        """Name the sums that are summed over processes."""
        return {"used": self.used, "tokens": self.tokens}

    # ------------------------------------------------------------ size

    def make_room(self, past: int) -> None:
        """Bring everything to its largest size after so many tasks."""
        device = self.counts.device
        added = torch.arange(1, past + 1, device=device)
        self.counts = added[:, None].expand(past, len(self.inputs)).clone()
        for i, d in enumerate(self.inputs):
            self.rows[str(i)] = torch.zeros(past * (past + 1) // 2, d, device=device)
            self.routers[i] = Parameter(torch.zeros(past + 1, d, device=device))
        self.used = self.used.new_zeros(len(self.inputs), past + 1)
        self.locator.make_room(past)

    def take_shapes(self, saved: Mapping[str, Tensor]) -> None:
        """Bring everything to the shapes of saved tensors; parameters that fit stay the same."""
        for name in ("counts", "used", "features"):
            own: Tensor = getattr(self, name)
            setattr(self, name, own.new_zeros(saved[name].shape) if name in saved else own)
        for i, p in enumerate(self.routers):
            shape = saved[f"routers.{i}"].shape if f"routers.{i}" in saved else p.shape
            if p.shape != shape:
                self.routers[i] = Parameter(p.new_zeros(shape))
        for key, rows in self.rows.items():
            shape = saved[f"rows.{key}"].shape if f"rows.{key}" in saved else rows.shape
            self.rows[key] = rows.new_zeros(shape)
        self.locator.make_room(len(self.counts))

    def one_router(self) -> int:
        """Count those of one task, the last: all experts but the newest, which it does not know."""
        return sum((len(router) - 1) * router.shape[1] for router in self.routers)


def _best(weights: Tensor, top_k: int) -> Tensor:
    """Leave the k largest weights of every token, and 0 in the place of the others."""
    if top_k >= weights.shape[-1]:
        return weights
    best = weights.topk(top_k, dim=-1)
    return torch.zeros_like(weights).scatter(-1, best.indices, best.values)


def needed(share: Tensor, slack: float) -> Tensor:
    """Say which linears need an expert.

    Args:
        share: f, of each linear's tokens that went to its probe, (M,).
        slack: a.

    Returns:
        Where f > mean(f) - a * std(f), (M,) bool; everywhere if that is nowhere, since probes that
        are all used alike tell no linear from another.
    """
    needs = share > share.mean() - slack * share.std(correction=0)
    return needs if bool(needs.any()) else torch.ones_like(needs)


@torch.no_grad()
def copy_expert(
    layer: PoolLoraLayer, adapter: str, old: int, perturb: float, generator: torch.Generator
) -> None:
    """Let the newest expert of a linear begin beside an old one.

    Args:
        layer: The linear.
        adapter: The adapter's name.
        old: The index of the past expert.
        perturb: How far from it, relative to its size.
        generator: Says in which direction.
    """
    for new, held in layer.pairs(adapter):
        past = held[adapter][old]
        aside = torch.randn(past.shape, generator=generator).to(past)
        new.copy_(past + perturb * past.square().mean().sqrt() * aside)
    layer.forget_packed()


def forget_momentum(optimizer: Any, parameters: Iterable[Parameter]) -> None:
    """Drop what an optimiser remembers of parameters whose values were replaced.

    Args:
        optimizer: A torch optimiser, or one that wraps it in `.optimizer`.
        parameters: Which ones; each begins anew with its next step.
    """
    state = innermost(optimizer).state
    for p in parameters:
        state.pop(p, None)


METHOD = LlavaCMoE
