"""What a training step of each method costs, against one of `finetune` at the same total rank.

The pocket backbone as its own runs train it: batches of 32, image features kept, experts of rank 2.
Each method first learns seven tasks of two steps, so that what it remembers is there and what
grows has grown; the eighth is measured from its first step to its last, a round a step, since in a
part of it a method may do more: the bar is on the median, and the whole task is told. A method that
grows has the rank at which its eight tasks together weigh what the LoRA does; soft prompts have no
rank, and may take as much longer as they make the input. A step is everything: loss, backward pass,
clipping, what the method does to gradients and steps, the optimiser, what it observes.

    python -m benchmarks.methods --json FILE
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from benchmarks.answering import questions
from benchmarks.meter import Bar, Round, measure, median
from undrift.data.types import Example
from undrift.errors import UnknownName
from undrift.methods.base import Method
from undrift.methods.modalprompt import ModalPrompt
from undrift.methods.shared.budget import expected, rank_to_meet
from undrift.registry import METHODS
from undrift.run.backbone import Backbone
from undrift.run.image_features import FeatureStore

EXPERTS, RANK, TASKS, STEPS, ROUNDS = 8, 2, 8, 2, 40
REFERENCE = "finetune"
CONSTANT, GROWING = 1.15, 1.25  # of finetune's time: methods that keep their size, that grow
OPTIONS = {  # where no rank meets the budget: experts of as large a rank together
    "continual_llava": {"experts": 2, "chosen": 2, "rank": 1},  # it copies all, each task
    "llava_cmoe": {"rank": 2},  # and its locators
    "sefe": {"experts": 1},  # a LoRA of rank experts * rank a task
}
REMEMBERED = [Example(str(i), "what is it?", ("it",)) for i in range(8)]  # by replay

Batches = list[dict[str, Any]]


@dataclass(frozen=True)
class Learner:
    """A method inside its last task.

    Attributes:
        step: Takes one optimiser step.
        rank: The rank of each expert; None where there is none.
        grows: Whether it is larger after eight tasks than after one.
        limit: Of its time, as a share of finetune's.
    """

    step: Callable[[], None]
    rank: int | None
    grows: bool
    limit: float


def batches(backbone: Backbone) -> Batches:
    """Make the batch that every step sees: questions about pictures of noise, with answers."""
    with tempfile.TemporaryDirectory() as folder:
        examples = [replace(e, answers=("blue circle",)) for e in questions(Path(folder))]
        backbone.store = FeatureStore(Path(folder) / "features", backbone.encode)
        backbone.store.prepare([picture for e in examples for picture in e.images])
        collator = backbone.collator()
        return [collator.collate(collator.encode(examples, answered=True))]


def learner(name: str, backbone: Backbone, made: Batches, steps: int) -> Learner:
    """Bring a method to its eighth task.

    Args:
        name: The method's.
        backbone: The pocket backbone; its model is copied.
        made: From `batches`.
        steps: How many steps that task has.

    Returns:
        What is measured.
    """
    kind: type[Method] = METHODS.load(name)
    options: dict[str, Any] = {"experts": EXPERTS, "rank": RANK, **OPTIONS.get(name, {})}
    method = kind(**options)
    grows = _stored(method, backbone, TASKS) > 1.05 * _stored(method, backbone, 1)
    limit, ranked = GROWING if grows else CONSTANT, True
    if isinstance(method, ModalPrompt):
        ranked, length = False, made[0]["input_ids"].shape[1]
        limit = CONSTANT * (1 + method.config.top_k * method.config.prompt_length / length)
    elif grows and name not in OPTIONS:
        method = kind(experts=EXPERTS, rank=rank_to_meet(method, "total", backbone.model, TASKS))
    own = copy.copy(backbone)
    own.model = copy.deepcopy(backbone.model)
    set_seed(0)
    model = method.attach(own.model).train()
    optimizer, state = _begin(method, model, STEPS)
    for left in reversed(range(TASKS - 1)):
        for _ in range(STEPS):
            _step(method, model, optimizer, state, own, made[0])
        with method.preparing(own.inputs):  # EWC reads the loader's batches
            method.on_train_end(
                None, state, _control(), model=model, optimizer=optimizer, train_dataloader=made
            )
        optimizer, state = _begin(method, model, STEPS if left else steps)
    return Learner(
        lambda: _step(method, model, optimizer, state, own, made[0]),
        method.config.rank if ranked else None,
        grows,
        limit,
    )


def _stored(method: Method, backbone: Backbone, tasks: int) -> int:
    return expected(method, backbone.model, tasks).stored


def _control() -> SimpleNamespace:
    return SimpleNamespace(should_save=False)


def _begin(
    method: Method, model: nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, SimpleNamespace]:
    """Begin a task as a trainer does: an optimiser of its own."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    state = SimpleNamespace(global_step=0, max_steps=steps, is_world_process_zero=True)
    args = SimpleNamespace(output_dir="nowhere", resume_from_checkpoint=None)
    method.examples(REMEMBERED, method.task_index)
    method.on_train_begin(args, state, _control(), model=model, optimizer=optimizer)
    return optimizer, state


def _step(
    method: Method,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: SimpleNamespace,
    backbone: Backbone,
    batch: Mapping[str, Any],
) -> None:
    with backbone.reading(batch) as inputs:
        loss = method.loss(model, {**inputs, "use_cache": False})
    loss.backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    state.global_step += 1
    method.on_step_end(None, state, _control(), model=model, optimizer=optimizer)


def method_bars(names: list[str], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Measure methods.

    Args:
        names: Which ones; the reference is added.
        rounds: How many rounds.

    Returns:
        A row a method: the bar's fields, its rank, and `task`, the whole task's time against
        finetune's.
    """
    backbone = Backbone.load("pocket", device="cpu")
    made = batches(backbone)
    every = (REFERENCE, *names)
    learners = {name: learner(name, backbone, made, rounds + 1) for name in every}
    taken = measure({name: each.step for name, each in learners.items()}, rounds)

    def share(name: str) -> Callable[[Round], float]:
        return lambda seconds: seconds[name] / seconds[REFERENCE]

    rows = []
    for name in names:
        each = learners[name]
        bar = Bar(
            f"step: {name} / {REFERENCE}",
            median(taken, share(name)),
            each.limit,
        )
        print(bar, flush=True)
        task = sum(s[name] for s in taken) / sum(s[REFERENCE] for s in taken)
        about = {"method": name, "rank": each.rank, "grows": each.grows, "task": task}
        rows.append(about | asdict(bar) | {"holds": bar.holds})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("names", nargs="*", help="methods; all that learn by themselves")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    known = [n for n in METHODS.names() if METHODS.load(n).schedule == "sequential"]
    known.remove(REFERENCE)
    for name in args.names:
        if name not in known:
            raise UnknownName(f"{name!r} is none of {', '.join(known)}")
    rows = method_bars(args.names or known, args.rounds)
    if args.json is not None:
        content = {"threads": 1, "tasks": TASKS, "rounds": args.rounds, "methods": rows}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    short = [row["method"] for row in rows if not row["holds"]]
    print(f"{len(rows) - len(short)} of {len(rows)} bars hold" + "".join(f"; {n}" for n in short))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
