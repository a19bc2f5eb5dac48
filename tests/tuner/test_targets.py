"""Which linears are meant by a word, a name or an expression, and the line that says so."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tests.tuner.llava import tiny_llava
from tests.tuner.tiny_families import family
from undrift.errors import ConfigError
from undrift.methods.finetune import Finetune
from undrift.methods.osf import Osf
from undrift.methods.same import Same
from undrift.methods.steadylora import SteadyLora
from undrift.tuner import adapted, find_targets

pytestmark = pytest.mark.filterwarnings("ignore::Warning")


def ends(name: str, targets: str) -> set[str]:
    return {each.rpartition(".")[2] for each in find_targets(family(name)[0], targets).names}


@pytest.mark.foreign("6.6")
@pytest.mark.parametrize(
    ("name", "ffn"),
    [
        ("falcon", {"dense_h_to_4h", "dense_4h_to_h"}),
        ("gpt_neox", {"dense_h_to_4h", "dense_4h_to_h"}),
        ("bloom", {"dense_h_to_4h", "dense_4h_to_h"}),
        ("fuyu", {"dense_h_to_4h", "dense_4h_to_h"}),
        ("gptj", {"fc_in", "fc_out"}),
        ("codegen", {"fc_in", "fc_out"}),
        ("starcoder2", {"c_fc", "c_proj"}),
        ("opt", {"fc1", "fc2"}),
        ("git", {"dense"}),  # of BERT's kind: attention's output is called the same
        ("rwkv", {"key", "receptance", "value"}),  # and so are attention's
    ],
)
def test_the_ffn_is_found_by_structure_whatever_its_linears_are_called(name, ffn):
    model, _ = family(name)
    targets = find_targets(model, "ffn")
    assert {each.rpartition(".")[2] for each in targets.names} == ffn
    rest = find_targets(model, "attention")
    assert rest.names and not set(rest.names) & set(targets.names)
    assert set(find_targets(model, "all").names) == {*targets.names, *rest.names}
    matched = [n for n, _ in model.named_modules() if re.fullmatch(targets.expression, n)]
    assert sorted(matched) == sorted(targets.names)


@pytest.mark.foreign("6.8")
def test_a_state_space_has_no_ffn_and_the_message_says_what_there_is():
    with pytest.raises(ConfigError, match=r"no target 'ffn' .* attention \(in_proj\).* all"):
        find_targets(family("mamba")[0], "ffn")
    assert ends("mamba", "all") == {"in_proj"}


@pytest.mark.foreign("6.4")
@pytest.mark.parametrize(
    "targets", ["lm_head", r".*\.router", ["router"], ["gate_proj", "lm_head"]]
)
def test_what_is_never_adapted_is_refused_by_name(targets):
    with pytest.raises(ConfigError, match=r"(router|lm_head) cannot be adapted"):
        find_targets(family("llama4")[0], targets)


@pytest.mark.foreign("6.2")
@pytest.mark.parametrize("targets", [".*vision.*q_proj", ["vision_tower.encoder.layers.0.mlp.fc1"]])
def test_a_vision_tower_is_refused_by_name(targets):
    with pytest.raises(ConfigError, match=r"vision_tower.* is not in a block of the language"):
        find_targets(tiny_llava(), targets)


@pytest.mark.foreign("6.2")
def test_a_model_without_a_language_model_is_refused_by_name():
    model, _ = family("git")
    model.git.encoder = nn.Identity()
    for targets in ("ffn", "all", ".*", ["dense"]):
        with pytest.raises(ConfigError, match="GitForCausalLM"):
            find_targets(model, targets)


def test_an_expression_takes_what_it_matches_in_the_language_model_and_no_more():
    model = tiny_llava()
    targets = find_targets(model, ".*q_proj")
    assert targets.names == tuple(
        f"model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1)
    )
    matched = [n for n, _ in model.named_modules() if re.fullmatch(targets.expression, n)]
    assert matched == list(targets.names)
    own = r"model\.language_model\.layers\.[01]\.mlp\.up_proj"
    assert find_targets(model, own).expression == own


@pytest.mark.parametrize("targets", [["up_proj", "up_prj"], "up_prj", r".*\.up_prj"])
def test_every_name_must_match(targets):
    with pytest.raises(ConfigError, match=r"no target .*up_prj.* up_proj"):
        find_targets(tiny_llava(), targets)


def test_a_broken_expression_is_told():
    with pytest.raises(ConfigError, match=r"'\(up' is no regular expression"):
        find_targets(tiny_llava(), "(up")


def test_a_second_adapter_finds_the_same():
    model = tiny_llava()
    before = find_targets(model, "all")
    Same(experts=2, rank=2, targets="all").attach(model)
    assert find_targets(model, "all") == before


# ---------------------------------------------------------------- the line


def line(name: str, targets: str, method: type = Same) -> str:
    return adapted(method(experts=2, rank=2, targets=targets).attach(family(name)[0]), targets)


@pytest.mark.foreign("6.5")
@pytest.mark.parametrize(
    ("name", "targets", "have", "lack"),
    [
        (
            "deepseek_v3",
            "ffn",
            "6 linears (gate_proj, up_proj, down_proj) in 2 of 2 blocks of model",
            ["attention (targets: ffn)", "fused experts in 1 of 2 FFNs (they are no linears)"],
        ),
        (
            "qwen2_moe",
            "all",
            (
                "14 linears (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj) in 2 "
                "of 2 blocks of model"
            ),
            [
                "fused experts in 2 of 2 FFNs (they are no linears)",
                "shared_expert_gate (routers and gates choose, and stay as they are)",
            ],
        ),
        (
            "mllama",
            "attention",
            "6 linears (q_proj, k_proj, v_proj, o_proj) in 2 of 2 blocks of model.language_model",
            [
                "ffn (targets: attention)",
                "k_proj, v_proj (keys and values of cross-attention read no text)",
                "model.vision_model",
                "model.multi_modal_projector",
            ],
        ),
    ],
)
def test_one_line_says_what_is_adapted_and_what_is_not_and_why(name, targets, have, lack):
    said = f"adapted: {have}; not adapted: {', '.join([*lack, 'lm_head'])}"
    assert line(name, targets) == said


def test_the_line_of_a_plain_lora_is_the_same():
    assert line("falcon", "ffn", Finetune) == line("falcon", "ffn")


# ---------------------------------------------------------------- GPT-2's transposed linears


@pytest.mark.foreign("6.7")
@pytest.mark.parametrize("method", [Same, SteadyLora, Finetune])
def test_gpt2_starts_as_the_base_and_moves(method):
    model, inputs = family("gpt2")
    with torch.no_grad():
        before = model(**inputs).logits
        wrapped = method(experts=2, rank=2, targets="ffn").attach(model)
        torch.testing.assert_close(wrapped(**inputs).logits, before, rtol=1e-4, atol=1e-4)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
        assert (wrapped(**inputs).logits - before).abs().max() > 0.1


@pytest.mark.foreign("6.7")
def test_what_osf_cannot_do_is_said():
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel has Conv1D; .* steadylora"):
        Osf(experts=1, rank=2).attach(family("gpt2")[0])


def test_what_peft_would_put_elsewhere_is_refused():
    with pytest.raises(ConfigError, match=r"DeepseekV3.* fused experts.* targets: attention"):
        SteadyLora(experts=1, rank=2).attach(family("deepseek_v3")[0])
    SteadyLora(experts=1, rank=2, targets="attention").attach(family("deepseek_v3")[0])
