"""The history of inputs: an uncentred second moment that spans tasks, kept small [Eq. 3 to 5].

Within a task `MomentSketch` holds `Y = sum_x u x (x^T Omega)`, which is additive over batches and
ranks and costs d x l instead of d x d; u is a token's weight, 1 in the paper. Between tasks
`History` holds the leading eigenpairs. The two meet in `History.merge`, once a task, in float64.

What is kept is row-major from the moment it is made. A file gives every tensor back row-major, QR
and eigh give theirs column-major, and a product with the one rounds otherwise than with the other
on some CPUs: a resumed task would not be the uninterrupted one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

# torch.linalg and Tensor's methods on its results carry no types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

EPS32 = torch.finfo(torch.float32).eps


class MomentSketch:
    """A streaming Nystrom sketch of `sum_x u x x^T` over the tokens of one task [Eq. 3].

    The running sums are plain float32 and float64 tensors, not buffers: what one process holds is
    its own share, and the sketch of several processes is the SUM of their shares.

    Args:
        dim: d, the size of a token.
        columns: l, how many columns Omega has; at most d, and with l = d the sketch is exact
            (Omega = I, Y = C).
        seed: What Omega is drawn from; equal on all ranks, different for every (linear, task).
        device: Where the sums live.

    Attributes:
        Omega: The test matrix, (d, l), orthonormal columns.
        Y: `sum_x u x (x^T Omega)`, (d, l) float32.
        trace: `sum_x u ||x||^2`, the exact trace of what is sketched, () float64.
        tokens: n, how many tokens were counted, () float64.
        weight: `sum_x u`, which is n where tokens have no weights, () float64.
    """

    def __init__(
        self, dim: int, columns: int, seed: int = 0, device: torch.device | str | None = None
    ) -> None:
        self.dim = dim
        self.columns = min(columns, dim)
        self.seed = seed
        self.exact = self.columns == dim
        omega = torch.eye(dim) if self.exact else _orthonormal(_gaussian(dim, self.columns, seed))
        self.Omega = omega.to(device=device, dtype=torch.float32)  # (d, l)
        self.Y = torch.zeros(dim, self.columns, device=device)  # (d, l)
        self.trace = torch.zeros((), dtype=torch.float64, device=device)
        self.tokens = torch.zeros((), dtype=torch.float64, device=device)
        self.weight = torch.zeros((), dtype=torch.float64, device=device)

    def update(
        self,
        x: Tensor,
        tokens: Tensor | float | None = None,
        weights: Tensor | None = None,
        energy: Tensor | None = None,
    ) -> None:
        """Add a batch of tokens; nothing is read back from the device.

        Args:
            x: The tokens, (T, d), any float dtype. A row of zeros adds nothing, so tokens that
                shall not count (padding, tokens left out by subsampling) may be zeroed.
            tokens: How many tokens the rows stand for; T where not given.
            weights: u >= 0 of every token, (T,), in a unit that is the same for the whole task;
                1 where not given.
            energy: ||x||^2 of every token, (T,), where it is known already.
        """
        x = x.float()
        energy = x.square().sum(1) if energy is None else energy
        seen = x if self.exact else x @ self.Omega  # (T, l), the smaller one to weigh
        self.Y.addmm_(x.mT, seen if weights is None else seen * weights[:, None])
        self.trace += energy.sum() if weights is None else energy @ weights
        count = x.shape[0] if tokens is None else tokens
        self.tokens += count
        self.weight += count if weights is None else weights.sum()

    def tensors(self) -> list[Tensor]:
        """Return the running sums themselves: `all_reduce` them in place with SUM.

        After that every rank holds the whole and may call `rebase` or `History.merge`; before
        more tokens come, all ranks but one call `zero_`, so that the next sum is right again.
        """
        return [self.Y, self.trace, self.tokens, self.weight]

    def zero_(self) -> None:
        """Forget the running sums and keep Omega."""
        for total in self.tensors():
            total.zero_()

    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """Recover the eigenpairs of the SUM (divide by `weight` for those of C_hat).

        Returns:
            V (d, l), orthonormal columns, and s (l,), descending and >= 0, both float64.
        """
        if self.exact:
            return _descending((self.Y + self.Y.mT).double() / 2)
        return _nystrom(self.Y.double(), self.Omega.double())

    def rebase(self, fresh: int | None = None) -> None:
        """Turn Omega towards what was seen: `Omega <- orth(Y)`, once, early in a task.

        A re-based sketch of 128 columns is better than a plain one of 256. The tokens seen before
        are carried over as eigenpairs: `Y <- V (s * V^T Omega)`. An exact sketch stays as it is.

        Args:
            fresh: How many columns are drawn at random instead, in case the first tokens are not
                like the later ones; a quarter of the columns where not given.
        """
        if self.exact:
            return
        fresh = self.columns // 4 if fresh is None else fresh
        V, s = self.eigenpairs()
        drawn = _gaussian(self.dim, fresh, self.seed + 1).to(V)
        Omega = _orthonormal(torch.cat([V[:, : self.columns - fresh], drawn], dim=1))
        self.Omega = Omega.float()
        self.Y.copy_(V @ (s[:, None] * (V.mT @ self.Omega.double())))


@dataclass(frozen=True, eq=False)
class History:
    """C^t, all tokens of the tasks so far, as its leading eigenpairs [Eq. 3 to 5].

    Every field is a tensor of a fixed shape, so that a history can lie in a model's buffers.

    Attributes:
        V: Eigenvectors as columns, (d, max_components) float32; those from k on are zero.
        s: Eigenvalues of C^t (the mean, not the sum), descending, (max_components,) float64.
        k: How many eigenpairs are kept, () int64.
        trace: tr C^t, exact, the mean of ||x||^2, () float64.
        tokens: alpha_t, how many tokens C^t stands for, or tasks where each counts alike, ()
            float64.
        dropped: The part of `trace` that was known and cut off, summed over all truncations,
            () float64. What a sketch never saw is `trace - sum(s) - dropped`.
    """

    V: Tensor
    s: Tensor
    k: Tensor
    trace: Tensor
    tokens: Tensor
    dropped: Tensor

    @classmethod
    def empty(
        cls, dim: int, max_components: int, device: torch.device | str | None = None
    ) -> History:
        """Make C^0 = 0 with alpha_0 = 0.

        Args:
            dim: d, the size of a token.
            max_components: The most eigenpairs that are ever kept; at most d.
            device: Where it lives.

        Returns:
            A history without a token.
        """
        K = min(max_components, dim)

        def scalar(dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros((), dtype=dtype, device=device)

        return cls(
            V=torch.zeros(dim, K, device=device),
            s=torch.zeros(K, dtype=torch.float64, device=device),
            k=scalar(torch.int64),
            trace=scalar(),
            tokens=scalar(),
            dropped=scalar(),
        )

    def merge(self, sketch: MomentSketch, delta: float, n: Tensor | None = None) -> History:
        """Join the sketch of a task: C^t = (alpha_{t-1} C^{t-1} + n_t C_hat^t) / alpha_t [Eq. 3].

        C_hat^t is the weighted mean `sum_x u x x^T / sum_x u`.

        The kept eigenpairs and the sketch's are merged exactly, whatever Omega was; then the
        smallest k with `sum_{i<=k} s_i >= delta tr C^t` is kept [Eq. 4, 5], at most
        `max_components`. Nothing is changed in place.

        Args:
            sketch: What was seen in the task, summed over all ranks.
            delta: The share of the energy to keep, in (0, 1].
            n: n_t, how much the task counts for, (); as many as it has tokens where not given.

        Returns:
            C^t. With no token at all it is C^{t-1}.
        """
        if sketch.tokens == 0:
            return self
        n = sketch.tokens if n is None else n
        alpha = self.tokens + n
        V_t, s_t = sketch.eigenpairs()
        unit = n / sketch.weight.clamp_min(1e-300)  # n_t C_hat^t = unit * the sum
        past = self.V.double() * (self.tokens * self.s).sqrt()
        V, s = _eigenpairs_of_factor(torch.cat([past, V_t * (unit * s_t).sqrt()], dim=1))
        s = s / alpha
        trace = (self.tokens * self.trace + unit * sketch.trace) / alpha
        K = self.V.shape[1]
        k = _components(s, trace, delta).clamp_max(K)
        s_kept = torch.where(torch.arange(K, device=s.device) < k, s[:K], 0.0)
        return History(
            V=torch.where(s_kept > 0, V[:, :K], 0.0).float().contiguous(),
            s=s_kept,
            k=k,
            trace=trace,
            tokens=alpha,
            dropped=self.tokens * self.dropped / alpha + s.sum() - s_kept.sum(),
        )

    def scaled(self, factor: Tensor) -> History:
        """Return the history of inputs whose second moment is `factor`, (), times this one."""
        return replace(
            self, s=self.s * factor, trace=self.trace * factor, dropped=self.dropped * factor
        )

    def resized(self, max_components: int) -> History:
        """Return it with room for so many eigenpairs; the smallest go where there is too little."""
        K = min(max_components, self.V.shape[0])
        room = max(0, K - self.V.shape[1])
        kept = self.s[:K]
        return replace(
            self,
            V=functional.pad(self.V[:, :K], (0, room)).contiguous(),
            s=functional.pad(kept, (0, room)),
            k=self.k.clamp_max(K),
            dropped=self.dropped + self.s.sum() - kept.sum(),
        )

    def basis(self) -> tuple[Tensor, Tensor]:
        """Return what is kept: V_par (d, k) and its eigenvalues (k,), both float32 [Eq. 5]."""
        k = int(self.k)
        return self.V[:, :k], self.s[:k].float()


def _components(s: Tensor, trace: Tensor, delta: float) -> Tensor:
    """The smallest k with sum_{i<=k} s_i >= delta trace [Eq. 5], never more than the rank."""
    enough = (s.cumsum(0) < delta * trace * (1 - 1e-12)).sum() + 1
    rank = (s > s.numel() * EPS32 * s[0]).sum()
    return torch.minimum(enough, rank)


def _eigenpairs_of_factor(F: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenpairs of F F^T, descending, without forming it where d is the larger side."""
    if F.shape[0] <= F.shape[1]:
        return _descending(F @ F.mT)
    V, sigma, _ = torch.linalg.svd(F, full_matrices=False)
    return V, sigma.square()


