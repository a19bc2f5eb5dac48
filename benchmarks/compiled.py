"""What torch.compile costs and brings: the first step, and the steps after it.

A language model of SmolLM2-135M's width with few layers and words learns as it is, and compiled by
torch's inductor without any of its caches.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.learner import Learner, Subject
from benchmarks.meter import measure, median
from benchmarks.table import Cell, Table
from benchmarks.variants import N, R
from undrift.registry import METHODS

WORDS, BATCH, LENGTH = 1000, 4, 64
WARMING = 4  # steps in which inputs and sums may be compiled for anew


def spent() -> float:
    """CPU seconds of this process and of the compilers that it has called."""
    return sum(os.times()[:4])


def row(name: str, layers: int, rounds: int) -> dict[str, Cell]:
    """Measure a method."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    ids = torch.randint(3, WORDS, (BATCH, LENGTH))
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    subject = Subject(LlamaForCausalLM(config).requires_grad_(False), batch)
    plain, compiled = (
        Learner(METHODS.load(name)(experts=N, rank=R), subject, tasks=2, steps=100)
        for _ in range(2)
    )
    torch._dynamo.reset()
    counters.clear()
    compiled.model.compile()
    begin = spent()
    compiled.step()
    first = spent() - begin
    for _ in range(WARMING):
        compiled.step()
    taken = measure({"plain": plain.step, "compiled": compiled.step}, rounds)
    return {
        "method": name,
        "layers": layers,
        "first step s": first,
        "step s": median(taken, lambda s: s["plain"]),
        "compiled / plain": median(taken, lambda s: s["compiled"] / s["plain"]),
        "breaks of the graph": sum(counters["graph_break"].values()),
    }


def tables(*, long: bool) -> list[Table]:
    """A row a method; none where there is no C++ compiler."""
    title = "torch.compile on a model that learns"
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return [Table("compiled", title, [], (), ["not measured: there is no C++ compiler"])]
    names = ("finetune", "same", "steadylora") if long else ("same",)
    settings = {"force_disable_caches": True, "compile_threads": 1}
    with torch._inductor.config.patch(settings):
        rows = [row(name, 2 if long else 1, 9 if long else 5) for name in names]
    notes = [f"{BATCH} x {LENGTH} tokens, 576 wide; first step: with all compilers that it calls"]
    return [Table("compiled", title, rows, (), notes)]
