"""Which methods' adapters are a plain LoRA, and that it answers as they do."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.methods.training import SMALL, attached, learn, logits
from tests.tuner.llava import tiny_llava
from undrift.errors import ConfigError
from undrift.methods.shared.adapter import put_on
from undrift.methods.shared.plain_lora import about_serving, plain_lora, write_lora
from undrift.registry import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

ONE = {"ewc", "finetune", "joint", "many", "osf", "replay", "riemannian", "steadylora"}
SUMS = {"eblora", "keeplora", "octopus", "olora", "sefe"}  # a LoRA a task
PLAIN = ONE | SUMS
BY_TOKEN = {"clmoe", "moelora", "same"}
BY_PROMPT = {
    "continual_llava",
    "disco",
    "dymoe",
    "hide",
    "llava_cmoe",
    "nearlora",
    "proglora",
    "smolora",
}
NO_LINEARS = {"modalprompt"}
NOTHING = {"zeroshot"}


def trained(name, **options):
    method = METHODS.load(name)(**{**SMALL, **options})
    model = attached(method)
    for task in (1, 2):
        learn(method, model, task=task, steps=6)
    return method, model


def reloaded(lora, model, folder):
    folder.mkdir()
    write_lora(lora, folder, model, "somewhere", text=False)
    return put_on(tiny_llava(), folder)


def test_every_method_is_in_one_of_the_lists():
    listed = [*PLAIN, *BY_TOKEN, *BY_PROMPT, *NO_LINEARS, *NOTHING]
    assert sorted(listed) == sorted(METHODS.names())


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_a_plain_lora_answers_as_the_method_does(name, tmp_path):
    method, model = trained(name)
    mine, base = logits(model), logits(tiny_llava())
    assert (mine - base).abs().max() > 1e-2
    with method.predicting(model):
        theirs = logits(reloaded(method.as_lora(model), model, tmp_path / "lora"))
    assert (mine - theirs).abs().max() < 1e-4
    content = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert content["peft_type"] == "LORA" and content["base_model_name_or_path"] == "somewhere"
    assert content["target_modules"] == ["down_proj", "gate_proj", "up_proj"]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (BY_TOKEN, "chosen by token.*--distil.*steadylora"),
        (BY_PROMPT, "weighed by prompt.*--distil.*steadylora"),
        (NO_LINEARS, "adds nothing to linears.*steadylora"),
        (NOTHING, "carries no adapter"),
    ],
)
def test_what_is_no_plain_lora_says_the_way_to_one(names, why):
    for name in sorted(names):
        method = METHODS.load(name)(**SMALL)
        with pytest.raises(ConfigError, match=why) as refused:
            method.as_lora(attached(method))
        assert "\n" not in str(refused.value)


def test_one_expert_is_a_plain_lora(tmp_path):
    method, model = trained("moelora", experts=1)
    mine = logits(model)
    theirs = logits(reloaded(method.as_lora(model), model, tmp_path / "lora"))
    assert (mine - theirs).abs().max() < 1e-4


def test_linears_of_other_ranks_and_scales_are_brought_to_one(tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        rank_pattern={"up_proj": 2},
        alpha_pattern={"down_proj": 20},
        target_modules=r".*language_model.*(up|down)_proj",
        init_lora_weights=False,
    )
    model = get_peft_model(tiny_llava(), config)
    lora = plain_lora(model)
    assert lora.rank == 4 and {each.rank for each in lora.factors.values()} == {2, 4}
    assert (logits(model) - logits(reloaded(lora, model, tmp_path / "lora"))).abs().max() < 1e-4


def test_a_variant_that_is_more_than_a_product_is_refused():
    config = LoraConfig(r=2, use_dora=True, target_modules=r".*language_model.*up_proj")
    with pytest.raises(ConfigError, match=r"DoRA.*merge_and_unload"):
        plain_lora(get_peft_model(tiny_llava(), config))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bias": "lora_only"}, r"more than LoRAs.*: .*up_proj.*bias and 1 more;.*merge_and"),
        ({"bias": "all"}, r"more than LoRAs.*bias and \d+ more"),
        ({"target_modules": ["up_proj", "embed_tokens"]}, r"more than LoRAs.*: .*embedding_A"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa' has changed weights"),
        ({"init_lora_weights": "olora"}, r"init_lora_weights='olora' has changed weights"),
    ],
)
def test_what_is_more_than_products_is_refused(options, said):
    base = tiny_llava()
    if options.get("bias") == "lora_only":
        for layer in base.get_decoder().layers:
            layer.mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(layer.mlp.up_proj.out_features))
    config = LoraConfig(**{"r": 2, "target_modules": ["up_proj"], **options})
    with pytest.raises(ConfigError, match=said):
        plain_lora(get_peft_model(base, config))


@pytest.mark.parametrize(("rank", "said"), [(8, "rank 8:.* 8 "), (33, "--max-lora-rank 64"),
                                            (513, "none above 512.*--to merged")])  # fmt: skip
def test_the_rank_that_vllm_has_to_be_told_is_said(rank, said):
    config = LoraConfig(r=rank, target_modules=r".*language_model.*up_proj")
    (line,) = about_serving(plain_lora(get_peft_model(tiny_llava(), config)))
    assert re.search(said, line)


def test_targets_and_modules_that_vllm_may_refuse_are_said():
    config = LoraConfig(
        r=2, target_modules=["linear_1"], modules_to_save=["model.multi_modal_projector.linear_2"]
    )
    lines = about_serving(plain_lora(get_peft_model(tiny_llava(), config)))
    assert "linear_1" in lines[1] and "--to merged" in lines[1]
    assert "multi_modal_projector.linear_2" in lines[2]
