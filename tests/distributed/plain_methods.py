"""Learn three tasks with a method and write down what came out; run alone or under torchrun.

    python -m tests.distributed.plain_methods DIRECTORY METHOD

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

OPTIONS = {
    "ewc": {"samples": 24, "strength": 10.0},
    "sefe": {"key_share": 0.2, "sampled": 50},
}


def main(directory: Path, name: str) -> None:
    rank, ranks = (os.environ.get(key, fill) for key, fill in (("RANK", "0"), ("WORLD_SIZE", "1")))
    set_seed(0)
    method = METHODS.load(name)(experts=4, rank=2, **OPTIONS.get(name, {}))
    model = method.attach(tiny_llava())
    for task in (1, 2, 3):
        method.examples([Example(str(i), "what is it?", ("it",)) for i in range(24)], task)
        set_seed(task)
        args = TrainingArguments(
            output_dir=str(directory / "trainer"),
            per_device_train_batch_size=GLOBAL_BATCH // int(ranks),
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
            model, args, data_collator=collate, train_dataset=examples(task), callbacks=[method]
        ).train()
    folder = directory / f"state{rank}"
    method.save_state(model, folder)
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    save_file(
        {k: v for file in files for k, v in file.items()}, directory / f"rank{rank}.safetensors"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
