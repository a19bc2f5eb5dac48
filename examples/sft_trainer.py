"""Learn two tasks in a row with TRL's own SFTTrainer and SAME as a callback.

A tiny random LLaVA stands in, so that this runs offline in seconds. With a real one, `model` and
`processor` come from `from_pretrained("llava-hf/llava-1.5-7b-hf")` and the rest stays as it is.
"""

from __future__ import annotations

import sys

import transformers as hf
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import SFTConfig, SFTTrainer

import undrift

letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
bytewise = Tokenizer(models.BPE(vocab=letters, merges=[]))
bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
special = {"eos_token": "</s>", "pad_token": "<pad>", "extra_special_tokens": ["<image>"]}
tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=bytewise, **special)
processor = hf.LlavaProcessor(
    hf.CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
    tokenizer,
    patch_size=4,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
)
small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
config = hf.LlavaConfig(
    vision_config=hf.CLIPVisionConfig(**small, num_hidden_layers=2, image_size=8, patch_size=4),
    text_config=hf.LlamaConfig(**small, num_hidden_layers=2, vocab_size=len(tokenizer)),
    image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
)
model = hf.LlavaForConditionalGeneration(config)


def task(question: str, answers: dict[str, str]) -> Dataset:
    """Make pictures of one colour each, one question, and an answer for each colour."""
    prompt = f"USER: <image>\n{question} ASSISTANT: "
    pictures = [(Image.new("RGB", (8, 8), colour), answers[colour]) for colour in answers] * 8
    rows = [{"images": [p], "prompt": prompt, "completion": f"{a}</s>"} for p, a in pictures]
    return Dataset.from_list(rows)


colours = task("Which colour?", {"red": "red", "blue": "blue"})
moods = task("Which mood?", {"red": "angry", "blue": "sad"})
method = undrift.Same(experts=4, rank=4)
args = SFTConfig(sys.argv[1], per_device_train_batch_size=4, num_train_epochs=4, learning_rate=5e-3,
                 bf16=False, max_length=None, report_to="none", use_cpu=True)  # fmt: skip
for number, dataset in enumerate((colours, moods)):
    experts = None if number else method.peft_config()  # the second task goes on with the first's
    trainer = SFTTrainer(model, args, train_dataset=dataset, processing_class=processor,
                         peft_config=experts, callbacks=[method])  # fmt: skip
    trainer.train()
    model = trainer.model
model.save_pretrained(f"{sys.argv[1]}/adapter")
