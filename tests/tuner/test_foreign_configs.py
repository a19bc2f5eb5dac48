"""What other people's configurations, packed rows and blocks say, and how it is heeded."""

from __future__ import annotations

import json
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from torch import nn

from tests.tuner.llava import adapted_names, tiny_llava
from undrift.errors import ConfigError
from undrift.methods.same import Same
from undrift.tuner import (
    ForwardContext,
    LanguageLoraConfig,
    MoeLoraConfig,
    find_targets,
)
from undrift.tuner.pool_lora import PoolLoraConfig
from undrift.tuner.soft_prompt import SoftPromptConfig
from undrift.tuner.token_mask import Tokens, packed_examples

CPU = torch.device("cpu")
LORAS = [MoeLoraConfig, PoolLoraConfig, LanguageLoraConfig]
UP, DOWN = "up_proj", "down_proj"


def put(kind, **options):
    more = {"gates": "all"} if kind is PoolLoraConfig else {}
    return peft.get_peft_model(tiny_llava(), kind(r=2, **more, **options))


def places(model):
    """The layer and the last name of every linear with an adapter."""
    return {(name.split(".")[-3], name.split(".")[-1]) for name in adapted_names(model)}


# ---------------------------------------------------------------- layers and exclusions


@pytest.mark.foreign("7.6")
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        (MoeLoraConfig, [UP, DOWN]),
        (PoolLoraConfig, [UP, DOWN]),
        (LanguageLoraConfig, [UP, DOWN]),
        (LanguageLoraConfig, r".*language_model.*(up|down)_proj"),
    ],
)
@pytest.mark.parametrize(
    ("narrowed", "expected"),
    [
        ({"layers_to_transform": [1]}, {("1", UP), ("1", DOWN)}),
        ({"layers_to_transform": 0}, {("0", UP), ("0", DOWN)}),
        ({"exclude_modules": ["up_proj"]}, {("0", DOWN), ("1", DOWN)}),
        (
            {"exclude_modules": ["lm_head", "layers.0.mlp.up_proj"]},
            {("0", DOWN), ("1", UP), ("1", DOWN)},
        ),
        (
            {"exclude_modules": r".*\.1\.mlp.*", "layers_to_transform": [0, 1]},
            {("0", UP), ("0", DOWN)},
        ),
    ],
)
def test_layers_and_exclusions_are_heeded_and_what_is_saved_can_be_loaded(
    kind, narrowed, expected, targets, tmp_path
):
    model = put(kind, target_modules=targets, **narrowed)
    assert places(model) == expected
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not [key for key in narrowed if said[key] is not None]
    assert adapted_names(peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)) == adapted_names(
        model
    )


@pytest.mark.foreign("7.6")
def test_a_list_of_layers_may_be_named():
    model = put(LanguageLoraConfig, layers_to_transform=[1], layers_pattern="layers")
    assert {layer for layer, _ in places(model)} == {"1"}


