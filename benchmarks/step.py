"""What a whole training step costs beside one of a plain LoRA of the same total rank.

`same`, `steadylora` and, to compare with, `moelora` with their default settings and eight experts,
against `finetune`. A step is everything: loss, backward pass, clipping, what the method does to
gradients and steps, the optimiser, what it observes. One task of two steps lies behind every
method, so that there is a history to keep to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.learner import Clock, Learner, Subject, pocket
from benchmarks.meter import Bar, Round, measure, median
from benchmarks.table import Cell, Table
from undrift.methods.base import Method
from undrift.methods.shared.history import HistoryMethod
from undrift.registry import METHODS

REFERENCE = "finetune"
HELD, TOLD = ("same", "steadylora"), ("moelora", "same, every token", "steadylora, every token")
EXPERTS, TASKS, SEED = 8, 2, 0
PARTS = (
    "forward and backward",
    "statistics",
    "clipping",
    "transforms",
    "optimiser",
    "after the step",
)


@dataclass(frozen=True)
class Case:
    """A model that learns, and what a step may cost on it.

    Attributes:
        name: What it is.
        rank: Of each expert.
        limit: Of the time, as a share of finetune's.
        steps: How many the task is said to have; methods sample less of a long one.
        rounds: How many steps are compared, and how many with --long.
    """

    name: str
    rank: int
    limit: float
    steps: int
    rounds: tuple[int, int]


POCKET = Case("pocket", 2, 1.10, 50, (24, 60))
SMALL = Case("SmolLM2-135M, 3 layers", 8, 1.05, 500, (6, 15))
LARGE = Case("LLaVA-7B, one block", 8, 1.05, 16000, (3, 7))


def small() -> Subject:
    """SmolLM2-135M's shape, with a tenth of its layers and of its words; 16 texts of 64 tokens."""
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152 // 10,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).requires_grad_(False).eval()
    ids = torch.randint(3, config.vocab_size, (16, 64))
    labels = ids.clone()
    labels[:, :48] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return Subject(model, batch)


