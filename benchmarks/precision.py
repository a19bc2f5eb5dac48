"""What bfloat16 weights bring on this CPU: a training step in the shape of SmolLM2-135M.

As `dtype: bfloat16` trains on a CPU: the base in bfloat16, adapters, optimiser and statistics in
float32. Weights are random, of SmolLM2-135M's shapes; without --long a fifth of its layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.growth import LONG
from benchmarks.learner import Learner, Subject
from benchmarks.meter import measure, median
from benchmarks.table import Cell, Table
from benchmarks.variants import N, R
from undrift.registry import METHODS as REGISTERED
from undrift.run.plan import has_bfloat16_units

METHODS = ("finetune", "same", "steadylora")
BATCH, LENGTH, ANSWER = 4, 64, 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def smollm2(layers: int) -> LlamaForCausalLM:
    """A language model of SmolLM2-135M's shapes and random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).requires_grad_(False)


def text() -> dict[str, Tensor]:
    """A batch, of whose examples the end is learned."""
    ids = torch.randint(3, 49152, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def tables(*, long: bool) -> list[Table]:
    """A row a method: its step in both precisions."""
    base = smollm2(30 if long else 6)
    rounds = 7 if long else 3
    steps: dict[str, Callable[[], None]] = {}
    for label, dtype in DTYPES.items():
        subject = Subject(copy.deepcopy(base).to(dtype), text())
        for name in METHODS:
            method = REGISTERED.load(name)(experts=N, rank=R)
            steps[f"{name} {label}"] = Learner(method, subject, tasks=2, steps=LONG).step
    taken = measure(steps, rounds)
    rows: list[dict[str, Cell]] = []
    for name in METHODS:
        found: dict[str, Cell] = {"method": name}
        for label in DTYPES:
            found[f"{label} s"] = median(taken, lambda s, k=f"{name} {label}": s[k])
            found[f"{label} / finetune"] = median(
                taken, lambda s, k=label, n=name: s[f"{n} {k}"] / s[f"finetune {k}"]
            )
        found["float32 / bfloat16"] = median(
            taken, lambda s, n=name: s[f"{n} float32"] / s[f"{n} bfloat16"]
        )
        rows.append(found)
    units = "has" if has_bfloat16_units() else "has no"
    notes = [
        f"this CPU {units} units for bfloat16; {BATCH} x {LENGTH} tokens, {ANSWER} of them learned",
        f"{base.config.num_hidden_layers} layers of random weights; a whole step of a long task",
    ]
    return [Table("precision", "bfloat16 on this CPU: a step of SmolLM2's shapes", rows, (), notes)]