@pytest.mark.foreign("7.6")
@pytest.mark.parametrize("kind", LORAS)
@pytest.mark.parametrize(
    ("narrowed", "message"),
    [
        ({"layers_to_transform": [0, 2]}, "have numbers 0 to 1"),
        ({"layers_to_transform": -1}, "have numbers 0 to 1"),
        ({"exclude_modules": ["up_porj"]}, "'up_porj' matches no linear"),
        ({"exclude_modules": ["up_proj", "mlp"]}, "'mlp' matches no linear"),
        ({"exclude_modules": "up_proj"}, "regular expression over full names"),
        ({"exclude_modules": "(up"}, "is no regular expression"),
        ({"exclude_modules": ".*proj"}, "leave none of the targets"),
        ({"target_modules": 5}, "give ffn"),
        ({"target_modules": [5]}, "give ffn"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(kind, narrowed, message):
    with pytest.raises(ConfigError, match=message) as caught:
        put(kind, **narrowed)
    assert "\n" not in str(caught.value)


@pytest.mark.foreign("7.6")
def test_a_list_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="in lists called h have no numbers"):
        put(LanguageLoraConfig, layers_to_transform=[1], layers_pattern=["h"])


@pytest.mark.foreign("7.6")
def test_a_language_lora_without_targets_takes_the_ffn_as_routed_experts_do():
    lora, experts = put(LanguageLoraConfig), put(MoeLoraConfig)
    assert adapted_names(lora) == adapted_names(experts)
    assert places(lora) == {(layer, n) for layer in "01" for n in ("gate_proj", UP, DOWN)}


# ---------------------------------------------------------------- fields that nobody reads


@pytest.mark.foreign("7.6")
@pytest.mark.parametrize("kind", [MoeLoraConfig, PoolLoraConfig, SoftPromptConfig])
@pytest.mark.parametrize(
    "name", ["use_rslora", "lora_dropout", "rank_pattern", "alpha_pattern", "bias", "use_dora"]
)
def test_a_field_that_a_configuration_does_not_have_cannot_be_set(kind, name):
    with pytest.raises(ConfigError, match=f"setting of {kind.__name__} '{name}'"):
        setattr(kind(), name, True)


@pytest.mark.foreign("7.6")
def test_the_configuration_of_a_method_refuses_them_too_and_takes_its_own():
    config = Same().peft_config()
    with pytest.raises(ConfigError, match="use_rslora"):
        config.use_rslora = True
    config.r, config.inference_mode, config._mine = 3, True, 1
    assert config.to_dict()["r"] == 3


@pytest.mark.foreign("7.6")
@pytest.mark.parametrize("config", [
    MoeLoraConfig(r=2, modules_to_save=["multi_modal_projector"], task_type="CAUSAL_LM"),
    PoolLoraConfig(r=2, gates="all", task_type="CAUSAL_LM"),
    SoftPromptConfig(length=2),
], ids=["experts", "pool", "prompts"])  # fmt: skip
def test_peft_can_still_put_add_save_and_load_them(config, tmp_path):
    model = peft.get_peft_model(tiny_llava(), config)
    kind = type(config)
    fresh = kind(**{key: getattr(config, key) for key in ("modules_to_save", "task_type")})
    if kind is not MoeLoraConfig:  # one copy of a module trained in full
        model.add_adapter("other", fresh)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path, is_trainable=True)
    assert type(loaded.peft_config["default"]) is kind
    assert adapted_names(loaded) == adapted_names(model)


# ---------------------------------------------------------------- packed rows


def kept(tokens: Tokens, count: int) -> list[int]:
    rows = torch.arange(count, dtype=torch.float32)[:, None]
    return tokens.choose(count, 1.0, 0, CPU).rows(rows).flatten().long().tolist()


@pytest.mark.foreign("7.4")
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[1, 1, 1, 2, 2, 3]], [[0, 0, 0, 1, 1, 2]]),
        ([[1, 1, 2, 0], [1, 2, 2, 3]], [[0, 0, 1, 2], [3, 4, 4, 5]]),
        ([[0, 0, 1, 2]], [[0, 0, 1, 2]]),
        ([[1, 1, 1, 0]], None),
        ([[2, 2, 2, 2]], None),
    ],
)
def test_a_mask_may_number_the_examples(mask, expected):
    """Padding has numbers of its own, and does not count."""
    found = packed_examples({"attention_mask": torch.tensor(mask)})
    assert (found if found is None else found.tolist()) == expected


@pytest.mark.foreign("7.4")
def test_a_numbered_mask_shares_and_samples_as_the_examples_alone_do():
    numbered, there = torch.tensor([[1, 1, 1, 2, 2, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    sizes = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 9.0])
    packed = Tokens(numbered, given={"attention_mask": numbered})
    torch.testing.assert_close(packed.shares(sizes), torch.tensor([0.25, 0.5, 0.25, 0.75, 0.25, 0]))
    assert kept(packed, 6) == [0, 1, 2, 3, 4]
    for seed in range(8):
        content = torch.tensor([[5, 6, 7, 8, 9, 0]])
        one = Tokens(numbered, content=content, given={"attention_mask": numbered})
        two = Tokens(there, content=torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]]))
        alone = two._sampled(0.5, seed)[there != 0].tolist()
        assert one._sampled(0.5, seed)[0, :5].tolist() == alone


class Seen(nn.Module):
    """Takes what a language model takes."""

    def forward(self, **given):
        return None


def tokens_of(config=None, **given) -> Tokens:
    module = Seen()
    module.config = config  # pyright: ignore
    context = ForwardContext.attach(module)
    module(**given)
    return context.tokens


@pytest.mark.foreign("7.4")
@pytest.mark.parametrize("axes", [1, 3])
def test_padding_behind_packed_rows_without_a_mask_does_not_count(axes):
    position = torch.tensor([[0, 1, 2, 0, 0, 1, 0, 0, 0]])
    labels = torch.tensor([[-100, 5, 6, -100, -100, 7, 8, -100, -100]])
    ids = torch.arange(9)[None]
    if axes == 3:
        position = position.expand(3, 1, 9)
    tokens = tokens_of(input_ids=ids, labels=labels, position_ids=position)
    assert kept(tokens, 9) == [0, 1, 2, 3, 4, 5, 6]  # examples of one token count
    whole = tokens_of(input_ids=ids, labels=labels, position_ids=torch.zeros_like(position))
    assert kept(whole, 9) == list(range(9))  # positions that tell nothing
    unlabelled = tokens_of(input_ids=ids, position_ids=position)
    assert kept(unlabelled, 9) == list(range(9))


