"""What PEFT and transformers promise about an adapter holds for the experts."""

from __future__ import annotations

import copy
import json
import re

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.precision import assert_same
from tests.tuner.llava import randomise, tiny_batch, tiny_experts, tiny_llava
from undrift.errors import ConfigError, UndriftError
from undrift.tuner import (
    MoeLoraConfig,
    find_targets,
    layers,
    restore_float32,
    statistics,
    summed,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


@torch.no_grad()
def logits(model: nn.Module, batch=None) -> torch.Tensor:
    return model.eval()(**(batch or tiny_batch())).logits


def learn(model: nn.Module, batch=None) -> None:
    model.train()
    model(**(batch or tiny_batch())).loss.backward()


def finish_task(model: nn.Module, adapter: str = "default") -> None:
    found = statistics(model, adapter).values()
    with summed(found):
        for each in found:
            each.end_task(0.9)


@pytest.mark.parametrize("targets", ["ffn", "all"])
@pytest.mark.parametrize("gate", ["token", "constant"])
def test_at_the_start_the_model_is_the_base(targets, gate):
    batch = tiny_batch()
    expected = logits(tiny_llava(), batch)
    model = tiny_experts(trained=False, target_modules=targets, gate=gate)
    assert not any(p.any() for n, p in model.named_parameters() if "moe_lora_B" in n)
    assert_same(logits(model, batch), expected)
    one = {name: value[:1, :9] if value.dim() == 2 else value[:1] for name, value in batch.items()}
    assert_same(logits(model, one), logits(tiny_llava(), one))


def test_targets_are_the_linears_of_the_language_model_only():
    model = tiny_llava()
    tower = model.model.vision_tower
    tower.gate_proj = nn.Linear(16, 16)  # a vision tower with the names of a language model
    assert any(name.endswith("q_proj") for name, _ in tower.named_modules())
    for targets, per_layer in (("ffn", 3), ("all", 7), (["q_proj", "gate_proj"], 2)):
        wrapped = peft.get_peft_model(
            copy.deepcopy(model), MoeLoraConfig(num_experts=2, r=2, target_modules=targets)
        )
        names = layers(wrapped)
        assert len(names) == per_layer * 2
        assert all(name.startswith("model.language_model.layers.") for name in names)


def test_the_resolved_targets_serve_other_peft_methods_and_are_stored(tmp_path):
    expression = find_targets(tiny_llava(), "ffn").expression
    lora = peft.get_peft_model(tiny_llava(), peft.LoraConfig(target_modules=expression))
    assert len(lora.base_model.targeted_module_names) == 6
    tiny_experts().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["target_modules"] == expression and stored["peft_type"] == "MOE_LORA"


def test_a_target_that_is_not_there_or_not_linear_is_named():
    with pytest.raises(ConfigError, match=r"up_prj.*down_proj.*up_proj"):
        tiny_experts(target_modules=["up_prj"])
    with pytest.raises(ConfigError, match="linear layers"):
        tiny_experts(target_modules=r".*input_layernorm")


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load_give_identical_logits_and_history(tmp_path, low_cpu_mem_usage):
    model = tiny_experts()
    learn(model)
    finish_task(model)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= ADAPTER_FILES
    loaded = peft.PeftModel.from_pretrained(
        tiny_llava(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    saved, again = statistics(model), statistics(loaded)
    assert list(saved) == list(again) and len(saved) == 6
    for name, one in saved.items():
        for key, value in one.state_dict().items():
            other = again[name].state_dict()[key]
            assert other.dtype == value.dtype and torch.equal(other, value), key
        assert again[name].history.tokens == 28 and again[name].tasks == 1


def test_one_file_holds_experts_router_and_history(tmp_path):
    model = tiny_experts()
    learn(model)
    finish_task(model)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    base = "base_model.model.model.language_model.layers.0.mlp"
    for key in ("A", "B", "G", "statistics.history_V", "statistics.cz", "statistics.importance"):
        assert f"{base}.gate_proj.moe_lora_{key}" in stored
    assert f"{base}.up_proj.moe_lora_statistics.history_V" not in stored  # gate_proj's serves
    assert not any("base_layer" in key for key in stored)


def own(call):
    """Call what goes through transformers' own adapters; None if it wants a later PEFT than this.

    transformers 5.24 asks for PEFT 0.22, which is not published.
    """
    try:
        return call() or True
    except ValueError as error:
        if not re.search(r"version of PEFT .* use a version >= ", str(error)):
            raise
        return None


def test_transformers_own_add_and_load_adapter(tmp_path):
    model = tiny_experts()
    learn(model)
    finish_task(model)
    model.save_pretrained(tmp_path)
    loaded = tiny_llava()
    if own(lambda: loaded.load_adapter(str(tmp_path))):
        assert torch.equal(logits(loaded), logits(model))
        for name, one in statistics(model).items():
            for key, value in one.state_dict().items():
                assert torch.equal(statistics(loaded)[name].state_dict()[key], value), key
    added = tiny_llava()
    if own(lambda: added.add_adapter(MoeLoraConfig(num_experts=4, r=3, collect=True))):
        for _ in range(2):  # the mask reaches the layers although no PeftModel is there
            learn(added)
        assert {float(s.usage.tokens) for s in statistics(added).values()} == {56.0}
    else:
        assert transformers.__version__ >= "5.24"


def test_disable_adapter_gives_the_base_back():
    model = tiny_experts()
    base, adapted = logits(tiny_llava()), logits(model)
    assert not torch.allclose(base, adapted)
    with model.disable_adapter():
        assert_same(logits(model), base)
    assert torch.equal(logits(model), adapted)


def test_several_adapters(tmp_path):
    model = tiny_experts(seed=0)
    model.add_adapter("other", MoeLoraConfig(num_experts=2, r=2, target_modules="all"))
    randomise(model, "other", seed=5)
    first = logits(model)
    model.set_adapter("other")
    second = logits(model)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable and all(name.endswith(".other") for name in trainable)
    assert not torch.allclose(first, second)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.save_pretrained(tmp_path)
    for name, expected in (("default", first), ("other", second)):
        folder = tmp_path if name == "default" else tmp_path / name
        assert torch.equal(logits(peft.PeftModel.from_pretrained(tiny_llava(), folder)), expected)
    model.delete_adapter("other")
    assert torch.equal(logits(model), first)
    assert not any("other" in key for key in model.state_dict())
    assert len(layers(model)) == 14 and len(statistics(model)) == 6


def test_modules_to_save(tmp_path):
    model = tiny_experts(modules_to_save=["multi_modal_projector"])
    learn(model)
    projector = model.base_model.model.model.multi_modal_projector
    with torch.no_grad():
        for p in projector.modules_to_save.parameters():
            assert p.grad is not None
            p -= 0.5 * p.grad
    expected = logits(model)
    model.save_pretrained(tmp_path)
    # trainable as the first: torch folds a product of what requires gradients in another way
    again = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path, is_trainable=True)
    assert torch.equal(logits(again), expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # the tower
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing_and_counts_once(reentrant):
    batch = tiny_batch()
    plain, checkpointed = tiny_experts(), tiny_experts()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed.enable_input_require_grads()
    for model in (plain, checkpointed):
        learn(model, batch)
        with torch.no_grad():
            model(**batch)  # an evaluation in between does not count
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, msg=name)
    for name, one in statistics(plain).items():
        other = statistics(checkpointed)[name]
        assert one.usage.tokens == other.usage.tokens == batch["attention_mask"].sum()
        for key, value in one.running().items():
            torch.testing.assert_close(value, other.running()[key], msg=f"{name} {key}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_and_statistics_stay_float32_whatever_the_base_is(dtype, tmp_path):
    model = peft.get_peft_model(
        tiny_llava().to(dtype),
        MoeLoraConfig(num_experts=4, r=3, collect=True),
        autocast_adapter_dtype=False,
    )

    def check(model):
        for name, value in model.state_dict().items():
            kinds = {dtype} if "moe_lora" not in name else {torch.float32, torch.float64}
            assert value.dtype in kinds or not value.is_floating_point(), name

    check(model)
    check(model.to(dtype))
    randomise(model)
    batch = tiny_batch() | {"pixel_values": tiny_batch()["pixel_values"].to(dtype)}
    with sdpa_kernel(SDPBackend.MATH):
        learn(model, batch)
        finish_task(model)
        check(model)
        model.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(tiny_llava().to(dtype), tmp_path)
        check(loaded)
        assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_masters_that_a_trainer_cast_are_restored():
    model = tiny_experts()
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16) if p.requires_grad else p.data
    restore_float32(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_merging_is_refused_with_a_reason_and_unload_works():
    model = tiny_experts()
    for call in (
        model.merge_and_unload,
        model.merge_adapter,
        next(iter(layers(model).values())).merge,
    ):
        with pytest.raises(UndriftError, match=r"no merged weight.*steadylora"):
            call()
    assert_same(logits(model.unload()), logits(tiny_llava()))


def test_generation_does_not_depend_on_batch_mates_or_padding():
    model = tiny_experts().eval()
    batch = tiny_batch(side="left")
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    del batch["labels"]
    together = model.generate(**batch, **options)[:, -4:]
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = {
            "input_ids": batch["input_ids"][row : row + 1, -length:],
            "attention_mask": batch["attention_mask"][row : row + 1, -length:],
            "pixel_values": batch["pixel_values"][row : row + 1],
        }
        assert torch.equal(model.generate(**alone, **options)[:, -4:], together[row : row + 1])


def test_logits_ignore_batch_mates_and_the_side_of_the_padding():
    model = tiny_experts()
    right, left = tiny_batch(side="right"), tiny_batch(side="left")
    for side in (right, left):  # the same positions on both sides
        side["position_ids"] = (side["attention_mask"].cumsum(1) - 1).clamp_min(0)
    of_right, of_left = logits(model, right), logits(model, left)
    for row, length in enumerate(right["attention_mask"].sum(1).tolist()):
        torch.testing.assert_close(of_right[row, :length], of_left[row, -length:])


def test_training_and_evaluation_route_alike_while_all_experts_are_active():
    model = tiny_experts()
    expected = logits(model)
    model.train()
    assert_same(model(**tiny_batch()).logits, expected)
    frozen = torch.tensor([True, False, True, True])
    for each in statistics(model).values():
        each.active.copy_(frozen)
    trained = model(**tiny_batch()).logits
    assert not torch.allclose(trained, expected)
    assert torch.equal(logits(model), expected)


def test_a_deep_copy_is_independent():
    model = tiny_experts()
    twin = copy.deepcopy(model)
    learn(twin)
    assert {float(s.usage.tokens) for s in statistics(twin).values()} == {28.0}
    assert all(not s.running() for s in statistics(model).values())
