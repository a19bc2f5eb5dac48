"""many: the recursive merge by hand, by gradient descent, and led through tasks and files."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from tests.methods.training import SMALL, attached, batch_of, learn, logits, weights
from tests.precision import assert_same
from tests.tuner.llava import tiny_llava
from undrift.core.moment import History, MomentSketch
from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods.finetune import Finetune, factors
from undrift.methods.many import Many, Part, merge
from undrift.methods.shared.state import State
from undrift.methods.shared.task_zero import TaskZero

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
DIM, OUT, RIDGE = 5, 4, 0.1


def seen(x, columns=DIM, kept=DIM):
    """The history of these inputs alone."""
    sketch = MomentSketch(x.shape[1], columns)
    sketch.update(x)
    return History.empty(x.shape[1], kept).merge(sketch, 1.0)


def joined(history, x):
    sketch = MomentSketch(x.shape[1], x.shape[1])
    sketch.update(x)
    return history.merge(sketch, 1.0)


def tasks(number=3, rank=2):
    """Products and the inputs that each is right on: of different sizes and scales."""
    torch.manual_seed(0)
    return [
        (
            torch.randn(OUT, rank).double(),
            torch.randn(rank, DIM).double(),
            torch.randn(20 * (t + 1), DIM) * torch.rand(DIM) * (t + 1),
        )
        for t in range(number)
    ]


def least_squares(found, ridge=RIDGE):
    """(sum W_t C_t) (sum C_t + lambda I)^-1, lambda = ridge tr(sum C_t) / d."""
    C = [x.double().mT @ x.double() for _, _, x in found]
    total = sum(C)
    shift = ridge * total.trace() / DIM * torch.eye(DIM)
    return sum(B @ A @ c for (B, A, _), c in zip(found, C, strict=True)) @ (total + shift).inverse()


def one_by_one(found, rank, ridge=RIDGE):
    """The recursion: only the last merge and the sum of the moments are known."""
    past = history = None
    for B, A, x in found:
        parts = [Part(A, B, seen(x))]
        if past is not None:
            parts.append(Part(*past, history, merged=True))
        past = merge(parts, ridge, rank)
        history = seen(x) if history is None else joined(history, x)
    return past


def test_one_task_is_shrunk_by_the_ridge_alone():
    x = torch.diag(torch.tensor([2.0, 1.0]))  # C = diag(4, 1), lambda = 0.4 * 5 / 2 = 1
    A, B = merge([Part(torch.eye(2), torch.eye(2), seen(x, 2, 2))], 0.4, 2)
    torch.testing.assert_close(B @ A, torch.diag(torch.tensor([0.8, 0.5])).double())


def test_two_tasks_are_right_where_each_has_inputs():
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    one = Part(torch.tensor([[3.0, 5.0]]), torch.ones(1, 1), seen(first))
    two = Part(torch.tensor([[7.0, 4.0]]), torch.ones(1, 1), seen(second))
    A, B = merge([one, two], 1e-6, 1)
    torch.testing.assert_close(B @ A, torch.tensor([[3.0, 4.0]]).double(), rtol=1e-4, atol=1e-4)


def test_the_recursion_over_tasks_is_the_closed_form_of_all_of_them():
    found = tasks()
    A, B = one_by_one(found, rank=OUT)
    torch.testing.assert_close(B @ A, least_squares(found), rtol=1e-4, atol=1e-4)
    other = least_squares(found, 2 * RIDGE)
    assert (B @ A - other).abs().max() > 1e-2
    torch.testing.assert_close(B.mT @ B, torch.eye(OUT).double())


def test_the_merge_is_the_least_of_what_it_minimises():
    found = tasks()
    A, B = one_by_one(found, rank=OUT)
    total = sum(float(x.square().sum()) for _, _, x in found)

    def loss(W):
        wrong = sum(((W - b @ a) @ x.double().mT).square().sum() for b, a, x in found)
        return wrong + RIDGE * total / DIM * W.square().sum()

    W = (B @ A).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(W), W)
    assert gradient.abs().max() < 1e-3 * loss(W)


def test_what_is_cut_off_is_least_over_the_inputs():
    found = tasks()
    whole, x = least_squares(found), torch.cat([x for _, _, x in found]).double()
    C = x.mT @ x
    root = torch.linalg.cholesky(C + RIDGE * C.trace() / DIM * torch.eye(DIM))
    A, B = merge([Part(A, B, seen(x)) for B, A, x in found], RIDGE, 2)
    best = torch.linalg.svdvals(whole @ root)[2:].norm()
    torch.testing.assert_close(((whole - B @ A) @ root).norm(), best, rtol=1e-3, atol=1e-4)
    A, B = merge([Part(A, B, seen(x)) for B, A, x in found], RIDGE, OUT + 2)
    assert A.shape == (OUT + 2, DIM) and not A[OUT:].any() and not B[:, OUT:].any()
    torch.testing.assert_close(B @ A, whole, rtol=1e-4, atol=1e-4)


def test_equal_tasks_stay_as_they_are_whatever_a_sketch_leaves_out():
    torch.manual_seed(1)
    B, A = torch.randn(OUT, 2).double(), torch.randn(2, 40).double()
    inputs = [torch.randn(200, 40) * torch.linspace(0.2, 3, 40) for _ in range(2)]
    one, two = (seen(x, columns=8, kept=6) for x in inputs)
    assert int(one.k) == 6 and one.trace > one.s.sum()
    found = merge([Part(A, B, one, merged=True), Part(A, B, two)], 1e-9, 2)
    torch.testing.assert_close(found[1] @ found[0], B @ A, rtol=1e-6, atol=1e-6)


def test_nothing_seen_changes_nothing():
    B, A, _ = tasks()[0]
    found = merge([Part(A, B, History.empty(DIM, DIM))], RIDGE, 2)
    assert found[0] is A and found[1] is B


# ---------------------------------------------------------------- led through tasks


def deltas(method, model):
    return {name: each.delta() for name, each in method.as_lora(model).factors.items()}


class Inputs:
    """What each linear reads while a task is learned, of tokens that are no padding."""

    def __init__(self, method, model):
        self.method, self.seen = method, {name: [] for name in method._layers}
        self.handles = [
            layer.register_forward_pre_hook(
                lambda _, given, name=name: self.seen[name].append(given[0].detach())
            )
            for name, layer in method._layers.items()
        ]

    def moments(self, masks):
        for handle in self.handles:
            handle.remove()
        return {
            name: sum(
                (rows := x[mask != 0].double()).mT @ rows for x, mask in zip(xs, masks, strict=True)
            )
            for name, xs in self.seen.items()
        }


def taught(method, model, task, steps=3):
    """Learn a task; return its own products at the end, and the moments of its inputs."""
    inputs, own = Inputs(method, model), {}

    def look(step):
        if step == steps:
            own.update(deltas(method, model))

    learn(method, model, task, steps=steps, on_step=look)
    return own, inputs.moments([batch_of(task, step)["attention_mask"] for step in range(steps)])


def test_after_two_tasks_every_linear_is_the_closed_form_of_what_both_learned_and_read():
    method = Many(experts=8, rank=4, ridge=0.05)  # of a rank that nothing is cut off
    model = attached(method)
    first, C_1 = taught(method, model, 1)
    second, C_2 = taught(method, model, 2)
    merged = deltas(method, model)
    for name, W in merged.items():
        total = C_1[name] + C_2[name]
        shift = 0.05 * total.trace() / len(total) * torch.eye(len(total))
        by_hand = first[name].double() @ C_1[name] + second[name].double() @ C_2[name]
        by_hand = by_hand @ (total + shift).inverse()
        torch.testing.assert_close(W.double(), by_hand, rtol=1e-3, atol=1e-5)
        assert (W - second[name]).abs().max() > 1e-3


def test_a_remembered_base_is_a_task_that_adds_nothing():
    method = Many(experts=8, rank=4, ridge=0.05)
    model = attached(method)
    torch.manual_seed(3)
    tokens = {name: torch.randn(50, each.dim) for name, each in method.statistics.items()}
    for name, each in method.statistics.items():  # one input, one history
        tokens[name] = tokens[each.owner.name]
    method.remember(TaskZero({name: seen(x, 64, 64) for name, x in tokens.items()}))
    first, C_1 = taught(method, model, 1)
    for name, W in deltas(method, model).items():
        total = C_1[name] + tokens[name].double().mT @ tokens[name].double()
        shift = 0.05 * total.trace() / len(total) * torch.eye(len(total))
        by_hand = first[name].double() @ C_1[name] @ (total + shift).inverse()
        torch.testing.assert_close(W.double(), by_hand, rtol=1e-3, atol=1e-5)


def test_equal_weights_count_tasks_and_not_tokens():
    found = {}
    for kind in ("tokens", "equal"):
        method = Many(**SMALL, task_weights=kind)
        model = attached(method)
        for task, steps in ((1, 6), (2, 2)):
            learn(method, model, task, steps=steps)
        counted = {float(each.history.tokens) for each in method.statistics.values()}
        assert counted == ({2.0} if kind == "equal" else counted) and len(counted) == 1
        found[kind] = weights(model)
    assert any(
        not torch.equal(value, found["equal"][key]) for key, value in found["tokens"].items()
    )


def test_a_task_begins_from_zero_and_ends_with_the_merge():
    method = Many(**SMALL)
    model = attached(method)
    learn(method, model, 1, steps=2)
    after, seen_at = weights(model), []

    def look(step):
        if step == 1:
            seen_at.append({k: v.clone() for k, v in method._past.items()})

    learn(method, model, 2, steps=1, on_step=look)
    for name, layer in method._layers.items():
        A, _ = factors(layer, "default")
        key = next(k for k in after if name in k and "lora_A" in k)
        assert torch.equal(seen_at[0][f"{name}.past_A"], after[key])
        assert not torch.equal(A, after[key])
    assert method._past == {}
    plain = Finetune(**SMALL)  # what the second task starts with answers as the base does
    other = Many(**SMALL)
    model = attached(other)
    learn(other, model, 1, steps=2)
    other._step = 0
    other.task_start(model, 2, 1)
    assert_same(logits(model), logits(tiny_llava()))
    assert logits(model).equal(logits(attached(plain)))


def test_a_task_that_is_begun_anew_leaves_the_merge_alone():
    class Stop(Exception):
        pass

    def stop(step):
        raise Stop

    kept = []
    for stopped in (False, True):
        method = Many(**SMALL)
        model = attached(method)
        learn(method, model, 1, steps=2)
        if stopped:
            with pytest.raises(Stop):
                learn(method, model, 3, steps=2, on_step=stop)
        learn(method, model, 2, steps=2)
        kept.append(weights(model))
    for key, value in kept[0].items():
        torch.testing.assert_close(kept[1][key], value, rtol=0, atol=0)


def test_a_task_that_was_saved_inside_is_merged_when_the_next_begins(tmp_path):
    method, expected, begun = Many(**SMALL), {}, {}
    model = attached(method)
    learn(method, model, 1, steps=2)

    def save(step):
        for name, layer in method._layers.items() if step == 2 else ():
            each, (A, B) = method.statistics[name], factors(layer, "default")
            past = (method._past[f"{name}.past_{key}"] for key in "AB")
            own = Part(A.detach(), B.detach(), each.history_of_task())
            parts = [own, Part(*past, each.history, merged=True)]
            expected[name] = merge(parts, method.config.ridge, len(A))
        if step == 2:
            model.save_pretrained(tmp_path)

    learn(method, model, 2, steps=3, on_step=save)
    loaded = PeftModel.from_pretrained(tiny_llava(), tmp_path, is_trainable=True)
    last = Many(**SMALL)
    learn(last, loaded, 3, steps=1, on_step=lambda step: begun.update(last._past))
    for name, (A, B) in expected.items():
        found = begun[f"{name}.past_B"] @ begun[f"{name}.past_A"]
        torch.testing.assert_close(found, (B @ A).float(), rtol=1e-4, atol=1e-5)
    assert {int(each.tasks) for each in last.statistics.values()} == {3}
    assert last.task_index == 4 and last._past == {}


def test_the_merge_of_one_model_is_not_taken_for_that_of_another():
    method = Many(**SMALL)
    model = attached(method)
    learn(method, model, 1, steps=2)
    method.task_start(model, 2, 2)
    assert method._past
    method.bind(model)
    assert method._past
    method.bind(attached(Finetune(**SMALL)))
    assert method._past == {}


def test_the_files_of_another_adapter_are_refused(tmp_path):
    method = Many(**SMALL)
    model = attached(method)
    learn(method, model, 1, steps=2)
    found = {}

    def look(step):
        if step == 1:
            method.before_save(model)
            found.update({k: v.clone() for k, v in method.state(model).tensors.items()})

    learn(method, model, 2, steps=2, on_step=look)
    key = next(k for k in found if k.endswith("past_B"))
    method.restore(model, State(found))
    with pytest.raises(AdapterMismatch, match="past_B is"):
        method.restore(model, State(found | {key: torch.zeros(1, 1)}))
    with pytest.raises(AdapterMismatch, match="lacks a part of the merge"):
        method.restore(model, State({k: v for k, v in found.items() if k != key}))


def test_no_moment_of_bs_input_is_kept_and_steps_are_free():
    method = Many(**SMALL)
    model = attached(method)
    learn(method, model, 1, steps=2)
    assert all(each.cz.numel() == 0 for each in method.statistics.values())
    assert not method.transforms_steps and method.remembers
    with pytest.raises(ConfigError, match="token_fraction is 0"):
        Many(token_fraction=0.0)
