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
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.learner import Learner, Subject, pocket
from benchmarks.meter import Bar, Round, measure, median
from undrift.errors import UnknownName
from undrift.methods.base import Method
from undrift.methods.modalprompt import ModalPrompt
from undrift.methods.shared.budget import expected, rank_to_meet
from undrift.registry import METHODS

EXPERTS, RANK, TASKS, ROUNDS = 8, 2, 8, 40
REFERENCE = "finetune"
CONSTANT, GROWING = 1.15, 1.25  # of finetune's time: methods that keep their size, that grow
OPTIONS = {  # where no rank meets the budget: experts of as large a rank together
    "continual_llava": {"experts": 2, "chosen": 2, "rank": 1},  # it copies all, each task
    "llava_cmoe": {"rank": 2},  # and its locators
    "sefe": {"experts": 1},  # a LoRA of rank experts * rank a task
}


@dataclass(frozen=True)
class Contender:
    """A method inside its last task, and what it is held to.

    Attributes:
        learner: It.
        rank: The rank of each expert; None where there is none.
        grows: Whether it is larger after eight tasks than after one.
        limit: Of its time, as a share of finetune's.
    """

    learner: Learner
    rank: int | None
    grows: bool
    limit: float


def contender(name: str, subject: Subject, steps: int) -> Contender:
    """Bring a method to its eighth task.

    Args:
        name: The method's.
        subject: The pocket.
        steps: How many steps that task has.

    Returns:
        What is measured.
    """
    kind: type[Method] = METHODS.load(name)
    options: dict[str, Any] = {"experts": EXPERTS, "rank": RANK, **OPTIONS.get(name, {})}
    method = kind(**options)
    grows = _stored(method, subject, TASKS) > 1.05 * _stored(method, subject, 1)
    limit, ranked = GROWING if grows else CONSTANT, True
    if isinstance(method, ModalPrompt):
        ranked, length = False, subject.batch["input_ids"].shape[1]
        limit = CONSTANT * (1 + method.config.top_k * method.config.prompt_length / length)
    elif grows and name not in OPTIONS:
        method = kind(experts=EXPERTS, rank=rank_to_meet(method, "total", subject.model, TASKS))
    learner = Learner(method, subject, tasks=TASKS, steps=steps)
    return Contender(learner, method.config.rank if ranked else None, grows, limit)


def _stored(method: Method, subject: Subject, tasks: int) -> int:
    return expected(method, subject.model, tasks).stored


def method_bars(names: list[str], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Measure methods.

    Args:
        names: Which ones; the reference is added.
        rounds: How many rounds.

    Returns:
        A row a method: the bar's fields, its rank, and `task`, the whole task's time against
        finetune's.
    """
    subject = pocket()
    contenders = {name: contender(name, subject, rounds + 1) for name in (REFERENCE, *names)}
    taken = measure({name: each.learner.step for name, each in contenders.items()}, rounds)

    def share(name: str) -> Callable[[Round], float]:
        return lambda seconds: seconds[name] / seconds[REFERENCE]

    rows = []
    for name in names:
        each = contenders[name]
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
