"""A router a task over the experts of its time, on every linear, and who is used how much."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from undrift.methods.parts.locator import Locator
from undrift.methods.parts.pool import Gate
from undrift.methods.parts.state_file import load_tensors, restore_tensors

Router = Callable[[Tensor], Tensor]


class TaskRouters(Gate):
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
        self.rows = nn.ParameterList([_frozen(torch.zeros(0, d)) for d in inputs])
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
            rows = self.rows[i][(first[:, None] + places) * known]  # (B, E, d_in)

            def gates(x: Tensor) -> Tensor:
                copies = len(x) // len(rows)
                R = rows.repeat_interleave(copies, 0)
                logits = (x.float() @ R.mT).masked_fill(
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
    def end(self) -> None:
        """Keep the task's routers, without rows of experts that were not added; begin others."""
        counts = []
        for i, router in enumerate(self.routers):
            added = router.detach()[: len(router) - int(not self.open[i])]
            counts.append(len(added))
            self.rows[i] = _frozen(torch.cat([self.rows[i].detach(), added]))
            self.routers[i] = Parameter(router.new_zeros(len(added) + 1, router.shape[1]))
        self.counts = torch.cat([self.counts, self.counts.new_tensor([counts])])
        self.draw()
        self.start()

    def running(self) -> dict[str, Tensor]:
        """Name the sums that are summed over processes."""
        return {"used": self.used, "tokens": self.tokens}

    # ------------------------------------------------------------ size

    def make_room(self, past: int) -> None:
        """Bring everything to its largest size after so many tasks.

        Args:
            past: How many; every linear has got an expert in each.
        """
        device = self.counts.device
        added = torch.arange(1, past + 1, device=device)
        self.counts = added[:, None].expand(past, len(self.inputs)).clone()
        for i, d in enumerate(self.inputs):
            self.rows[i] = _frozen(torch.zeros(past * (past + 1) // 2, d, device=device))
            self.routers[i] = Parameter(torch.zeros(past + 1, d, device=device))
        self.used = self.used.new_zeros(len(self.inputs), past + 1)
        self.locator.make_room(past)

    def load(self, path: Path) -> None:
        """Load a file of any number of tasks; parameters that fit stay the same objects.

        Args:
            path: The file.
        """
        saved = load_tensors(path)
        for name in ("counts", "used", "features"):
            own: Tensor = getattr(self, name)
            setattr(self, name, own.new_zeros(saved[name].shape) if name in saved else own)
        for name, held in (("routers", self.routers), ("rows", self.rows)):
            for i, p in enumerate(held):
                shape = saved[f"{name}.{i}"].shape if f"{name}.{i}" in saved else p.shape
                if p.shape != shape:
                    held[i] = Parameter(p.new_zeros(shape), requires_grad=p.requires_grad)
        self.locator.make_room(len(self.counts))
        restore_tensors(self.state_dict(), path)

    def size(self) -> int:
        """Count all parameters."""
        return sum(p.numel() for p in self.parameters())

    def one_router(self) -> int:
        """Count those of one task, the last: all experts but the newest, which it does not know."""
        return sum((len(router) - 1) * router.shape[1] for router in self.routers)


def _best(weights: Tensor, top_k: int) -> Tensor:
    """Leave the k largest weights of every token, and 0 in the place of the others."""
    if top_k >= weights.shape[-1]:
        return weights
    best = weights.topk(top_k, dim=-1)
    return torch.zeros_like(weights).scatter(-1, best.indices, best.values)


def _frozen(value: Tensor) -> Parameter:
    return Parameter(value, requires_grad=False)
