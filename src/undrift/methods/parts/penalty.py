"""A quadratic pull towards where parameters have been: lambda/2 sum_j W_j (theta_j - c_j)^2.

A sum of such pulls, one for each past task, is again one of the same form, up to a constant:

    sum_k F_k (theta - theta_k)^2 = W (theta - c)^2 + ...
    W = sum_k F_k                  W c = sum_k F_k theta_k

so that one weight and one centre a parameter are the whole state, however many tasks there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from undrift.core.stepping import StepTransform


class QuadraticPenalty:
    """The pull on a set of parameters; none at first.

    Args:
        parameters: By name.

    Attributes:
        weight: W of each, >= 0.
        centre: c of each.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)
        self.weight = {name: torch.zeros_like(p.detach()) for name, p in parameters.items()}
        self.centre = {name: torch.zeros_like(p.detach()) for name, p in parameters.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state: what is saved."""
        weights = {f"{name}.weight": each for name, each in self.weight.items()}
        return weights | {f"{name}.centre": each for name, each in self.centre.items()}

    def add(
        self, omega: Mapping[str, Tensor], anchor: Literal["last", "each"], keep: float
    ) -> None:
        """Add a pull towards where the parameters are now.

        Args:
            omega: Its weight, by the parameter's name, >= 0.
            anchor: "last" moves the whole pull to where the parameters are now (the online form);
                "each" leaves what was there, so that the centre becomes the weighted mean.
            keep: What the pull so far is multiplied by first.
        """
        for name, p in self.parameters.items():
            weight, centre = self.weight[name].mul_(keep).add_(omega[name]), self.centre[name]
            if anchor == "last":
                centre.copy_(p.detach())
            else:
                share = torch.where(weight > 0, omega[name] / weight, 0)
                centre.lerp_(p.detach(), share)

    def transforms(self, strength: float) -> dict[Parameter, StepTransform]:
        """Say what becomes of the gradients: lambda W (theta - c) is added, once a step.

        Args:
            strength: lambda.

        Returns:
            By parameter.
        """
        return {
            p: partial(_pulled, p=p, weight=self.weight[n], centre=self.centre[n], lam=strength)
            for n, p in self.parameters.items()
        }


def _pulled(gradient: Tensor, p: Tensor, weight: Tensor, centre: Tensor, lam: float) -> Tensor:
    return torch.addcmul(gradient, weight, p.detach() - centre, value=lam)
