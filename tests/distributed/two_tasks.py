"""Learn two tasks with SAME and write down what came out; run alone or under torchrun.

    python -m tests.distributed.two_tasks DIRECTORY

The global batch is four examples, on however many processes there are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from tests.tuner.llava import tiny_batch, tiny_llava
from undrift.methods.same import Same
from undrift.tuner import statistics

GLOBAL_BATCH, EXAMPLES = 4, 24
METHOD = {
    "experts": 4,
    "rank": 2,
    "columns": 12,  # fewer than the 24 and 40 dimensions: real sketches, re-based
    "max_components": 8,
    "token_fraction": 0.5,
    "rebase_share": 0.2,
    "warmup_share": 0.3,
    "activation": True,
    "tau": 0.2,
    "max_frozen": 2,
    "history": "running",
}


class Frozen(TrainerCallback):
    """Notes at every step which experts rest."""

    def __init__(self) -> None:
        self.active: list[Tensor] = []

    def on_step_end(self, args, state, control, model=None, **_):
        found = statistics(model).values()
        self.active.append(torch.stack([each.active for each in found]).clone())


def examples(task: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(task)
    lengths = torch.randint(7, 20, (EXAMPLES,), generator=generator).tolist()
    made = []
    for number, length in enumerate(lengths):
        one = tiny_batch((length,), seed=100 * task + number)
        made.append({name: value[0] for name, value in one.items()})
    return made


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    fill = {"labels": -100}
    return {
        name: torch.stack([row[name] for row in rows])
        if name == "pixel_values"
        else torch.nn.utils.rnn.pad_sequence(
            [row[name] for row in rows], batch_first=True, padding_value=fill.get(name, 0)
        )
        for name in rows[0]
    }


def main(directory: Path) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    method = Same(**METHOD)
    set_seed(0)
    model = method.attach(tiny_llava())
    found: dict[str, Tensor] = {}
    for task in (1, 2):
        frozen = Frozen()
        args = TrainingArguments(
            output_dir=str(directory / "trainer"),
            per_device_train_batch_size=GLOBAL_BATCH // ranks,
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
        trainer = Trainer(
            model,
            args,
            data_collator=collate,
            train_dataset=examples(task),
            callbacks=[method, frozen],
        )
        trainer.train()
        found[f"task{task}.active"] = torch.stack(frozen.active)
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        found |= {f"task{task}.{key}": value.clone() for key, value in state.items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(found, directory / f"rank{os.environ.get('RANK', '0')}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
