"""Learn three tasks with each of some methods and write down their state; alone or under torchrun.

    python -m tests.distributed.every_method DIRECTORY METHOD ...

The global batch is four examples, on however many processes there are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments, set_seed

from tests.distributed.two_tasks import GLOBAL_BATCH, collate, examples
from tests.tuner.llava import tiny_llava
from undrift.data.types import Example
from undrift.registry import METHODS

RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
PROMPT = 6  # a picture and two words
OPTIONS = {
    "ewc": {"samples": 24, "strength": 10.0},
    "sefe": {"key_share": 0.2, "sampled": 50},
    "llava_cmoe": {"epochs": 2, "probe_share": 0.3},
}


def asked(rows):
    """Collate examples whose answers come after a prompt."""
    batch = collate(rows)
    batch["labels"][:, :PROMPT] = -100
    return batch


def learn(name: str, directory: Path) -> None:
    set_seed(0)
    method = METHODS.load(name)(experts=4, rank=2, **OPTIONS.get(name, {}))
    model = method.attach(tiny_llava())
    tasks = (1, 2, 3) if method.schedule == "sequential" else (1,)
    for task in tasks:
        method.examples([Example(str(i), "what is it?", ("it",)) for i in range(24)], task)
        set_seed(task)
        args = TrainingArguments(
            output_dir=str(directory / "trainer"),
            per_device_train_batch_size=GLOBAL_BATCH // RANKS,
            num_train_epochs=2,
            learning_rate=3e-3,
            adam_epsilon=1e-5,  # where a gradient is nothing but rounding, take no step
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=task,
        )
        Trainer(
            model, args, data_collator=asked, train_dataset=examples(task), callbacks=[method]
        ).train()
    folder = directory / f"state{RANK}"
    method.save_state(model, folder)
    files = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    found = {f"{stem}:{key}": v for stem, file in files.items() for key, v in file.items()}
    save_file(found, directory / f"rank{RANK}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[2:]:
        learn(each, Path(sys.argv[1]) / each)