def large() -> Subject:
    """One decoder block of LLaVA-1.5-7B between others: its input needs a gradient; 256 tokens."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=1,
        num_attention_heads=32,
        vocab_size=32,
    )
    model = LlamaForCausalLM(config).requires_grad_(False).eval()
    x = torch.randn(1, 256, 4096).requires_grad_()
    labels = torch.randint(0, 32, (1, 256))
    mask = torch.ones(1, 256, dtype=torch.int64)

    @contextmanager
    def reading(model: PreTrainedModel, batch: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        x.grad = None
        yield batch

    batch = {"inputs_embeds": x, "attention_mask": mask, "labels": labels}
    return Subject(model, batch, reading)


SUBJECTS = {POCKET: pocket, SMALL: small, LARGE: large}


def learners(case: Case, subject: Subject, *, long: bool) -> dict[str, Learner]:
    """Bring every method to its second task; with `long` those that nothing is asked of as well."""
    made: dict[str, Learner] = {}
    for label in (REFERENCE, *HELD, *(TOLD if long else ())):
        name, _, rest = label.partition(", ")
        kind: type[Method] = METHODS.load(name)
        options = {"token_fraction": 1.0} if rest else {}
        method = kind(experts=EXPERTS, rank=case.rank, **options)
        made[label] = Learner(method, subject, tasks=TASKS, steps=case.steps)
    return made


# ---------------------------------------------------------------- memory


def resident(learner: Learner) -> tuple[int, int]:
    """Bytes that stay between steps besides the frozen model: all of them, and the statistics'."""
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    moments = [
        value
        for state in learner.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    kept = _statistics(learner.method)
    return _bytes([*trained, *moments, *kept]), _bytes(kept)


def _statistics(method: Method) -> list[Tensor]:
    if not isinstance(method, HistoryMethod):
        return []
    kept: list[Tensor] = []
    for each in method.statistics.values():
        kept += [*each.buffers(), *each.running().values()]
        if each.owner is each and each._sketch is not None:
            kept.append(each._sketch.Omega)
    return kept


def _bytes(tensors: list[Tensor]) -> int:
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(held.values())


def step_peak(learner: Learner) -> int:
    """The most bytes that a step holds at a time beyond those it began with.

    Counted by torch's allocator, so that what a kernel needs inside is in it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
        learner.step()
    events = [e for e in taken.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


# ---------------------------------------------------------------- parts


@contextmanager
def _observed(learner: Learner) -> Iterator[Clock]:
    """Within this context a clock of its own adds up what the statistics take."""
    clock = Clock()
    method = learner.method
    every = [*method.statistics.values()] if isinstance(method, HistoryMethod) else []
    for each in every:

        def observe(*seen: Any, before: Any = each.observe) -> None:
            clock.lap("elsewhere")
            before(*seen)
            clock.lap("statistics")

        each.observe = observe
    try:
        yield clock
    finally:
        for each in every:
            del each.observe


def parts(learner: Learner, steps: int) -> dict[str, float]:
    """CPU seconds of a step, by what they are spent in."""
    with _observed(learner) as seen:
        learner.clock = Clock()
        for _ in range(steps):
            learner.step()
    spent = {part: learner.clock.parts[part] / steps for part in PARTS}
    spent["statistics"] = seen.parts["statistics"] / steps
    spent["forward and backward"] -= spent["statistics"]
    return spent


# ---------------------------------------------------------------- tables


def compared(case: Case, *, long: bool) -> tuple[list[dict[str, Cell]], list[Bar]]:
    """Compare the methods on one model: rows by method, and the bars."""
    torch.manual_seed(SEED)
    subject, rounds = SUBJECTS[case](), case.rounds[long]
    timed = max(2, rounds // 3)
    every = learners(case, subject, long=long)
    taken = measure({name: each.step for name, each in every.items()}, rounds)
    size = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    base = 0
    rows: list[dict[str, Cell]] = []
    bars: list[Bar] = []
    for name, each in every.items():

        def share(seconds: Round, name: str = name) -> float:
            return seconds[name] / seconds[REFERENCE]

        spent, (stays, kept) = parts(each, timed), resident(each)
        transforms = (spent["transforms"] + spent["after the step"]) / sum(spent.values())
        peak = step_peak(each) + stays
        if name == REFERENCE:
            base = peak
        rows.append(
            {
                "model": case.name,
                "method": name,
                "rank": EXPERTS * case.rank,
                "step / finetune": median(taken, share),
                "step ms": 1e3 * median(taken, lambda s, n=name: s[n]),
                **{f"{part} ms": 1e3 * spent[part] for part in PARTS},
                "state MB": kept / 1e6,
                "peak MB without the model": peak / 1e6,
                "model MB": size / 1e6,
            }
        )
        if name in HELD:
            about = f"{case.name}: {name}"
            bars.append(Bar(f"{about} / {REFERENCE}", median(taken, share), case.limit))
            bars.append(Bar(f"{about}: transforms and refreshes / step", transforms, 0.02))
            room = peak / (base + kept)
            bars.append(Bar(f"{about}: peak memory / ({REFERENCE} + state)", room, 1.05))
    return rows, bars


def tables(*, long: bool) -> list[Table]:
    """All of them."""
    rows: list[dict[str, Cell]] = []
    bars: list[Bar] = []
    for case in SUBJECTS:
        more, held = compared(case, long=long)
        rows += more
        bars += held
    title = "A whole training step against plain LoRA of the same total rank"
    notes = (
        "CPU time of one thread; ratios within a round, median over rounds; parts are means.",
        "Weights and text of the two larger models are random.",
        "Of SmolLM2's 30 layers and 49,152 words a tenth each: the head keeps its share of work.",
        "Tasks are as long as real ones: 50 steps of the pocket, 0.5 and 4.1 million tokens else.",
        "In a short task the statistics read every token; what that costs has rows of its own.",
        "Peak: all that is allocated besides the frozen model, at the fullest moment of a step.",
    )
    return [Table("step", title, rows, bars, notes)]
