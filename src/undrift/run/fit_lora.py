"""A plain LoRA fitted to an adapter that is none: what its linears add, as one product each.

While the adapter answers questions, each of its linears is watched: x goes in, and dy is added to
what the base gives. Over all tokens t of prompts and answers the sums

    C = sum_t w_t x_t x_t^T,   D = sum_t w_t dy_t x_t^T

are all that least squares needs: the W of rank R that minimises sum_t w_t |dy_t - W x_t|^2 is

    W = U_R S_R V_R^T L^-1     with  C + lambda I = L L^T,   U S V^T = D L^-T

in closed form, without a gradient. w_t makes the tokens from which answers are chosen (the last of
the prompt, and those of the answer) weigh as much together as all of the prompt's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from undrift.data.types import Task
from undrift.errors import ConfigError
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.plain_lora import (
    Factors,
    PlainLora,
    adapted_linears,
    trained_in_full,
)
from undrift.run.answer import greedy
from undrift.run.session import Session
from undrift.tuner.adapted_linear import AdaptedLinear

MOST = 256  # questions of a task that are fitted to
_RIDGE = 1e-4  # lambda, as a share of the mean of C's diagonal
_ROOM = 4 * 2**30  # bytes of C and D at a time; more linears than fit take another pass


class _Sums:
    """C and D of one linear.

    Args:
        inputs: d_in.
        outputs: d_out.
        device: Where they are.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.C = torch.zeros(inputs, inputs, device=device)
        self.D = torch.zeros(outputs, inputs, device=device)

    def add(self, x: Tensor, dy: Tensor, weight: Tensor) -> None:
        """Add tokens x (T, d_in) and dy (T, d_out) with their weights (T, 1)."""
        self.C += x.mT @ (weight * x)
        self.D += dy.mT @ (weight * x)

    def solved(self, rank: int) -> Factors:
        """Solve for the W of a rank."""
        C, D = self.C.double(), self.D.double()
        lift = _RIDGE * C.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        L = torch.linalg.cholesky(C + lift * torch.eye(len(C), dtype=C.dtype, device=C.device))
        M = torch.linalg.solve_triangular(L, D.mT, upper=False).mT
        U, S, Vt = torch.linalg.svd(M, full_matrices=False)
        A = torch.linalg.solve_triangular(L.mT, Vt[:rank].mT, upper=True).mT
        return Factors(A.float(), (U[:, :rank] * S[:rank]).float(), 1.0)


def fit_lora(session: Session, tasks: Sequence[Task], rank: int | None = None) -> PlainLora:
    """Fit a plain LoRA to an adapter whose experts are chosen or weighed.

    Args:
        session: The adapter, in evaluation mode.
        tasks: Whose test questions are read and answered for it; their answers are not looked at.
        rank: Of the LoRA; that of all experts of a linear together where not given.

    Returns:
        The LoRA.

    Raises:
        ConfigError: If there are no questions, or no linears with experts.
    """
    wrapped = peft_model(session.model)
    adapter = active_adapter(wrapped)
    layers = adapted_linears(wrapped, adapter)
    if not tasks:
        raise ConfigError(
            "--distil fits to questions that are not asked afterwards, and there are none left; "
            "give more with --questions FILE"
        )
    if not layers or not all(isinstance(each, AdaptedLinear) for each in layers.values()):
        raise ConfigError("only linears with experts can be fitted to; train method steadylora")
    found: dict[str, Factors] = {}
    groups = list(_groups(layers))
    session.progress.plan(len(groups) * sum(len(task.test) for task in tasks))
    for group in groups:
        sums = {n: _Sums(e.in_features, e.out_features, _device(e)) for n, e in group.items()}
        _watch(session, tasks, group, sums)
        for name, each in sums.items():
            found[name] = each.solved(min(rank or _experts(group[name], adapter), *each.D.shape))
    return PlainLora(found, *trained_in_full(wrapped, adapter), transposed=_transposed(layers))


def _watch(
    session: Session,
    tasks: Sequence[Task],
    layers: Mapping[str, Any],
    sums: Mapping[str, _Sums],
) -> None:
    """Let the adapter answer, one question at a time, and add up what its linears read and give."""
    for task in tasks:
        session.progress.stage(f"fitting to {task.name}", len(task.test), len(task.test))
        with session.method.predicting(session.model):
            for prompt in session.collator.encode(task.test, answered=False):
                batch = session.collator.collate([prompt])
                with _seen(layers, sums):
                    greedy(session.backbone, session.model, batch, task.max_new_tokens)
                session.progress.advance()


@contextmanager
def _seen(layers: Mapping[str, Any], sums: Mapping[str, _Sums]) -> Iterator[None]:
    """Within this context what the linears read and add is added up."""
    plain: dict[str, Tensor] = {}

    def before(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            plain[name] = y

        return keep

    def after(name: str) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            x = args[0].flatten(0, -2).float()
            dy = y.flatten(0, -2).float() - plain.pop(name).flatten(0, -2).float()
            weight = torch.full((len(x), 1), 1 / len(x), device=x.device)
            weight[-1] = 1.0  # from which the next token of the answer is chosen
            sums[name].add(x, dy, weight)

        return add

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.base_layer.register_forward_hook(before(name)).remove)
            hooks.callback(layer.register_forward_hook(after(name)).remove)
        yield


def _groups(layers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Part linears into groups whose sums fit into memory together."""
    group: dict[str, Any] = {}
    size = 0
    for name, layer in layers.items():
        own = 4 * layer.in_features * (layer.in_features + layer.out_features)
        if group and size + own > _ROOM:
            yield group
            group, size = {}, 0
        group[name] = layer
        size += own
    yield group


def _experts(layer: Any, adapter: str) -> int:
    """The rank of all experts of a linear together."""
    A: Tensor = getattr(layer, layer.adapter_layer_names[0])[adapter]
    experts = layer.experts(adapter) if hasattr(layer, "experts") else len(A)
    return experts * A.shape[1]


def _transposed(layers: Mapping[str, Any]) -> bool:
    return any(hasattr(each.get_base_layer(), "nf") for each in layers.values())  # Conv1D


def _device(layer: Any) -> torch.device:
    return next(layer.parameters()).device
