"""The backbone that ships: small, loaded by transformers itself, able to say every answer."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import undrift.run.pocket.tower  # noqa: F401  (registers the tower)
from tests.sweeps import mostly_slow
from undrift.data.benchmarks.pocket import TASKS

WEIGHTS = Path(str(files("undrift.run.pocket") / "weights"))


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(WEIGHTS)


def test_it_is_at_most_twenty_megabytes_and_holds_no_pickle():
    shipped = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in shipped) <= 20e6
    assert {path.suffix for path in shipped} <= {".json", ".safetensors", ".jinja", ".md"}


def test_transformers_loads_it_and_it_speaks(processor):
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS)
    turn = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}],
    }
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt], images=[Image.new("RGB", (96, 96))], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 9
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_the_trunk_stays_out_of_training(processor):
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS)
    tower = model.model.vision_tower
    tower(torch.zeros(1, 3, 96, 96)).last_hidden_state.sum().backward()
    assert all(p.grad is None for p in tower.trunk.parameters())
    assert tower.embed.weight.grad is not None


@pytest.mark.parametrize("name", mostly_slow(TASKS, ["charts", "digits"]))
def test_every_answer_fits_its_task_s_room(name, processor):
    task = TASKS[name]
    said = {answer for item in task.pools()["test"] for _, answer in task.ask(item)}
    longest = max(len(processor.tokenizer(answer)["input_ids"]) + 1 for answer in said)
    assert longest <= task.max_new_tokens
