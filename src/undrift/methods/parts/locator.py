"""Which task a feature comes from: a small variational autoencoder for each, scored against itself.

    bound(z) = -|x - D(mu(x))|^2 / 2 - KL(N(mu(x), sigma(x)^2) || N(0, 1)),  x = (z - c) / s

c and s are the task's mean feature and its spread. The score is the bound less its mean over the
task's own features, in their standard deviations, so that tasks that are hard to describe do not
lose for that. All tasks are stacked: one product serves all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

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
        self.tasks = nn.ParameterDict()
        self.make_room(0)

    def __len__(self) -> int:
        return len(self.tasks["centre"])

    def make_room(self, tasks: int) -> None:
        """Make room for so many tasks, whose values are then loaded.

        Args:
            tasks: How many.
        """
        old = self.tasks["centre"] if len(self.tasks) else torch.zeros(0)
        for name, shape in self.shapes.items():
            room = torch.zeros(tasks, *shape, device=old.device)
            self.tasks[name] = Parameter(room, requires_grad=False)

    def add(self, fitted: Weights) -> None:
        """Add the autoencoder of a task.

        Args:
            fitted: From `fit`.
        """
        for name, value in fitted.items():
            grown = torch.cat([self.tasks[name].detach(), value[None].to(self.tasks[name])])
            self.tasks[name] = Parameter(grown, requires_grad=False)

    def scores(self, z: Tensor) -> Tensor:
        """Score features against every task.

        Args:
            z: (B, d).

        Returns:
            (B, T); about 0 for a feature like the task's own, below for others.
        """
        known = {name: value.detach() for name, value in self.tasks.items()}
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
