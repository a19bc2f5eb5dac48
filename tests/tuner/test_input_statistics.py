"""What the layers count, what is kept between tasks, and that a task can be resumed."""

from __future__ import annotations

import peft
import pytest
import torch

from benchmarks.counts import Operations
from tests.precision import TRAINED, assert_same
from tests.tuner.llava import tiny_batch, tiny_experts, tiny_llava
from undrift.core import naive
from undrift.errors import ConfigError
from undrift.tuner import LayerStatistics, MoeLoraLayer, statistics, summed
from undrift.tuner.token_mask import Tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
DIM, N, r = 6, 4, 2


def make(**options) -> LayerStatistics:
    return LayerStatistics("linear", DIM, N, r, columns=DIM, **options)


def tokens_of(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return x, w, h and g of some tokens; the gradients are small, as those of a mean loss are."""
    generator = torch.Generator().manual_seed(seed)
    x, h, g = (torch.randn(count, size, generator=generator) for size in (DIM, N * r, 5))
    return x, torch.rand(count, N, generator=generator).softmax(1), h, 1e-4 * g


def end(each: LayerStatistics, delta: float = 1.0) -> None:
    with summed([each]):
        each.end_task(delta)


def learn(model, batch) -> None:
    model.train()
    model(**batch).loss.backward()


def sums(model) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name, each in statistics(model).items()
        for key, value in each.running().items()
    }


def assert_same_sums(model, expected: dict[str, torch.Tensor], terms: int = TRAINED) -> None:
    for key, value in sums(model).items():
        assert_same(value, expected[key], terms, what=key)


@pytest.mark.parametrize("weights", ["same", "gradient"])
def test_two_tasks_give_the_moments_of_all_their_tokens(weights):
    each = make(token_weights=weights)
    C, alpha, F = torch.zeros(DIM, DIM).double(), 0.0, torch.zeros(N).double()
    Cz, z_alpha = torch.zeros(N * r, N * r).double(), 0.0
    for task in range(2):
        each.start_task()
        parts = [tokens_of(count, seed=10 * task + count) for count in (5, 9, 3)]
        for part in parts:
            each.observe(Tokens(), *part)
        x, w, h, g = (torch.cat(column).double() for column in zip(*parts, strict=True))
        u = g.square().sum(1) if weights == "gradient" else None
        F = (alpha * F + (w * x.square().sum(1, keepdim=True)).sum(0)) / (alpha + len(x))
        C, alpha = naive.second_moment(C, alpha, x, u)
        Cz, z_alpha = naive.second_moment(Cz, z_alpha, h, u)
        torch.testing.assert_close(each.usage.utilisation(), w.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(each.cz_now().double(), Cz, rtol=1e-5, atol=1e-5)
        end(each)
    history = each.history
    approx = history.V.double() * history.s @ history.V.double().mT
    torch.testing.assert_close(approx, C, rtol=1e-5, atol=1e-5)
    assert history.tokens == alpha == each.cz_tokens == each.importance_tokens == 34
    torch.testing.assert_close(each.cz.double(), Cz, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(each.importance, F, rtol=1e-5, atol=1e-5)
    assert each.tasks == 2 and each.active.all()


@pytest.mark.foreign("1.2")
@pytest.mark.parametrize("weights", ["same", "gradient"])
def test_a_split_over_batches_changes_nothing(weights):
    tokens = tokens_of(20)
    whole, parts = make(token_weights=weights), make(token_weights=weights)
    whole.observe(Tokens(), *tokens)
    for rows in (slice(0, 3), slice(3, 14), slice(14, 20)):
        parts.observe(Tokens(), *(part[rows] for part in tokens))
    for key, value in whole.running().items():
        assert_same(parts.running()[key], value, terms=20, what=key)  # float32, whatever keeps them


def test_what_is_merged_on_the_way_is_what_is_merged_at_the_end():
    once, often = make(), make()
    for each in (once, often):
        each.start_task()
    for count in range(5, 9):
        for each in (once, often):
            each.observe(Tokens(), *tokens_of(count, seed=count))
        often.active[0] = False
        with summed([often]):
            often.merge_on(1.0, batches=7)
        assert often.active.all() and often.batches == 7 and often.usage.tokens == 0
    for each in (once, often):
        end(each)
    assert once.tasks == often.tasks == 1
    for key in ("cz", "importance", "importance_tokens", "cz_tokens"):
        torch.testing.assert_close(getattr(often, key), getattr(once, key), rtol=1e-5, atol=1e-5)
    C, expected = (e.history.V.double() * e.history.s @ e.history.V.double().mT
                   for e in (often, once))  # fmt: skip
    torch.testing.assert_close(C, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_counted_on_either_side(side):
    padded, alone = tiny_experts(), tiny_experts()
    batch = tiny_batch(side=side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    learn(padded, batch | {"position_ids": positions})
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        place = slice(None, length) if side == "right" else slice(-length, None)
        one = {
            name: value[row : row + 1] if value.dim() > 2 else value[row : row + 1, place]
            for name, value in batch.items()
        }
        learn(alone, one)
    expected = sums(alone)
    assert expected["model.language_model.layers.0.mlp.down_proj.tokens"] == 28
    assert_same_sums(padded, expected)


def test_sampled_tokens_are_the_same_whatever_the_batch_and_the_padding():
    model, other = (tiny_experts(token_fraction=0.4) for _ in range(2))
    batch = tiny_batch((40, 60, 50), side="right", seed=3)
    learn(model, batch)
    for row, length in ((2, 50), (0, 40), (1, 60)):
        one = {
            name: value[row : row + 1] if value.dim() > 2 else value[row : row + 1, :length]
            for name, value in batch.items()
        }
        learn(other, one)
    expected = sums(other)
    counted = expected["model.language_model.layers.0.mlp.down_proj.tokens"]
    spread = (150 * 0.6 / 0.4) ** 0.5  # each of 150 is drawn with 0.4 and stands for 2.5
    assert abs(counted - 150) < 6 * spread  # other CPUs draw other pixels, so other tokens
    assert_same_sums(model, expected)


@pytest.mark.parametrize("weights", ["same", "gradient", "share"])
def test_what_is_sampled_stands_for_all_tokens(weights):
    generator = torch.Generator().manual_seed(0)
    shape = 400, 50
    x, h, g = (torch.randn(20000, size, generator=generator) for size in (DIM, N * r, 5))
    w = torch.rand(20000, N, generator=generator).softmax(1)
    whole, part = (make(token_weights=weights, token_fraction=f) for f in (1.0, 0.25))
    for each in (whole, part):
        each.observe(Tokens(torch.ones(shape), torch.arange(400)), x, w, h, g)
    for key, value in whole.running().items():
        error = (part.running()[key] - value).abs().max() / value.abs().max()
        assert error < 0.08, key


def test_a_short_task_reads_all_tokens_and_a_long_one_an_eighth():
    each = make(token_fraction=None)
    each.start_task()
    assert each.fraction(1000) == 1  # how long the task is is not known
    each.start_task(batches=10)
    assert each.fraction(16) == 1
    assert each.fraction(143) == 1  # 8 * 30 for every dimension are 144 in each of 10 batches
    assert each.fraction(144) == 1 / 8
    assert each.fraction(1000) == 1 / 8
    make(token_fraction=1.0).start_task(batches=10**6)
    assert make(token_fraction=1.0).fraction(1000) == 1


def test_a_sample_costs_a_linear_few_operations():
    counts = {}
    for fraction in (1.0, 1 / 8):
        each = make(token_fraction=fraction, token_weights="share")
        seen = Tokens(torch.ones(4, 16), torch.arange(4)), *tokens_of(64)
        each.observe(*seen)  # the choice is made once for all linears
        with Operations() as counted:
            each.observe(*seen)
        counts[fraction] = counted.names.total()
    assert counts[1.0] <= 32 and counts[1 / 8] <= 36, counts


def test_evaluation_and_a_layer_that_rests_count_nothing():
    model, batch = tiny_experts(), tiny_batch()
    model.eval()
    model(**batch).loss.backward()
    model.train()
    with torch.no_grad():
        model(**batch)
    for each in statistics(model).values():
        each.collecting = False
    model(**batch).loss.backward()
    assert not sums(model)


def test_a_frozen_expert_adds_no_rows():
    each = make()
    each.start_task()
    each.active.copy_(torch.tensor([True, False, True, True]))
    x, w, h, g = tokens_of(8)
    kept = [0, 1, 4, 5, 6, 7]
    each.observe(Tokens(), x, w[:, [0, 2, 3]], h[:, kept], g)
    expected = torch.zeros(N * r, N * r)
    expected[torch.tensor(kept)[:, None], torch.tensor(kept)] = h[:, kept].T @ h[:, kept]
    torch.testing.assert_close(each.running()["z"], expected)
    assert each.usage.w[1] == 0 and each.usage.energy[1] == 0
    end(each)
    assert each.active.all() and each.active_index is None


def test_linears_with_one_input_share_one_sketch():
    model = tiny_experts(target_modules="all")
    learn(model, tiny_batch())
    found = statistics(model)
    block = "model.language_model.layers.0"
    for owner, members in {
        "mlp.gate_proj": ["mlp.up_proj"],
        "self_attn.q_proj": ["self_attn.k_proj", "self_attn.v_proj"],
        "mlp.down_proj": [],
        "self_attn.o_proj": [],
    }.items():
        assert found[f"{block}.{owner}"].owner is found[f"{block}.{owner}"]
        for member in members:
            assert found[f"{block}.{member}"].owner is found[f"{block}.{owner}"]
            assert "Y" not in found[f"{block}.{member}"].running()
    separate = tiny_experts(target_modules="all", share_inputs=False)
    learn(separate, tiny_batch())
    for name, each in statistics(separate).items():
        assert each.owner is each
        shared = found[name].owner.running()
        assert_same(each.running()["trace"], shared["trace"], what=name)


def test_sharing_where_inputs_differ_is_an_error():
    model = tiny_experts(target_modules="all")
    attention = model.base_model.model.model.language_model.layers[0].self_attn
    attention.v_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    with pytest.raises(ConfigError, match=r"v_proj does not read the same input.*share_inputs"):
        learn(model, tiny_batch())


def test_a_mask_that_does_not_fit_is_an_error():
    tokens = tokens_of(8)
    with pytest.raises(ConfigError, match=r"shape \(2, 5\).*8 tokens"):
        make().observe(Tokens(torch.ones(2, 5)), *tokens)
    with pytest.raises(ConfigError, match="example_ids"):
        make(token_fraction=0.5).observe(Tokens(torch.ones(2, 4)), *tokens)


def test_equal_tasks_count_alike_whatever_their_size():
    each, moments = make(task_weights="equal"), {"C": [], "Cz": []}
    for task, count in enumerate((5, 50, 20)):
        each.start_task()
        x, w, h, g = tokens_of(count, seed=task)
        each.observe(Tokens(), x, w, h, g)
        moments["C"].append(x.mT @ x / count)
        moments["Cz"].append(h.mT @ h / count)
        torch.testing.assert_close(each.cz_now(), torch.stack(moments["Cz"]).mean(0))
        end(each)
    history = each.history
    C = history.V.double() * history.s @ history.V.double().mT
    torch.testing.assert_close(C.float(), torch.stack(moments["C"]).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(each.cz, torch.stack(moments["Cz"]).mean(0))
    assert history.tokens == each.cz_tokens == 3


@pytest.mark.parametrize("weights", ["gradient", "share", "answer"])
def test_a_token_weighs_by_the_gradient_at_the_output_of_its_linear(weights):
    model, batch, outputs = tiny_experts(token_weights=weights), tiny_batch(), {}
    inputs = {}
    batch["labels"][:, :5] = -100

    def keep(module, args, y):
        y.retain_grad()
        outputs[module.name], inputs[module.name] = y, args[0].detach()

    for module in model.modules():
        if isinstance(module, MoeLoraLayer) and module.name.endswith("down_proj"):
            module.register_forward_hook(keep)
    learn(model, batch)
    counts = batch["attention_mask"].bool()
    assert len(outputs) == 2
    for name, y in outputs.items():
        sums_of = statistics(model)[name].running()
        u = y.grad.square().sum(2)
        if weights != "gradient":  # every example counts for one
            u = u.sqrt() / (u.sqrt() * counts).sum(1, keepdim=True)
        if weights == "answer":  # half of it where the next token has a label
            even = torch.zeros_like(u)
            even[:, :-1] = (batch["labels"][:, 1:] != -100).float()
            u = (u + even / even.sum(1, keepdim=True)) / 2
        x = inputs[name].flatten(0, 1)
        whole = (u * counts).sum()
        assert whole > 0 and (weights == "gradient" or whole == pytest.approx(len(counts)))
        torch.testing.assert_close(sums_of["weight"].float(), whole)
        torch.testing.assert_close(sums_of["z_weight"].float(), whole)
        trace = (x.square().sum(1) * (u * counts).flatten()).sum()
        torch.testing.assert_close(sums_of["trace"].float(), trace)


@pytest.mark.foreign("1.2")
@pytest.mark.parametrize("weights", ["share", "answer"])
def test_shares_do_not_depend_on_the_batch_nor_on_the_scale_of_the_loss(weights):
    together, alone = (tiny_experts(token_weights=weights) for _ in range(2))
    batch = tiny_batch()
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    together.train()
    (1000 * together(**batch, position_ids=positions).loss).backward()
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        one = {
            name: value[row : row + 1] if value.dim() > 2 else value[row : row + 1, :length]
            for name, value in batch.items()
        }
        learn(alone, one)
    # a weight is the length of what is left where gradients cancel, which costs another digit
    assert_same_sums(together, sums(alone), terms=20 * TRAINED)


@pytest.mark.foreign("1.1")
@pytest.mark.parametrize("columns", [6, 64])
def test_a_resumed_task_equals_the_uninterrupted_one(columns, tmp_path):
    def task(model, seeds) -> None:
        for seed in seeds:
            learn(model, tiny_batch(seed=seed))

    def finish(model) -> None:
        with summed(statistics(model).values()):
            for each in statistics(model).values():
                each.end_task(0.9)

    straight = tiny_experts(columns=columns, token_weights="gradient")
    task(straight, range(3))
    finish(straight)
    for each in statistics(straight).values():
        each.start_task()
    task(straight, [3])
    for each in statistics(straight).values():
        each.rebase()
        each.active.copy_(torch.tensor([True, True, False, True]))
    task(straight, [4])
    with summed(statistics(straight).values()):
        for each in statistics(straight).values():
            each.flush()
    straight.save_pretrained(tmp_path)
    resumed = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path, is_trainable=True)
    for each in statistics(resumed).values():
        each.resume_task()
    for model in (straight, resumed):
        task(model, [5, 6])
        finish(model)
    for name, each in statistics(straight).items():
        other = statistics(resumed)[name].state_dict()
        for key, value in each.state_dict().items():
            assert torch.equal(value, other[key]), f"{name}.{key}"
        assert all(not each.state_dict()[key].numel() for key in other if "running" in key)


def test_resuming_where_nothing_was_saved_starts_the_task():
    each = make()
    each.resume_task()
    assert each.usage.tokens == 0 and each.active.all()


def test_the_sketch_is_drawn_anew_for_every_linear_and_task_and_alike_on_all_ranks():
    def omega(name: str, tasks: int) -> torch.Tensor:
        each = LayerStatistics(name, 40, N, r, columns=8)
        each.tasks.fill_(tasks)
        each.start_task()
        return each._sketch.Omega

    assert torch.equal(omega("a", 0), omega("a", 0))
    assert not torch.equal(omega("a", 0), omega("b", 0))
    assert not torch.equal(omega("a", 0), omega("a", 1))
