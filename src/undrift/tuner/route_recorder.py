"""Records which expert each token is routed to in forward passes, and compares such routes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undrift.errors import ConfigError
from undrift.tuner.adapted_linear import AdaptedLinear
from undrift.tuner.forward import ForwardContext

Routes = Mapping[str, Tensor]
"""By linear, how much of each token goes to which expert, (T, N); a row's sum is 1."""

See = Callable[[str, Any, Tensor, Tensor], None]
"""Called with a linear's name, itself, its input x (B, L, d_in), and which of the B L rows are
tokens and no padding, (B L,) bool."""


class RouteDrift(NamedTuple):
    """How far two routings of the same tokens are apart.

    Attributes:
        overlap: What two histograms of expert use have in common, `100 sum_n min(p_n, q_n)` of the
            mean routes p and q, in percent (SAME, Fig. 1a to 1c and 3). 100 is the same use.
        js: The Jensen-Shannon divergence of a token's two routes, in bits, mean over tokens.
        tv: Their total variation `1/2 sum_n |p_n - q_n|`, in [0, 1], mean over tokens.
        top1: How many tokens keep the expert that weighs most, in percent.
    """

    overlap: float
    js: float
    tv: float
    top1: float


class Use(NamedTuple):
    """How the experts of one linear are used (SAME, Fig. 9).

    Attributes:
        shares: Each expert's share of the tokens, (N,).
        entropy: Of a token's route, in percent of log N, mean over tokens; 0 where N is 1.
        spread: Entropy of the shares, likewise: 100 where all experts are used alike.
        balance: N times the share of the busiest expert; 1 is even, N is one expert for all.
    """

    shares: list[float]
    entropy: float
    spread: float
    balance: float


class Recorder:
    """Collects routes while `recorded` is open."""

    def __init__(self) -> None:
        self._found: dict[str, list[Tensor]] = {}

    def see(self, name: str, layer: AdaptedLinear, x: Tensor, tokens: Tensor) -> None:
        """Note how a linear routes its input, see `See`."""
        self._found.setdefault(name, []).append(self.routed(layer, x)[tokens].cpu())

    def routed(self, layer: AdaptedLinear, x: Tensor) -> Tensor:
        """Ask a linear how it routes its input."""
        return layer.routes(x)

    def routes(self) -> dict[str, Tensor]:
        """Return all that was seen so far, batch after batch; empty where nothing is routed."""
        return {name: torch.cat(parts) for name, parts in self._found.items()}


@contextmanager
def recorded(model: nn.Module) -> Iterator[Recorder]:
    """Write down the routes of the forward passes in this context, padding left out.

    Call the model in evaluation mode, whole prompts at a time. Nothing about the model or its
    answers changes.

    Args:
        model: A model with experts; of one without, nothing is recorded.

    Yields:
        What collects them.
    """
    recorder = Recorder()
    with inputs_seen(model, recorder.see):
        yield recorder


@contextmanager
def inputs_seen(
    model: nn.Module, see: See, linears: Mapping[str, nn.Module] | None = None
) -> Iterator[None]:
    """Show what the adapted linears read in the forward passes in this context.

    Args:
        model: A model with an adapter; where it is switched off, nothing is shown.
        see: Called without graph, before the linear is.
        linears: PEFT's layers by name; those with experts where not given.
    """

    def show(name: str, layer: Any, args: tuple[Tensor, ...]) -> None:
        if not layer.disable_adapters:
            with torch.no_grad():
                see(name, layer, args[0], _tokens(args[0], context.tokens.mask, name))

    with ForwardContext.attached(model) as context, ExitStack() as hooks:
        for name, layer in (linears or routed_layers(model)).items():
            hooks.callback(layer.register_forward_pre_hook(partial(show, name)).remove)
        yield


def routed_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Find the linears that have experts, by name."""
    return {m.name: m for m in model.modules() if isinstance(m, AdaptedLinear)}


def drift(before: Tensor, after: Tensor) -> RouteDrift:
    """Compare two routings of the same tokens by one linear; equal ones give 100, 0, 0, 100.

    Args:
        before: (T, N).
        after: (T, N'); experts that one side has not got yet count 0 there.

    Returns:
        How far they are apart.

    Raises:
        ConfigError: They are not of the same tokens.
    """
    if len(before) != len(after) or not len(before):
        raise ConfigError(
            f"routes of {len(before)} and of {len(after)} tokens cannot be compared; record both "
            "with the same examples in the same batches"
        )
    most = max(before.shape[1], after.shape[1])
    p, q = (F.pad(w.double(), (0, most - w.shape[1])) for w in (before, after))
    middle = ((p + q) / 2).clamp_min(torch.finfo(torch.float64).tiny)
    js = (torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)).sum(1) / (2 * math.log(2))
    apart = (p.mean(0) - q.mean(0)).abs().sum() / 2
    return RouteDrift(
        overlap=100 * (1 - float(apart)),
        js=float(js.mean()),
        tv=float((p - q).abs().sum(1).mean() / 2),
        top1=100 * float((p.argmax(1) == q.argmax(1)).double().mean()),
    )


def compare(before: Routes, after: Routes) -> RouteDrift:
    """Compare two routings of the same tokens by a whole model."""
    if before.keys() != after.keys() or not before:
        raise ConfigError(
            f"routes of {len(before)} and of {len(after)} linears cannot be compared; record both "
            "on adapters of one run"
        )
    return mean(drift(before[name], after[name]) for name in before)


def mean(found: Iterable[RouteDrift]) -> RouteDrift:
    """Average each number over at least one linear."""
    return RouteDrift(*map(fmean, zip(*found, strict=True)))


def use(routes: Tensor) -> Use:
    """Say how the experts of one linear are used, from its routes (T, N)."""
    w = routes.double()
    shares = w.mean(0)
    most = math.log(w.shape[1]) if w.shape[1] > 1 else 1.0
    return Use(
        shares=shares.tolist(),
        entropy=100 * float(_entropy(w).mean()) / most,
        spread=100 * float(_entropy(shares)) / most,
        balance=float(w.shape[1] * shares.max()),
    )


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def _tokens(x: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """Which rows of a linear's input are tokens and no padding, (B L,) bool."""
    rows = x.shape[:-1].numel()
    if mask is None:
        return torch.ones(rows, dtype=torch.bool, device=x.device)
    if mask.numel() != rows:
        raise ConfigError(
            f"the attention mask has shape {tuple(mask.shape)} but {name} reads {rows} tokens; "
            "call the model with whole prompts and a mask of shape (batch, length)"
        )
    return mask.flatten().bool().to(x.device)
