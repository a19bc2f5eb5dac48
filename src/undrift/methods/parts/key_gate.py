"""A gate for a pool of experts: a key an expert, and a small network that asks the keys."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undrift.methods.parts.pool import Gate
from undrift.tuner.pool import generator_of
from undrift.tuner.ranks import rank, summed


class Query(nn.Module):
    """f: from the largest embeddings of a prompt to what the keys are asked.

    Args:
        width: d.
        hidden: The width in the middle.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute q, (B, d)."""
        return self.norm(self.up(F.silu(self.down(x))))


class KeyGate(Gate):
    """g = softmax(k_1 q / sqrt(d), .., k_t q / sqrt(d)),  q = f(max over the prompt).

    Args:
        width: d.
        hidden: The width of f in the middle.

    Attributes:
        key: k_t, (d,).
        past_keys: k_1 to k_{t-1}, never trained again, (t-1, d).
        query: f_t.
        past_query: f_{t-1}, as the last task left it. Earlier ones are asked no more, and not kept.
        means: g*_i in row i; zero for a task that is not finished, (t, t).
        sums: Of the gates in the task at hand, and in the last place how many, (t + 1,) float64.
    """

    means: Tensor

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(width))
        self.query = Query(width, hidden)
        self.past_query = copy.deepcopy(self.query).requires_grad_(False)
        self.make_room(0)
        self._draw_key()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the gates.

        Args:
            x: The largest value in every dimension of the prompt's embeddings, (B, d).

        Returns:
            g, (B, t).
        """
        keys = torch.cat([self.past_keys, self.key[None]])
        return _asked(self.query, keys, x).softmax(-1)

    def recall(self, x: Tensor) -> Tensor | None:
        """Compare what f_{t-1} and f_t say of the old experts [KL(old || new)].

        Args:
            x: As for `forward`.

        Returns:
            The mean over the batch, (); None where there are not two old experts to choose among.
        """
        if len(self.past_keys) < 2:
            return None
        with torch.no_grad():
            old = _asked(self.past_query, self.past_keys, x).log_softmax(-1)
        new = _asked(self.query, self.past_keys, x).log_softmax(-1)
        return F.kl_div(new, old, log_target=True, reduction="batchmean")

    # ------------------------------------------------------------ the mean gate of a task

    def begin_sum(self, *, resumed: bool) -> None:
        """Begin to sum the task's gates, or go on with the sums that a checkpoint brought."""
        if not resumed or rank() > 0:  # a checkpoint holds those of all processes
            self.sums.zero_()

    def add(self, gates: Tensor) -> None:
        """Add the gates of a batch, (B, t)."""
        self.sums[:-1] += gates.detach().sum(0)
        self.sums[-1] += len(gates)

    def running(self) -> dict[str, Tensor]:
        """Name the sums that are summed over processes."""
        return {"sums": self.sums}

    def note(self) -> None:
        """Bring the sums of all processes to the first, which writes a checkpoint."""
        with summed([self]):
            pass

    def end_sum(self) -> None:
        """Keep the mean gate of the task."""
        with summed([self]):
            self.means[-1] = self.sums[:-1] / self.sums[-1].clamp_min(1)
        self.sums.zero_()

    def mean_of(self, task: int) -> Tensor | None:
        """Return g* of a task.

        Args:
            task: Its number, from 1.

        Returns:
            (t,); None for a task that is not learned.
        """
        if task > len(self.means) or not bool(self.means[task - 1].any()):
            return None
        return self.means[task - 1]

    # ------------------------------------------------------------ from task to task

    @torch.no_grad()
    def grow(self, past: int) -> None:
        """Let the key become a past one, keep a copy of f, and draw the next key.

        Args:
            past: How many tasks are past.
        """
        keys, means = torch.cat([self.past_keys, self.key[None]]), self.means
        self.make_room(past)
        self.past_keys.copy_(keys)
        self.means[: len(means), : len(means)] = means
        self.past_query.load_state_dict(self.query.state_dict())
        self._draw_key()

    def make_room(self, past: int) -> None:
        """Bring keys and mean gates to their size after so many tasks.

        Args:
            past: How many.
        """
        room = self.key.detach().new_zeros
        self.past_keys = nn.Parameter(room(past, len(self.key)), requires_grad=False)
        self.register_buffer("means", room(past + 1, past + 1))
        self.sums = room(past + 2, dtype=torch.float64)

    @torch.no_grad()
    def _draw_key(self) -> None:
        drawn, bound = torch.empty(len(self.key), device="cpu"), len(self.key) ** -0.5
        self.key.copy_(drawn.uniform_(-bound, bound, generator=generator_of(len(self.past_keys))))


def _asked(query: nn.Module, keys: Tensor, x: Tensor) -> Tensor:
    """Ask keys (n, d) about x (B, d): k q / sqrt(d), (B, n)."""
    with torch.autocast(x.device.type, enabled=False):
        return query(x) @ keys.mT / keys.shape[1] ** 0.5
