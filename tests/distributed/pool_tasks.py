"""Learn three tasks on a growing pool and write down what came out; run alone or under torchrun.

python -m tests.distributed.pool_tasks DIRECTORY
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments, set_seed

from tests.distributed.two_tasks import GLOBAL_BATCH, collate, examples
from tests.tuner.llava import tiny_llava
from undrift.methods.olora import OLora
from undrift.methods.proglora import ProgLora

SIZES = {"experts": 4, "rank": 2}


def main(directory: Path) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    found = {}
    for method in (OLora(**SIZES), ProgLora("static", **SIZES)):
        set_seed(0)
        model = method.attach(tiny_llava())
        for task in (1, 2, 3):
            args = TrainingArguments(
                output_dir=str(directory / "trainer"),
                per_device_train_batch_size=GLOBAL_BATCH // ranks,
                num_train_epochs=1,
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
                model,
                args,
                data_collator=collate,
                train_dataset=examples(task),
                callbacks=[method],
            ).train()
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        found |= {f"{method.name}.{key}": value.clone() for key, value in state.items()}
        if isinstance(method, ProgLora):
            found |= {key: v.clone() for key, v in method.key_gate.state_dict().items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(found, directory / f"rank{os.environ.get('RANK', '0')}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
