"""eblora: singular values all equal, rows on a Stiefel manifold off past gradients."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.methods.frozen import batches, energy_basis, gradients, same_span
from tests.methods.training import SMALL, attached, batch_of, learn, logits
from tests.tuner.llava import tiny_llava
from undrift.core.step_hook import StepHook
from undrift.errors import ConfigError
from undrift.methods.eblora import EbLora, polar, tangent
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def taught(tasks=1, steps=5, **options):
    method = EbLora(**SMALL, **options)
    model = attached(method)
    for task in range(1, tasks + 1):
        learn(method, model, task=task, steps=steps)
    return method, model


def newest(model):
    for name, layer in pool_layers(model).items():
        A, B = (p["default"].detach()[0].double() for p in (layer.pool_lora_A, layer.pool_lora_B))
        yield name, A, B


def drawn(rows, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def orthonormal(rows, width, seed=1):
    return torch.linalg.qr(drawn(rows, width, seed).mT).Q.mT


def factor(M):
    """The polar factor from a singular value decomposition."""
    U, _, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    return U @ Vh


# ---------------------------------------------------------------- on small matrices


def test_the_polar_factor_is_the_nearest_with_orthonormal_rows_and_keeps_a_missing_one_missing():
    M = drawn(3, 7)
    V, mean = polar(M)
    torch.testing.assert_close(V, factor(M))
    assert mean == pytest.approx(float(torch.linalg.svdvals(M).mean()))
    for number in range(5):
        other = orthonormal(3, 7, seed=10 + number)
        assert (M - V).norm() < (M - other).norm()
    V, mean = polar(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 4.0]]))
    assert V.tolist() == [[0, 0, 0], [0, 0, 1]] and mean == 4
    assert not polar(torch.zeros(2, 3))[0].any() and polar(torch.zeros(2, 3))[1] == 0


def test_a_tangent_keeps_rows_orthonormal_to_first_order_and_is_a_projection():
    M, V = drawn(3, 7), orthonormal(3, 7)
    T = tangent(M, V)
    torch.testing.assert_close(T @ V.mT + V @ T.mT, torch.zeros(3, 3, dtype=torch.float64))
    torch.testing.assert_close(tangent(T, V), T)
    assert float((T * (M - T)).sum()) == pytest.approx(0, abs=1e-12)
    scaled = tangent(M, V, scaled=True)  # all singular values may change alike as well
    radial = float((M * V).sum()) / 3
    torch.testing.assert_close(scaled, T + radial * V)
    torch.testing.assert_close(tangent(V, V, scaled=True), V)


# ---------------------------------------------------------------- in training


def test_the_first_step_moves_nothing_and_begins_with_equal_steps_down_the_gradient():
    method, seen = EbLora(**SMALL, begin=0.02), []
    model = attached(method)
    expected = gradients(model, batches(1, 1))
    learn(method, model, task=1, steps=1, on_step=lambda step: seen.extend(newest(model)))
    for name, A, B in seen:
        U, S, Vh = torch.linalg.svd(expected[name].double(), full_matrices=False)
        best = U[:, :3] @ Vh[:3]
        torch.testing.assert_close(B.mT @ A, -0.02 * best, atol=1e-4, rtol=0)
        slope = float((expected[name].double() * (B.mT @ A)).sum())
        assert slope == pytest.approx(-0.02 * float(S[:3].sum()), rel=1e-3)


def test_all_singular_values_of_the_update_are_equal_whatever_adam_does():
    scales = []
    _, model = taught(steps=8)
    for _, A, B in newest(model):
        values = torch.linalg.svdvals(B.mT @ A)[:3]
        assert float(values.max() - values.min()) < 1e-5 * float(values.max())
        torch.testing.assert_close(A @ A.mT, torch.eye(3).double(), atol=1e-5, rtol=0)
        scales.append(float(values[0]))
    assert max(abs(each - 0.005) for each in scales) > 1e-3  # and c is learned


def in_second_task():
    """A model behind the first step of its second task."""
    method, model = taught(begin=0.5)
    method.task_start(model, 2, 10)
    model.train()
    method.loss(model, batch_of(2, 0)).backward()
    method.step_end(model, 1, 10)
    model.zero_grad()
    return method, model


def test_adam_sees_tangents_off_past_gradients_and_a_that_drifts_into_them_is_put_back():
    method, model = in_second_task()
    gradients, steps = method.gradient_transforms(model), method.step_transforms(model)
    for name, layer in pool_layers(model).items():
        F = method.protected[name].double()
        A, B = layer.pool_lora_A["default"], layer.pool_lora_B["default"]
        V = B.detach()[0].double() / 0.5
        T = gradients[A](drawn(3, len(F))[None].float())[0].double()
        assert T.norm() > 1 and (T @ F).norm() < 1e-5
        torch.testing.assert_close(T @ A[0].mT.double(), -(T @ A[0].mT.double()).mT, atol=1e-5,
                                   rtol=0)  # fmt: skip
        g = drawn(3, V.shape[1])
        S = gradients[B](g[None].float())[0].double() @ V.mT
        alike = torch.eye(3).double() * (g * V).sum() / 3  # what changes c stays
        torch.testing.assert_close((S + S.mT) / 2, alike, atol=1e-5, rtol=0)
        with torch.no_grad():
            A[0] += 0.01 * F.mT[:3].float()
            assert (A[0].double() @ F).norm() > 1e-3
            A += steps[A](torch.zeros_like(A))
        assert (A[0].double() @ F).norm() < 1e-5


def test_a_step_is_projected_off_past_gradients_and_retracted():
    method, model = in_second_task()
    rate = 0.5
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(own, lr=rate, weight_decay=0.1)
    hooks = [
        StepHook(optimizer, lambda: method.gradient_transforms(model), "gradient").attach(),
        StepHook(optimizer, lambda: method.step_transforms(model)).attach(),
    ]
    method.loss(model, batch_of(2, 1)).backward()
    before = {name: (A, B) for name, A, B in newest(model)}
    raw = {
        name: [p["default"].grad[0].double().clone() for p in (m.pool_lora_A, m.pool_lora_B)]
        for name, m in pool_layers(model).items()
    }
    optimizer.step()
    for hook in hooks:
        hook.detach()
    for name, A, B in newest(model):
        (A_0, B_0), (dA, dB), F = before[name], raw[name], method.protected[name].double()
        assert F.numel()
        off = torch.eye(len(F)).double() - F @ F.mT
        T = tangent(dA @ off, A_0)
        step = tangent((-rate * (T + 0.1 * A_0)) @ off, A_0)  # decay is no way to go
        torch.testing.assert_close(A, factor((A_0 + step) @ off), atol=1e-5, rtol=0)
        c = torch.linalg.svdvals(B_0).mean()
        moved = B_0 - rate * (tangent(dB, B_0 / c, scaled=True) + 0.1 * B_0)
        mean = torch.linalg.svdvals(moved).mean()
        torch.testing.assert_close(B, mean * factor(moved), atol=1e-6, rtol=1e-4)
        assert (A - A_0).norm() > 1e-4


def test_a_later_task_has_nothing_in_past_gradients():
    method, model = taught()
    past = {name: F.double() for name, F in method.protected.items()}
    learn(method, model, task=2, steps=6)
    for name, A, B in newest(model):
        assert past[name].numel() and (B.mT @ A).norm() > 1e-3
        assert (A @ past[name]).norm() < 1e-5
        F = method.protected[name].double()
        assert torch.equal(F[:, : past[name].shape[1]], past[name])
        torch.testing.assert_close(F.mT @ F, torch.eye(F.shape[1]).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.99, 0.5])
def test_what_is_protected_is_what_the_mean_gradient_asks_for(share):
    method, model = taught(share=share, samples=8)
    expected = gradients(model, batches(1, 2))  # two batches of four, at the finished weights
    for name, F in method.protected.items():
        room = min(32, len(F) - SMALL["rank"])
        none = torch.zeros(len(F), 0).double()
        wanted = energy_basis(none, expected[name].double().mT, share, room)
        assert wanted.numel()
        same_span(F, wanted, atol=0.02)  # the last directions are small
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_directions_keep_free_room_and_a_task_adds_at_most_so_many():
    method, _ = taught(tasks=3, steps=2, share=1.0, most=9)
    sizes = {(F.shape[0], F.shape[1]) for F in method.protected.values()}
    assert sizes == {(24, 24 - SMALL["rank"]), (40, 27)}


def test_directions_are_float32_though_a_trainer_has_cast_the_experts_before_they_were_bound():
    method = EbLora(**SMALL)
    model = attached(method).bfloat16()
    for p in model.parameters():
        p.data = p.data.bfloat16()
    method.forget(model)
    assert {F.dtype for F in method.protected.values()} == {torch.float32}


def test_without_the_trainers_data_a_task_cannot_end():
    method, model = taught()
    with pytest.raises(ConfigError, match="on_train_end with train_dataloader"):
        method.task_end(model)


def test_the_adapter_answers_without_the_method_inside_a_task_too(tmp_path):
    method, said = EbLora(**SMALL), []
    model = attached(method)

    def save(step):
        if step == 3:
            method.save_state(model, tmp_path)
            said.append(logits(model))
            model.train()

    learn(method, model, steps=4, on_step=save)
    loaded = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)
    assert torch.equal(logits(loaded), said[0])
