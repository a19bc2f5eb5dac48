"""The step hook: exact in step space, which the gradient is not; what it refuses; shards."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.nn import Parameter

from tests.precision import assert_same, rounding
from undrift.core import naive, steps
from undrift.core.step_hook import StepHook
from undrift.errors import ConfigError

D, N, K = 16, 4, 5
WEIGHT = 3.0  # the largest of `train`'s, about


@pytest.fixture
def basis():
    X = torch.randn(60, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X *= torch.arange(1, D + 1).rsqrt()
    V, s = naive.spectrum(X.mT @ X / 60)
    return V[:, :K].float().contiguous(), s[:K].float()


class Wrapped:
    """As accelerate does it: a wrapper whose own hooks do not work."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def train(turn, space="step", steps_total=50):
    """Fifty AdamW steps with weight decay on a moving target; the raw steps, and the parameter."""
    torch.manual_seed(3)
    W = Parameter(torch.randn(N, D))
    start = W.detach().clone()
    raw = []

    def recorded(step):
        raw.append(step.clone())
        return turn(step)

    optimizer = torch.optim.AdamW([W], lr=1e-2, weight_decay=0.1)
    hook = StepHook(Wrapped(Wrapped(optimizer)), lambda: {W: recorded}, space).attach().attach()
    for _ in range(steps_total):
        optimizer.zero_grad()
        x = torch.randn(32, D)
        ((x @ W.mT - x.roll(1, 1)[:, :N]) ** 2).mean().backward()
        optimizer.step()
    hook.detach()
    return W.detach() - start, raw


@pytest.mark.parametrize("lambda_par", [0.0, 0.1, 1.0])
def test_the_routers_change_inside_v_par_is_the_sum_of_the_transformed_steps(basis, lambda_par):
    V, s = basis
    g = steps.gain(s, 1, 1.0, clamp=True)
    moved, raw = train(lambda dW: steps.router_step(dW, V, g, lambda_par, 1.0))
    assert len(raw) == 50
    expected = lambda_par * (sum(raw) @ V) * g
    assert_same(
        moved @ V, expected, terms=len(raw), scale=WEIGHT
    )  # the weight is rounded each time
    assert (moved - moved @ V @ V.mT).norm() > 0.1  # and outside it is free
    if lambda_par == 0:
        assert (moved @ V).abs().max() <= rounding(len(raw)) * WEIGHT


def test_projecting_the_gradient_does_not_hold_the_router(basis):
    V, s = basis
    moved, _ = train(lambda dW: steps.router_step(dW, V, s, 0.0, 1.0), space="gradient")
    assert (moved @ V).abs().max() > 1e-2


def test_with_both_turned_adam_sizes_the_step_by_what_is_free():
    """A gradient of 100 v + u with v held: its signs are those of v, so Adam's step has no u."""
    v, u = torch.tensor([1.0, 1.0]) / 2**0.5, torch.tensor([1.0, -1.0]) / 2**0.5
    moved = {}
    for spaces in (["step"], ["gradient", "step"]):
        W = Parameter(torch.zeros(1, 2))
        optimizer = torch.optim.Adam([W], lr=1e-3)
        for space in spaces:
            StepHook(optimizer, lambda W=W: {W: lambda step: step - (step @ v) * v}, space).attach()
        for _ in range(10):
            W.grad = -(100 * v + u)[None]
            optimizer.step()
        moved[len(spaces)] = W.detach() @ u
        assert_same(W.detach() @ v, torch.zeros(1), terms=10, scale=10 * 1e-3)
    assert moved[2] == pytest.approx(10 * 1e-3 * 2**0.5, rel=1e-4)
    assert moved[1].abs() < 0.1 * moved[2]


def test_rows_given_a_step_of_zero_are_bit_identical_whatever_momentum_and_decay_do():
    def freeze_two(step):
        step[:2] = 0
        return step

    moved, raw = train(freeze_two)
    assert torch.equal(moved[:2], torch.zeros(2, D))
    assert sum(raw)[:2].norm() > 0.1
    assert moved[2:].abs().min() > 0


def test_parameters_are_looked_up_anew_at_every_step():
    first, second = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    current = [first]
    optimizer = torch.optim.SGD([first, second], lr=1.0)
    StepHook(optimizer, lambda: {current[0]: lambda step: 0 * step}).attach()
    for held in (first, second):
        current[0] = held
        first.grad = second.grad = torch.ones(2)
        optimizer.step()
    assert first.tolist() == second.tolist() == [-1.0, -1.0]


def test_detached_is_gone(basis):
    W = Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([W], lr=1.0)
    hook = StepHook(optimizer, lambda: {W: lambda step: 0 * step}).attach()
    hook.detach()
    W.grad = torch.ones(3)
    optimizer.step()
    assert W.tolist() == [-1.0] * 3


def test_refusals_say_what_to_do():
    flat = Parameter(torch.zeros(4))
    flat._is_flat_param = True
    with pytest.raises(ConfigError, match=r"FSDP1.*DDP or FSDP2"):
        StepHook(torch.optim.SGD([flat]), dict)
    DeepSpeedOptimizerWrapper = type("DeepSpeedOptimizerWrapper", (Wrapped,), {})
    with pytest.raises(ConfigError, match="DeepSpeed"):
        StepHook(DeepSpeedOptimizerWrapper(torch.optim.SGD([Parameter(torch.zeros(1))])), dict)
    with pytest.raises(ConfigError, match="steps of a str"):
        StepHook("adam", dict)


def test_a_sharded_parameter_is_turned_as_a_whole(tmp_path):
    """FSDP2 keeps DTensors; the metric of B joins rows that may lie in different shards."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        p = Parameter(distribute_tensor(torch.zeros(4, 3), mesh, [Shard(0)]))
        optimizer = torch.optim.SGD([p], lr=1.0)
        mix = torch.randn(4, 4)
        StepHook(optimizer, lambda: {p: lambda step: mix @ step}).attach()
        g = torch.randn(4, 3)
        p.grad = distribute_tensor(g, mesh, [Shard(0)])
        optimizer.step()
        assert isinstance(p.data, DTensor)
        assert p.placements == (Shard(0),)
        whole = p.redistribute(placements=[Replicate()]).to_local()
        torch.testing.assert_close(whole, -mix @ g)
    finally:
        torch.distributed.destroy_process_group()
