"""What a pool's linears answer, beside the sum over experts written out."""

from __future__ import annotations

import torch

from tests.methods import training
from tests.tuner.llava import tiny_batch
from undrift.tuner.pool_lora import pool_layers

SCALE = 2.0  # alpha over rank, as configured by default


def with_answers(batch: dict[str, torch.Tensor], tokens: int = 2) -> dict[str, torch.Tensor]:
    """Labels on the last tokens only, so that there is a prompt before them."""
    labels = torch.full_like(batch["input_ids"], -100)
    for row, mask in enumerate(batch["attention_mask"]):
        place = mask.nonzero().flatten()[-tokens:]
        labels[row, place] = batch["input_ids"][row, place]
    return {**batch, "labels": labels}


def answered(monkeypatch) -> None:
    """Let the batches that `learn` makes have prompts."""
    plain = training.batch_of
    monkeypatch.setattr(training, "batch_of", lambda task, step: with_answers(plain(task, step)))


def learned(method, model, tasks: int = 3, steps: int = 2):
    """Learn some tasks; then each expert answers something of its own."""
    for task in range(1, tasks + 1):
        training.learn(method, model, task=task, steps=steps)
    return model.eval()


def prompt(rows=slice(None), side: str = "right", seed: int = 7) -> dict[str, torch.Tensor]:
    batch = tiny_batch(side=side, seed=seed)
    batch.pop("labels")
    return {key: value[rows] for key, value in batch.items()}


def experts(layer, adapter: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
    """All A (E, r, d_in) and B (E, r, d_out) of a linear, oldest first."""
    A = torch.cat([layer.pool_lora_past_A[adapter], layer.pool_lora_A[adapter]])
    B = torch.cat([layer.pool_lora_past_B[adapter], layer.pool_lora_B[adapter]])
    return A.detach(), B.detach()


def seen_and_said(model, batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What every linear with a pool read, and what its experts added to it."""
    found, hooks = {}, []
    for name, layer in pool_layers(model).items():

        def note(module, args, y, name=name):
            found[name] = args[0].detach(), y.detach() - module.base_layer(args[0]).detach()

        hooks.append(layer.register_forward_hook(note))
    model(**batch)
    for hook in hooks:
        hook.remove()
    return found


def mixture(layer, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """s sum_i g_i B_i A_i x, expert after expert; weights (E,) or (batch, E)."""
    A, B = experts(layer)
    weights = weights.expand(len(x), len(A))
    each = [g[:, None, None] * ((x @ a.mT) @ b) for g, a, b in zip(weights.mT, A, B, strict=True)]
    return SCALE * sum(each)