def _descending(C: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenpairs of a positive semidefinite matrix, largest first."""
    s, V = torch.linalg.eigh(C)
    return V.flip(-1), s.flip(-1).clamp_min(0)


def _nystrom(Y: Tensor, Omega: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenpairs of Y (Omega^T Y)^-1 Y^T, with the shift that keeps the core definite.

    Tropp, Yurtsever, Udell, Cevher (2017), algorithm 3: C + nu I is recovered, and nu taken off.
    """
    nu = EPS32 * Y.shape[0] ** 0.5 * torch.linalg.matrix_norm(Y, 2)
    Y_nu = Y + nu * Omega
    core = Omega.mT @ Y_nu
    core = (core + core.mT) / 2
    L, failed = torch.linalg.cholesky_ex(core)
    if failed:
        kappa, Q = torch.linalg.eigh(core)
        kept = kappa > EPS32 * kappa[-1]
        factor = Y_nu @ (Q * torch.where(kept, kappa, torch.inf).rsqrt())
    else:
        factor = torch.linalg.solve_triangular(L, Y_nu.mT, upper=False).mT
    V, s = _eigenpairs_of_factor(factor)
    return V, (s - nu).clamp_min(0)


def _gaussian(dim: int, columns: int, seed: int) -> Tensor:
    """A (dim, columns) matrix of normal entries, the same on every rank and device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim, columns, generator=generator, dtype=torch.float64)


def _orthonormal(X: Tensor) -> Tensor:
    """An orthonormal basis of the columns of X, in their order, row-major."""
    return torch.linalg.qr(X).Q.contiguous()
