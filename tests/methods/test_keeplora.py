"""keeplora: A is fixed where neither the base's weights nor past inputs lie, B alone learns."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.methods.frozen import batches, energy_basis, gradients, inputs, same_span
from tests.methods.training import SMALL, attached, learn, logits, trainable
from tests.tuner.llava import tiny_llava
from undrift.errors import ConfigError, TrainingDiverged
from undrift.methods.keeplora import KeepLora
from undrift.methods.shared.subspace import extension, leading
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
NONE = torch.zeros(3, 0)
X = torch.diag(torch.tensor([3.0, 2.0, 1.0]))  # its directions hold 9, 4 and 1 of 14
E = torch.eye(3)


def taught(tasks=1, steps=4, **options):
    method = KeepLora(**SMALL, **options)
    model = attached(method)
    for task in range(1, tasks + 1):
        learn(method, model, task=task, steps=steps)
    return method, model


def principal(name, share=0.6):
    """W_p of the base, from a decomposition of its weight."""
    _, S, Vh = torch.linalg.svd(tiny_llava().get_submodule(name).weight.detach().double())
    held = S.square().cumsum(0) / S.square().sum()
    return Vh[: int((held < share).sum()) + 1].mT


@pytest.mark.parametrize(
    ("Q", "share", "most", "expected"),
    [
        (NONE, 0.0, 3, []),
        (NONE, 0.6, 3, [0]),
        (NONE, 0.65, 3, [0, 1]),
        (NONE, 0.95, 3, [0, 1, 2]),
        (NONE, 0.95, 2, [0, 1]),
        (NONE, 0.95, -1, []),
        (E[:, :1], 0.6, 3, []),
        (E[:, :1], 0.9, 3, [1]),
        (E[:, 1:2], 0.9, 3, [0]),
        (E[:, 1:], 1.0, 3, [0]),
        (E, 1.0, 3, []),
    ],
)
def test_the_fewest_directions_outside_that_hold_the_share(Q, share, most, expected):
    found = extension(Q, X, share, most)
    same_span(found, E[:, expected], atol=1e-9)


def test_the_leading_directions_of_a_gradient_lie_outside_and_the_rest_is_zero():
    G = torch.tensor([[5.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    right, left, values = leading(E[:, :1], G, 3)
    assert right.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert left.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert values.tolist() == [2, 1, 0]
    torch.testing.assert_close(left.mT * values @ right, (G - G @ E[:, :1] @ E[:1]).double())
    assert not leading(E[:, 1:], G * torch.tensor([1.0, 1e-7, 1e-7]), 2)[0][1].any()  # rounding


def test_the_first_step_moves_nothing_and_finds_a_in_the_gradient_outside_the_weight():
    method, seen = KeepLora(**SMALL), []
    model = attached(method)
    expected = gradients(model, batches(1, 1))

    def look(step):
        layers = pool_layers(model)
        seen.append({n: m.pool_lora_A["default"][0].clone() for n, m in layers.items()})
        moved = [bool(m.pool_lora_B["default"].any()) for m in layers.values()]
        assert all(moved) if step > 1 else not any(moved)

    learn(method, model, task=1, steps=3, on_step=look)
    for name, A in seen[0].items():
        W_p = principal(name)
        assert 0 < W_p.shape[1] < A.shape[1]
        G = expected[name].double()
        Vh = torch.linalg.svd(G - G @ W_p @ W_p.mT)[2][: len(A)]
        same_span(A.mT, Vh.mT)
        torch.testing.assert_close((A @ Vh.float().mT).abs(), torch.eye(len(A)), atol=1e-3, rtol=0)
        assert all(torch.equal(A, later[name]) for later in seen)


def test_the_gradient_is_that_of_the_whole_step_however_many_batches_it_has():
    method = KeepLora(**SMALL)
    model = attached(method)
    method.task_start(model, 1, 10)
    model.train()
    for batch in batches(1, 3):
        (method.loss(model, batch) / 3).backward()
    assert all(not turn(p.grad).any() for p, turn in method.gradient_transforms(model).items())
    assert len(method.gradient_transforms(model)) == len(pool_layers(model))
    expected = gradients(model, batches(1, 3))
    for name, G in method._first.sums.items():
        torch.testing.assert_close(G, expected[name], rtol=1e-4, atol=1e-6)
    method.step_end(model, 1, 10)
    assert method.gradient_transforms(model) == {}


@pytest.mark.parametrize("share", [0.99, 0.6])
def test_what_is_protected_is_what_the_inputs_ask_for_outside_the_weights(share):
    method, model = taught(feature_share=share, samples=8)
    seen = inputs(model, batches(1, 2))  # two batches of four
    sizes = []
    for name, M in method.protected.items():
        W_p, rank = principal(name), SMALL["rank"]
        most = min(32, len(M) - rank - W_p.shape[1])
        expected = energy_basis(W_p, seen[name].double().mT, share, most)
        same_span(M, expected)
        assert (W_p.mT @ M.double()).abs().max() < 1e-5
        sizes.append(M.shape[1] - most)
    assert (max(sizes) < 0) == (share == 0.6)  # both limits are met


def test_a_later_task_adds_nothing_for_what_is_protected():
    method, model = taught(feature_share=0.6)
    first = {name: M.clone() for name, M in method.protected.items()}
    learn(method, model, task=2, steps=6)
    for name, layer in pool_layers(model).items():
        A, B = layer.pool_lora_A["default"][0], layer.pool_lora_B["default"][0]
        assert (B.mT @ A).norm() > 1e-3
        for protected in (principal(name).float(), first[name]):
            assert protected.numel()
            assert (B.mT @ A @ protected).norm() < 1e-5 * B.norm()
        M = method.protected[name]
        assert torch.equal(M[:, : first[name].shape[1]], first[name])
        torch.testing.assert_close(M.mT @ M, torch.eye(M.shape[1]), atol=1e-4, rtol=0)


def test_without_a_share_of_the_weight_nothing_of_the_base_is_protected():
    _, model = taught(weight_share=0.0)
    touched = []
    for name, layer in pool_layers(model).items():
        touched.append(float((layer.pool_lora_A["default"][0] @ principal(name).float()).norm()))
    assert min(touched) > 0.1


def test_a_is_not_trained_whoever_makes_the_optimiser():
    _, model = taught()
    assert {key.split(".")[-2] for key in trainable(model)} == {"pool_lora_B"}
    config = KeepLora(**SMALL).peft_config()
    other, plain = KeepLora(**SMALL), peft.get_peft_model(tiny_llava(), config)
    other.take_up(plain)
    assert {key.split(".")[-2] for key in trainable(plain)} == {"pool_lora_B"}


def test_directions_keep_free_room_and_a_task_adds_at_most_so_many():
    method, _ = taught(tasks=3, steps=2, feature_share=1.0, weight_share=0.0, most=9)
    sizes = {(M.shape[0], M.shape[1]) for M in method.protected.values()}
    assert sizes == {(24, 24 - SMALL["rank"]), (40, 27)}


def test_what_cannot_be_is_refused():
    method = KeepLora(**SMALL)
    model = attached(method)
    layer = next(iter(pool_layers(model).values()))
    layer.base_layer.weight = torch.nn.Parameter(
        torch.zeros(5, 1, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(ConfigError, match=r"is quantised, and .* load the base without"):
        method._kept("gate", layer)
    method, model = taught()
    for G, error, why in (
        (torch.zeros(40, 24), ConfigError, "nothing is left for keeplora to learn in"),
        (torch.full((40, 24), torch.inf), TrainingDiverged, "is not finite; train in bfloat16"),
    ):
        method.task_start(model, 2, 5)
        for layer in pool_layers(model).values():
            layer.pool_lora_A["default"].zero_()
        method._first.sums = {next(iter(pool_layers(model))): G}
        with pytest.raises(error, match=why):
            method.step_end(model, 1, 5)
    with pytest.raises(ConfigError, match="on_train_end with train_dataloader"):
        method.task_end(model)
    for method._loader, why in (([], "gave no batch"), ([{"input_ids": 0}], "needs labels")):
        with pytest.raises(ConfigError, match=why):
            method.task_end(model)


def test_the_adapter_answers_without_the_method(tmp_path):
    method, model = taught(tasks=2)
    method.save_state(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