# ---------------------------------------------------------------- encoders


def t5():
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    ends: dict[str, Any] = {"decoder_start_token_id": 0, "pad_token_id": 0}
    return hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=32, **sizes, **ends))


def bart():
    torch.manual_seed(0)
    sizes: dict[str, Any] = {f"{part}_{what}": n for part in ("encoder", "decoder")
             for what, n in (("layers", 1), ("ffn_dim", 24), ("attention_heads", 2))}  # fmt: skip
    ends: dict[str, Any] = {
        "pad_token_id": 0,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "decoder_start_token_id": 2,
    }
    return hf.BartForConditionalGeneration(
        hf.BartConfig(vocab_size=32, d_model=16, forced_eos_token_id=2, **sizes, **ends)
    )


def read(**more):
    """Encoder rows as long as the decoder's, padded elsewhere."""
    return {
        "input_ids": torch.tensor([[5, 6, 0, 0], [7, 8, 9, 4]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        **more,
    }


LABELS = torch.tensor([[5, 6, 7, -100], [5, -100, -100, -100]])


@pytest.mark.foreign("6.1")
@pytest.mark.parametrize("make", [t5, bart])
def test_the_padding_of_the_decoder_decides_which_of_its_tokens_count(make):
    model = make().train()
    context = ForwardContext.attach(model)
    model(**read(labels=LABELS))
    assert kept(context.tokens, 8) == [0, 1, 2, 4]
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    model(**read(decoder_input_ids=torch.ones_like(mask), decoder_attention_mask=mask))
    assert kept(context.tokens, 8) == [0, 1, 4, 5, 6]
    model(**read(decoder_input_ids=torch.ones_like(mask)))
    with pytest.raises(ConfigError, match="call it with labels or decoder_attention_mask"):
        _ = context.tokens
    assert model.eval().generate(**read(), max_new_tokens=2).shape[0] == 2


@pytest.mark.foreign("6.1")
def test_the_tokens_of_a_decoder_are_sampled_whatever_the_length_of_the_encoder():
    model = t5().train()
    context = ForwardContext.attach(model)
    longer = {"input_ids": torch.arange(3, 9).expand(2, 6), "labels": LABELS}
    model(**longer)
    picked = [context.tokens._sampled(0.5, seed) for seed in range(20)]
    assert {tuple(each.shape) for each in picked} == {(2, 4)}
    assert not any(bool((each & (LABELS == -100)).any()) for each in picked)
    assert len({str(each.tolist()) for each in picked}) > 2


@pytest.mark.foreign("6.1")
def test_experts_on_an_encoder_decoder_collect_the_tokens_of_the_decoder():
    model = peft.get_peft_model(
        t5(), MoeLoraConfig(num_experts=2, r=2, columns=4, collect=True, token_fraction=0.9)
    ).train()
    model(**read(labels=LABELS)).loss.backward()
    assert adapted_names(model)
    assert all(".decoder." in f".{name}" for name in adapted_names(model))


# ---------------------------------------------------------------- routers


class Mixture(nn.Module):
    def __init__(self, router: str, kind: type) -> None:
        super().__init__()
        setattr(self, router, nn.Linear(16, 4, bias=False))
        experts = [nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 16)) for _ in range(4)]
        named = {f"expert_{i}": each for i, each in enumerate(experts)}
        self.experts = kind(named if kind is nn.ModuleDict else experts)
        self.shared_expert = nn.Linear(16, 16)


@pytest.mark.foreign("6.4")
@pytest.mark.parametrize("router", ["wg", "switch", "selector", "score", "dispatch"])
@pytest.mark.parametrize("kind", [nn.ModuleList, nn.ModuleDict])
def test_a_router_beside_a_list_of_experts_stays_whatever_its_name(router, kind):
    model = tiny_llava(hidden_size=16, intermediate_size=24)
    for block in model.model.language_model.layers:
        block.mlp = Mixture(router, kind)
    names = {name.rpartition(".")[2] for name in find_targets(model, "all").names}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "shared_expert"}
    with pytest.raises(ConfigError, match="routers and gates choose"):
        find_targets(model, [router])


@pytest.mark.foreign("6.4")
def test_one_list_of_one_linear_makes_no_router():
    model = tiny_llava(hidden_size=16, intermediate_size=24)
    block = model.model.language_model.layers[0]
    block.mlp.more = nn.ModuleList([nn.Linear(16, 16)])
    block.mlp.value = nn.Linear(16, 4)
    assert any(name.endswith("mlp.value") for name in find_targets(model, "all").names)
