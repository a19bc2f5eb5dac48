"""A pool's experts: what they add, what is trained of them, how they grow and are kept."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.precision import assert_same
from tests.tuner.llava import tiny_batch, tiny_llava
from tests.tuner.pools import randomise_newest, tiny_pool
from undrift.errors import ConfigError, UndriftError, UnknownName
from undrift.tuner import ForwardContext, restore_float32
from undrift.tuner.pool_lora import (
    PoolLoraConfig,
    PoolLoraLayer,
    gate_context,
    grow,
    in_groups,
    make_room,
    note_past,
    pool_layers,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
D_IN, D_OUT, R, E, B, L = 7, 5, 2, 4, 3, 6
SHAPES = {"pool": (E,), "sample": (B, E), "token": (B, L, E)}


@torch.no_grad()
def logits(model: nn.Module, batch=None) -> torch.Tensor:
    return model.eval()(**(batch or tiny_batch())).logits


def layer(num_new: int = 2, dtype=torch.float64, **config) -> PoolLoraLayer:
    """A linear with `E` experts, the newest two of which are trained."""
    torch.manual_seed(0)
    base = nn.Linear(D_IN, D_OUT).to(dtype).requires_grad_(False)
    made = PoolLoraLayer(base, "up", ForwardContext())
    options = {"num_new": num_new, "num_past": E - num_new, "r": R, "lora_alpha": 3.0} | config
    made.update_layer("default", PoolLoraConfig(**options))
    if dtype == torch.float64:
        made.pool_lora_A.double(), made.pool_lora_B.double()
        made.pool_lora_past_A.double(), made.pool_lora_past_B.double()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p))
    return made


def masters(made: PoolLoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """A (E, r, d_in) and B transposed (E, r, d_out), oldest first."""
    pairs = ((made.pool_lora_past_A, made.pool_lora_A), (made.pool_lora_past_B, made.pool_lora_B))
    return tuple(torch.cat([old["default"], new["default"]]) for old, new in pairs)  # type: ignore


def explicit(made: PoolLoraLayer, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """W0 x + s sum_i g_i B_i A_i x, expert by expert, token by token."""
    A, Bt = masters(made)
    rows = gates.expand(B, E) if gates.dim() == 1 else gates
    tokens = rows if rows.dim() == 3 else rows[:, None].expand(B, L, E)
    y = made.base_layer(x)
    for i in range(E):
        y = y + 1.5 * tokens[..., i : i + 1] * (x @ A[i].T @ Bt[i])
    return y


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_output_is_the_explicit_sum_over_experts_of_g_b_a_x(shape):
    made, x = layer(), torch.randn(B, L, D_IN, dtype=torch.float64)
    gates = torch.rand(shape, dtype=torch.float64)
    made.context.set_gates(gates)
    torch.testing.assert_close(made(x), explicit(made, x, gates))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_to_gates_inputs_and_newest_experts_are_those_of_the_explicit_sum(shape):
    made = layer()
    x = torch.randn(B, L, D_IN, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    moved = (x, gates, made.pool_lora_A["default"], made.pool_lora_B["default"])
    pull = torch.randn(B, L, D_OUT, dtype=torch.float64)
    made.context.set_gates(gates)
    ours = torch.autograd.grad((made(x) * pull).sum(), moved)
    theirs = torch.autograd.grad((explicit(made, x, gates) * pull).sum(), moved)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_all_counts_every_expert_and_newest_those_that_are_trained():
    made, x = layer(), torch.randn(B, L, D_IN, dtype=torch.float64)
    for named, ones in (("all", [1.0] * 4), ("newest", [0.0, 0.0, 1.0, 1.0])):
        made.context.set_gates(named)
        torch.testing.assert_close(made(x), explicit(made, x, torch.tensor(ones).double()))


def test_a_router_is_called_with_the_layers_own_input():
    made, x = layer(), torch.randn(B, L, D_IN, dtype=torch.float64)
    weight = torch.randn(E, D_IN, dtype=torch.float64, requires_grad=True)

    def router(x: torch.Tensor) -> torch.Tensor:
        return (x @ weight.T).softmax(-1)

    made.context.set_gates({"up": router})
    y = made(x)
    torch.testing.assert_close(y, explicit(made, x, router(x)))
    assert torch.autograd.grad(y.sum(), weight)[0].abs().sum() > 0


def test_without_gates_a_pool_that_needs_them_says_so():
    made = layer()
    x = torch.randn(B, L, D_IN, dtype=torch.float64)
    with pytest.raises(ConfigError, match="no gates are set"):
        made(x)
    assert torch.equal(layer(gates="all")(x), (made.context.set_gates("all"), made(x))[1])


@pytest.mark.foreign("1.3")
@pytest.mark.parametrize("targets", ["ffn", "all"])
def test_at_the_start_the_model_is_the_base(targets):
    model = tiny_pool(tasks=1, trained=False, target_modules=targets)
    assert not any(p.any() for n, p in model.named_parameters() if "pool_lora_B" in n)
    assert_same(logits(model), logits(tiny_llava()))
    gate_context(model).set_gates(torch.tensor([0.3]))
    assert_same(logits(model), logits(tiny_llava()))


@pytest.mark.foreign("1.3")
def test_growing_changes_no_answer_and_keeps_what_is_trained_the_same_objects():
    model = tiny_pool(tasks=2)
    before, trained = logits(model), [p for p in model.parameters() if p.requires_grad]
    grow(model)
    newest = [p for n, p in model.named_parameters() if "pool_lora_B" in n]
    assert len(newest) == 6 and not any(p.any() for p in newest)
    assert_same(logits(model), before)  # the products are wider now
    assert all(p is q for p, q in zip(trained, filter(_trains, model.parameters()), strict=True))
    for made in pool_layers(model).values():
        assert made.experts("default") == 3
        drawn = made.pool_lora_A["default"][0], *made.pool_lora_past_A["default"]
        assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def _trains(p: nn.Parameter) -> bool:
    return p.requires_grad


def test_a_task_begins_alike_whatever_was_drawn_before():
    one, other = tiny_pool(tasks=2), tiny_pool(tasks=2)
    torch.rand(100)
    grow(one), grow(other)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    layers = list(pool_layers(one).values())
    assert not torch.equal(layers[0].pool_lora_A["default"], layers[1].pool_lora_A["default"])


@pytest.mark.parametrize("gates", [torch.tensor([0.2, 0.5, 0.3]), "newest"], ids=["sum", "newest"])
def test_past_experts_are_bit_identical_after_training_with_adamw_and_weight_decay(gates):
    model = tiny_pool().train()
    gate_context(model).set_gates(gates)
    past = {n: p.clone() for n, p in model.named_buffers() if "past" in n}
    new = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert past.keys().isdisjoint(new) and len(past) == len(new) == 12
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(3):
        model(**tiny_batch(seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    now = dict(model.named_parameters()) | dict(model.named_buffers())
    assert all(torch.equal(p, now[n]) for n, p in past.items())
    assert all(not torch.equal(p, now[n]) for n, p in new.items())
    assert len(optimizer.state) == len(new)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load_restore_all_experts(tmp_path, low_cpu_mem_usage):
    model = tiny_pool(tasks=3)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["peft_type"] == "POOL_LORA" and stored["num_past"] == 2
    assert not any("base_layer" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    loaded = peft.PeftModel.from_pretrained(
        tiny_llava(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    going_on = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path, is_trainable=True)
    trained = [name for name, p in going_on.named_parameters() if p.requires_grad]
    assert len(trained) == 12 and not any("past" in name for name in trained)


def test_layers_may_differ_in_how_many_experts_they_keep(tmp_path):
    model = tiny_pool(tasks=1)
    chosen, others = sorted(pool_layers(model))[:2], sorted(pool_layers(model))[2:]
    grow(model, only=chosen)
    assert {pool_layers(model)[name].experts("default") for name in chosen} == {2}
    assert {pool_layers(model)[name].experts("default") for name in others} == {1}
    assert all(not pool_layers(model)[name].pool_lora_B["default"].any() for name in others)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    grow(model, only=others)
    assert model.peft_config["default"].num_past == 1


def test_a_pool_of_another_number_of_tasks_can_be_loaded_into_one_that_is_there():
    for tasks, other_tasks in ((3, 1), (1, 3)):
        model, other = tiny_pool(tasks), tiny_pool(other_tasks)
        peft.set_peft_model_state_dict(other, peft.get_peft_model_state_dict(model))
        assert note_past(other) == other.peft_config["default"].num_past == tasks - 1
        assert torch.equal(logits(other), logits(model))
        make_room(other, 4)
        assert other.peft_config["default"].num_past == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_stay_float32_whatever_the_base_is(dtype, tmp_path):
    config = PoolLoraConfig(r=3, gates="all")
    model = get_peft_model(tiny_llava().to(dtype), config, autocast_adapter_dtype=False)
    randomise_newest(model)
    grow(model)
    randomise_newest(model, seed=2)
    gates = torch.tensor([[0.3, 0.7]] * 3, requires_grad=True)
    gate_context(model).set_gates(gates)

    def check(model: nn.Module) -> None:
        for name, value in model.state_dict().items():
            expected = torch.float32 if "pool_lora" in name else dtype
            assert value.dtype == expected or not value.is_floating_point(), name

    check(model)
    check(model.to(dtype))
    batch = tiny_batch() | {"pixel_values": tiny_batch()["pixel_values"].to(dtype)}
    with sdpa_kernel(SDPBackend.MATH):
        model.train()(**batch).loss.backward()
        assert gates.grad is not None and gates.grad.dtype == torch.float32 and gates.grad.any()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        model.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(tiny_llava().to(dtype), tmp_path)
        check(loaded)
        gate_context(loaded).set_gates(gates)
        assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_masters_that_a_trainer_cast_are_restored():
    model = tiny_pool()
    for made in pool_layers(model).values():
        for name in ("pool_lora_A", "pool_lora_past_B"):
            master = getattr(made, name)["default"]
            master.data = master.data.to(torch.bfloat16)
    restore_float32(model)
    kinds = {p.dtype for n, p in model.named_parameters() if "pool_lora" in n}
    assert kinds == {torch.float32}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # the tower
def test_activation_checkpointing_changes_nothing_not_even_the_gates_gradient():
    grads = []
    for checkpointed in (False, True):
        model = tiny_pool()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        gates = torch.tensor([[0.2, 0.5, 0.3]] * 3, requires_grad=True)
        gate_context(model).set_gates(gates)
        model.train()(**tiny_batch()).loss.backward()
        assert gates.grad is not None
        grads.append([gates.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


def test_evaluation_sees_what_was_written_into_the_masters():
    model = tiny_pool()
    before = logits(model)
    randomise_newest(model, seed=9)
    assert not torch.equal(logits(model), before)


@pytest.mark.foreign("1.3")
def test_disabling_deleting_unloading_and_copying():
    model = tiny_pool()
    base, adapted = logits(tiny_llava()), logits(model)
    assert not torch.allclose(base, adapted)
    with model.disable_adapter():
        assert_same(logits(model), base)
    twin = copy.deepcopy(model)
    gate_context(twin).set_gates(torch.zeros(3))
    assert_same(logits(twin), base)
    assert torch.equal(logits(model), adapted)
    model.add_adapter("other", PoolLoraConfig(r=2, gates="all"))
    model.delete_adapter("other")
    assert torch.equal(logits(model), adapted)
    for call in (model.merge_and_unload, next(iter(pool_layers(model).values())).merge):
        with pytest.raises(UndriftError, match="stay apart"):
            call()
    assert_same(logits(model.unload()), base)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"r": 0}, "r must be at least 1"), ({"gates": "some"}, "gates must be one of given, all")],
)
def test_a_value_that_cannot_be_used_is_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PoolLoraConfig(**wrong)


def test_a_model_without_a_pool_has_no_gates():
    with pytest.raises(ConfigError, match="no pool of experts"):
        gate_context(tiny_llava())


# ---------------------------------------------------------------- gates

THREE = 3  # experts


def serve(gates: torch.Tensor, tokens: int) -> torch.Tensor:
    """The gates of every single token, (tokens, THREE)."""
    rows = in_groups(gates, tokens, THREE, "up")
    return rows.repeat_interleave(tokens // len(rows), 0)


def test_one_row_for_all_one_a_sample_and_one_a_token():
    one, samples, tokens = torch.rand(THREE), torch.rand(2, THREE), torch.rand(2, 5, THREE)
    assert torch.equal(serve(one, 10), one.expand(10, THREE))
    assert torch.equal(serve(samples, 10), samples[[0] * 5 + [1] * 5])
    assert torch.equal(serve(tokens, 10), tokens.view(10, THREE))


def test_copies_of_a_sample_that_beams_make_get_its_gates():
    samples, tokens = torch.rand(2, THREE), torch.rand(2, 5, THREE)
    assert torch.equal(serve(samples, 2 * 4), samples[[0] * 4 + [1] * 4])  # four beams, one token
    assert torch.equal(serve(tokens, 2 * 3 * 5), tokens[[0, 0, 0, 1, 1, 1]].view(30, THREE))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4,), "has 3 experts, and gates of shape"),
        ((2, 4), "has 3 experts, and gates of shape"),
        ((3, 3), "another batch"),
        ((2, 4, 3), "another batch"),
        ((2, 10, 3), "another batch"),
        ((1, 1, 1, 3), "expected"),
    ],
)
def test_gates_of_another_batch_or_pool_are_refused(shape, message):
    with pytest.raises(ConfigError, match=message):
        in_groups(torch.rand(shape), 10, THREE, "up")


def test_a_layers_own_gates_win_over_those_of_all_layers():
    context = ForwardContext()
    context.layers |= {"up", "down"}
    assert context.gates_of("up") is None
    context.set_gates("all")
    assert context.gates_of("up") == "all"
    context.set_gates({"": "newest", "down": "all"})
    assert (context.gates_of("up"), context.gates_of("down")) == ("newest", "all")
    context.set_gates({"down": "all"})
    assert context.gates_of("up") is None
    context.set_gates({})
    assert context.gates_of("down") is None
    with pytest.raises(UnknownName, match="did you mean 'down'"):
        context.set_gates({"donw": "all"})
