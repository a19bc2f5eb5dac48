"""A plain `Trainer` on two processes: statistics, adapter and prototypes of one, in float64."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from tests.distributed.forked import forked
from tests.distributed.runs import pairs
from tests.methods.matching import WEIGHTS, chosen, random_features
from tests.precision import float32_means_float64
from tests.tuner.llava import tiny_batch, tiny_llava
from undrift.data.types import Example
from undrift.methods.shared.task_matcher import Matching, TaskMatcher
from undrift.registry import METHODS
from undrift.tuner import statistics, summed

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
LEARNING = [name for name in METHODS.names() if METHODS.load(name).schedule != "none"]
GLOBAL_BATCH, EXAMPLES = 4, 24
PROMPT = 6  # a picture and two words
OPTIONS = {
    "ewc": {"samples": 24, "strength": 10.0},
    "sefe": {"key_share": 0.2, "sampled": 50},
    "llava_cmoe": {"epochs": 2, "probe_share": 0.3},
    "steadylora": {"columns": 12, "rebase_share": 0.2, "merge_share": 0.5},
    "many": {"columns": 12, "max_components": 8, "token_fraction": 0.5, "rebase_share": 0.2},
    "same": {
        "columns": 12,  # fewer than the 24 and 40 dimensions: real sketches, re-based
        "max_components": 8,
        "token_fraction": 0.5,
        "rebase_share": 0.2,
        "warmup_share": 0.3,
        "activation": True,
        "tau": 0.2,
        "max_frozen": 2,
        "history": "running",
    },
}


class Resting(TrainerCallback):
    """Notes at every step which experts are active."""

    def __init__(self) -> None:
        self.active: list[Tensor] = []

    def on_step_end(self, args, state, control, model=None, **_):
        found = statistics(model).values()
        self.active += [torch.stack([each.active for each in found])] if found else []


def examples(task: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(task)
    lengths = torch.randint(7, 20, (EXAMPLES,), generator=generator).tolist()
    made = []
    for number, length in enumerate(lengths):
        one = tiny_batch((length,), seed=100 * task + number)
        one["pixel_values"] = one["pixel_values"].double()
        made.append({name: value[0] for name, value in one.items()})
    return made


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate examples whose answers come after a prompt."""
    fill = {"labels": -100}
    batch = {
        name: torch.stack([row[name] for row in rows])
        if name == "pixel_values"
        else torch.nn.utils.rnn.pad_sequence(
            [row[name] for row in rows], batch_first=True, padding_value=fill.get(name, 0)
        )
        for name in rows[0]
    }
    batch["labels"][:, :PROMPT] = -100
    return batch


def arguments(folder, processes: int, task: int, **more) -> TrainingArguments:
    """What a task is trained with; a step takes as many examples on any number of processes."""
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=GLOBAL_BATCH // processes,
        num_train_epochs=2,
        learning_rate=3e-3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=task,
        **more,
    )


def learned(folder, name: str, processes: int) -> list[dict[str, Tensor]]:
    """What each process knows after three tasks."""

    def work() -> None:
        rank = os.environ["RANK"]
        with float32_means_float64():
            set_seed(0)
            method = METHODS.load(name)(experts=4, rank=2, **OPTIONS.get(name, {}))
            model = method.attach(tiny_llava().double())
            resting = Resting()
            for task in (1, 2, 3) if method.schedule == "sequential" else (1,):
                method.examples(
                    [Example(str(i), "what is it?", ("it",)) for i in range(EXAMPLES)], task
                )
                set_seed(task)
                args = arguments(folder / f"trainer{rank}", processes, task, save_strategy="no")
                Trainer(
                    model,
                    args,
                    data_collator=collate,
                    train_dataset=examples(task),
                    callbacks=[method, resting],
                ).train()
            own = folder / f"state{rank}"
            method.save_state(model, own)
        files = {path.stem: load_file(path) for path in sorted(own.glob("*.safetensors"))}
        found = {f"{stem}:{key}": v for stem, file in files.items() for key, v in file.items()}
        found["active"] = torch.stack(resting.active) if resting.active else torch.zeros(0)
        save_file(found, folder / f"{rank}.safetensors")

    forked(processes, folder, work)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(processes)]


@pytest.mark.parametrize("name", LEARNING)
def test_two_processes_equal_one(name, tmp_path):
    (one,) = learned(tmp_path / "one", name, 1)
    first, second = learned(tmp_path / "two", name, 2)
    for key in one:
        assert torch.equal(first[key], second[key]), f"the processes differ in {key}"
    for key, a, b in pairs(first, one):
        error, scale = float((a - b).abs().max()), max(float(b.abs().max()), 1e-2)
        assert error <= 1e-9 * scale, f"{key}: {error:.2e} of {scale:.2e}"
    if name == "same":
        assert sum(key.endswith("history_V") for key in one) == 2 * 2
        steps = 2 * EXAMPLES // GLOBAL_BATCH
        assert one["active"][:steps].all() and not one["active"][steps:].all()


def test_two_processes_that_share_the_examples_give_the_prototypes_of_one(tmp_path):
    (one,) = prototypes(tmp_path / "one", 1)
    first, second = prototypes(tmp_path / "two", 2)
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), f"the processes differ in {key}"
        if key.endswith(".counts"):
            assert torch.equal(first[key], value) and bool((value > 0).all())
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-12)


def prototypes(folder, processes: int) -> list[dict[str, Tensor]]:
    """The prototypes that each process has when each has seen its share of the features."""

    def work() -> None:
        rank = int(os.environ["RANK"])
        matcher = TaskMatcher(Matching(WEIGHTS, 0.1), 8)
        for task in (1, 2):
            matcher.start_task()
            for batch in range(6):
                whole = random_features(10, 8, seed=10 * task + batch)
                matcher.see(chosen(whole, slice(rank, None, processes)))
                if batch == 3:  # a checkpoint on the way must not count anything twice
                    with summed([matcher.state()]):
                        pass
            matcher.end_task()
        save_file(matcher.state().tensors, folder / f"{rank}.safetensors")

    forked(processes, folder, work)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(processes)]
