"""Teach a tiny model a task the way a trainer does: the same callbacks, without its weight."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tests.tuner.llava import tiny_batch, tiny_llava
from undrift.data.types import Example

SMALL = {"experts": 4, "rank": 3}
LR = 3e-3
RATES = {"osf": 1e-2, "keeplora": 1e-2}  # few directions are free: they move slowly


def attached(method, seed=0):
    torch.manual_seed(seed)
    return method.attach(tiny_llava(seed))


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def learn(
    method, model, task=1, steps=8, weight_decay=0.1, on_step=None, optimizer=torch.optim.AdamW
):
    """One task of `steps` steps on batches that the task's number decides."""
    optimizer = optimizer(
        trainable(model).values(), lr=RATES.get(method.name, LR), weight_decay=weight_decay
    )
    args = SimpleNamespace(output_dir="nowhere", resume_from_checkpoint=None)
    state = SimpleNamespace(global_step=0, max_steps=steps, is_world_process_zero=True)
    control = SimpleNamespace(should_save=False)
    loader = [batch_of(task, step) for step in range(steps)]
    given = {"model": model, "optimizer": optimizer, "train_dataloader": loader}
    method.examples([Example(f"{task}-{i}", "what is it?", ("it",)) for i in range(8)], task)
    method.on_train_begin(args, state, control, **given)
    model.train()
    losses = []
    for batch in loader:
        loss = method.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        state.global_step += 1
        method.on_step_end(args, state, control, **given)
        if on_step is not None:
            on_step(state.global_step)
    method.on_epoch_end(args, state, control, **given)
    method.on_train_end(args, state, control, **given)
    return losses


def batch_of(task, step):
    batch = tiny_batch((9, 12, 7, 10), seed=1000 * task + step)
    batch["labels"][:, :6] = -100  # a picture and two words of text are the prompt
    if task % 2 == 0:  # another kind of input, so that tasks differ
        batch["pixel_values"] = batch["pixel_values"] * 3
    return batch


@torch.no_grad()
def logits(model):
    model.eval()
    batch = tiny_batch(seed=7)
    batch.pop("labels")
    return model(**batch).logits


def weights(model):
    return {name: p.detach().clone() for name, p in trainable(model).items()}
