"""Learn two tasks in a row with your own plain transformers Trainer and SAME as a callback.

A tiny random language model stands in, so that this runs offline in seconds. With a real one,
text-only or with pictures, `model` comes from `from_pretrained`; the dataset and the collator are
those you have.
"""

from __future__ import annotations

import sys

import transformers as hf
from peft import get_peft_model
from torch import Tensor, tensor

import undrift

END, IGNORED = 0, -100
config = hf.LlamaConfig(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, eos_token_id=END,
)  # fmt: skip
method = undrift.Same(experts=4, rank=4)
model = get_peft_model(hf.LlamaForCausalLM(config), method.peft_config())


def task(answers: dict[str, str]) -> list[dict[str, list[int]]]:
    """Make rows of letters as tokens; only the answer and its end are learned."""
    rows = []
    for question, answer in answers.items():
        prompt, learned = [*question.encode()], [*answer.encode(), END]
        labels = [IGNORED] * len(prompt) + learned
        rows.append({"input_ids": prompt + learned, "labels": labels})
    return rows * 16


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad to one length; the mask keeps the padding out of what SAME remembers."""
    length = max(len(row["input_ids"]) for row in rows)
    spare = [length - len(row["input_ids"]) for row in rows]
    pairs = list(zip(rows, spare, strict=True))
    return {
        "input_ids": tensor([row["input_ids"] + [END] * n for row, n in pairs]),
        "labels": tensor([row["labels"] + [IGNORED] * n for row, n in pairs]),
        "attention_mask": tensor([[1] * (length - n) + [0] * n for n in spare]),
    }


colours = task({"sky?": "blue", "blood?": "red", "grass?": "green"})
sounds = task({"cat?": "meow", "dog?": "woof"})
for number, rows in enumerate((colours, sounds), start=1):  # a new trainer for every task
    args = hf.TrainingArguments(
        f"{sys.argv[1]}/task-{number}", per_device_train_batch_size=4, num_train_epochs=4,
        learning_rate=5e-2, use_cpu=True, report_to="none", save_strategy="no",
        logging_steps=8,
    )  # fmt: skip
    trainer = hf.Trainer(model, args, train_dataset=rows, data_collator=collate, callbacks=[method])
    trainer.train()
model.save_pretrained(f"{sys.argv[1]}/adapter")
