"""The real `same`, in a trainer, against the paper's algorithm in plain loops: `naive.learn_task`.

"float64" holds for everything here: what the layers and statistics keep in float32 (masters,
sketches, histories) is float64 as well, so that the two agree to what float64 rounds.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.precision import float32_means_float64
from tests.tuner.llava import tiny_batch, tiny_llava
from undrift.core import PAPER, naive
from undrift.methods.same import Same
from undrift.tuner import layers

STEPS, RATE, DECAY, N, R = 12, 5e-3, 0.1, 4, 2
CHOSEN = {"warmup_share": 0.25, "columns": 64, "max_components": 64, "tau": 0.1}
TASKS = 4
TOLERANCE = 1e-9
"""Of 48 steps, each of which adds some hundred roundings of 1e-16, and Adam divides by |gradient|:
what is seen is 1e-12; a wrong order of two lines gives 1e-3."""


@pytest.fixture
def in_float64():
    with float32_means_float64():
        yield


class ByHand(nn.Module):
    """Stands in a model where an adapted linear is, and asks `learn_task` for its output."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.apply_, self.there = name, None, None

    def forward(self, X):
        rows = self.apply_(self.name, X.flatten(0, -2), self.there)
        return rows.view(*X.shape[:-1], -1)


def by_hand(model, linears):
    """Put a `ByHand` in the place of every linear; return the loss that `learn_task` wants."""
    stand_ins = []
    for name in linears:
        block, _, own = name.rpartition(".")
        stand_ins.append(ByHand(name))
        setattr(model.get_submodule(block), own, stand_ins[-1])

    def loss(batch, apply):
        for each in stand_ins:
            each.apply_, each.there = apply, batch["attention_mask"].flatten().bool().tolist()
        return model(**batch).loss

    return loss


def batch_of(task, step):
    """Two examples of different lengths, one padded; a task has inputs of a size of its own."""
    batch = tiny_batch((6, 8), side="left" if step % 2 else "right", seed=100 * task + step)
    batch["labels"][:, :5] = -100
    batch["labels"][batch["attention_mask"] == 0] = -100
    batch["pixel_values"] = batch["pixel_values"].double() * (1 + task)
    return batch


class Note(TrainerCallback):
    """Note who works at the end of a task."""

    def __init__(self):
        self.active = {}

    def on_step_end(self, args, state, control, model=None, **_):
        for name, each in layers(model).items():
            self.active[name] = each.statistics("default").active.tolist()


def train(method, model, task, folder):
    """One task with transformers' Trainer; return the batches in their order, and who worked."""
    fetched, note = [], Note()

    def collate(rows):
        fetched.append(rows[0])
        return {key: value.clone() for key, value in rows[0].items()}

    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, max_steps=STEPS, learning_rate=RATE,
        weight_decay=DECAY, lr_scheduler_type="cosine", max_grad_norm=0.0, optim="adamw_torch",
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=task,
        remove_unused_columns=False, logging_steps=STEPS,
    )  # fmt: skip
    rows = [batch_of(task, step) for step in range(STEPS)]
    trainer = Trainer(
        model, args, train_dataset=rows, data_collator=collate, callbacks=[note, method]
    )
    trainer.train()
    return fetched[:STEPS], note.active


def rates():
    return [RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS)) for step in range(STEPS)]


@pytest.mark.slow
def test_four_tasks_of_the_papers_setting_are_those_of_the_loops(in_float64, tmp_path):
    method = Same("paper", experts=N, rank=R, **CHOSEN)
    base = tiny_llava(0, num_hidden_layers=1).double()
    torch.manual_seed(1)
    model = method.attach(tiny_llava(0, num_hidden_layers=1).double())
    adapted = layers(model)
    assert len(adapted) == 3
    linears = {name: as_loops(layer, method) for name, layer in adapted.items()}
    loss = by_hand(base, linears)
    rested = 0
    for task in range(1, TASKS + 1):
        batches, active = train(method, model, task, tmp_path)
        naive.learn_task(linears, batches, rates(), loss, replace(PAPER, **CHOSEN), DECAY)
        for name, layer in adapted.items():
            rested += N - sum(active[name])
            assert active[name] == linears[name].active, (task, name)
            assert_same(layer, linears[name])
        assert_answers_alike(model, base, linears, batch_of(task + 10, 1))
    assert 0 < rested < (TASKS - 1) * 3 * (N - 1)  # some, and not as many as may


def as_loops(layer, method):
    """A linear and its adapter before the first task, in the paper's shapes."""
    A, Bt, W_G = masters(layer)
    d = layer.in_features
    return naive.Mixture(
        W0=layer.base_layer.weight.detach().clone(),
        A=[A_i.clone() for A_i in A],
        B=[B_i.T.clone() for B_i in Bt],
        W_G=W_G.clone(),
        alpha=method.config.alpha_over_rank * R,
        C=torch.zeros(d, d),
        F_pre=torch.zeros(N),
    )


def masters(layer):
    return [
        held["default"].detach().clone()
        for held in (layer.moe_lora_A, layer.moe_lora_B, layer.moe_lora_G)
    ]


def assert_same(layer, linear):
    """Weights, routes and history of a real linear are those of the loops."""
    A, Bt, W_G = masters(layer)
    history = layer.statistics("default").history
    V, s = history.basis()
    x = torch.randn(layer.in_features, generator=torch.Generator().manual_seed(0))
    pairs = {
        "A": (A, torch.stack(linear.A)),
        "B": (Bt.mT, torch.stack(linear.B)),
        "W_G": (W_G, linear.W_G),
        "route": (layer.routes(x[None])[0], naive.route(x, linear.W_G)),
        "C": ((V * s) @ V.mT, linear.C),
        "trace": (history.trace, torch.tensor(linear.trace)),
        "tokens": (history.tokens, torch.tensor(linear.tokens)),
        "F": (layer.statistics("default").importance, linear.F_pre),
    }
    for what, (real, loops) in pairs.items():
        assert real.dtype == loops.dtype == torch.float64, what
        scale = float(loops.abs().max())
        torch.testing.assert_close(
            real, loops, rtol=0, atol=TOLERANCE * scale, msg=lambda m, w=what: f"{w}: {m}"
        )


def assert_answers_alike(model, base, linears, batch):
    """Asked, all experts work and nothing is counted [Algorithm 2]."""

    def apply(name, X, there):
        each = linears[name]
        given = (each.W0, each.A, each.B, each.W_G, each.alpha)
        return torch.stack([naive.layer(x, *given) for x in X])

    for each in base.modules():
        if isinstance(each, ByHand):
            each.apply_ = apply
            each.there = batch["attention_mask"].flatten().bool().tolist()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model(**batch).logits, base(**batch).logits, rtol=TOLERANCE, atol=TOLERANCE
        )
