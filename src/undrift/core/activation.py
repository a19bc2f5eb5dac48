"""Which experts work on a task and which rest [Eq. 16 to 18, Appendix C]."""

from __future__ import annotations

import torch
from torch import Tensor


class Usage:
    """Running sums of how much each expert is used, over the tokens of one task [Eq. 16, 17].

    Sums over tokens, never means of batch means: a split over batches or ranks does not change
    them. Plain tensors, as in `MomentSketch`.

    Args:
        experts: N, how many experts the linear has.
        power: 1 weighs a token's energy by w (the paper), 2 by w^2 (the gates taken into the
            Jacobian of Appendix C).
        device: Where the sums live.

    Attributes:
        w: `sum_x w_i(x)`, (N,) float64.
        energy: `sum_x w_i(x)^power ||x||^2`, (N,) float64.
        tokens: n, () float64.
    """

    def __init__(
        self, experts: int, power: int = 1, device: torch.device | str | None = None
    ) -> None:
        self.power = power
        self.w = torch.zeros(experts, dtype=torch.float64, device=device)
        self.energy = torch.zeros(experts, dtype=torch.float64, device=device)
        self.tokens = torch.zeros((), dtype=torch.float64, device=device)

    def update(
        self,
        w: Tensor,
        x_energy: Tensor,
        tokens: Tensor | float | None = None,
        active: Tensor | None = None,
        times: float = 1.0,
    ) -> None:
        """Add a batch of tokens; nothing is read back from the device.

        Args:
            w: The route of every token, (T, N), or (T, n) with `active`. Rows of zeros add nothing.
            x_energy: ||x||^2 of every token, (T,).
            tokens: How many tokens the rows stand for; T where not given.
            active: The experts that w's columns stand for, (n,) int64; all where not given.
            times: What every row counts for, where tokens were sampled.
        """
        w, x_energy = w.float(), x_energy.float() * times
        used = w.sum(0).double() * times
        energy = (x_energy @ w.pow(self.power)).double()
        if active is None:
            self.w += used
            self.energy += energy
        else:
            self.w.index_add_(0, active, used)
            self.energy.index_add_(0, active, energy)
        self.tokens += w.shape[0] if tokens is None else tokens

    def tensors(self) -> list[Tensor]:
        """Return the running sums themselves: `all_reduce` them in place with SUM."""
        return [self.w, self.energy, self.tokens]

    def zero_(self) -> None:
        """Forget the running sums."""
        for total in self.tensors():
            total.zero_()

    def utilisation(self) -> Tensor:
        """Mean route U(i) = (1/n) sum_x w_i(x), (N,) [Eq. 16]."""
        return self.w / self.tokens.clamp_min(1)

    def importance(self, F_pre: Tensor, alpha: Tensor) -> Tensor:
        """Importance (alpha_{t-1} F^pre(i) + sum_x w_i(x) ||x||^2) / alpha_t, (N,) [Eq. 17].

        Args:
            F_pre: The importance that the tasks before gave, (N,).
            alpha: alpha_{t-1}, how many tokens F_pre stands for, ().

        Returns:
            F^t, (N,) float64.
        """
        return (alpha * F_pre + self.energy) / (alpha + self.tokens).clamp_min(1)


def minmax(v: Tensor) -> Tensor:
    """Map v (N,) to [0, 1]; to 0 where all are equal."""
    span = v.max() - v.min()
    return torch.where(span > 0, (v - v.min()) / span.clamp_min(torch.finfo(v.dtype).tiny), 0.0)


def scores(U: Tensor, F_pre: Tensor) -> Tensor:
    """Score(i) = minmax(U)(i) - minmax(F^pre)(i), in [-1, 1], over one linear's experts [Eq. 18].

    Args:
        U: How much the current task uses each expert, (N,).
        F_pre: How much the tasks before did, (N,).

    Returns:
        The scores, (N,).
    """
    return minmax(U) - minmax(F_pre)


def choose_frozen(score: Tensor, tau: float, max_frozen: int) -> Tensor:
    """Freeze the experts that score below tau, the lowest first, never more than `max_frozen`.

    Args:
        score: The activation score of each expert, (N,).
        tau: The threshold; nothing below it keeps working.
        max_frozen: The most experts that may rest, at most N - 1.

    Returns:
        Which experts are frozen, (N,) bool.
    """
    rank = score.argsort(stable=True).argsort()
    return (score < tau) & (rank < min(max_frozen, score.numel() - 1))
