"""One layer: any linear may be the base, and it is only called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.precision import assert_same
from undrift.core.routing import mixture
from undrift.tuner import ForwardContext, MoeLoraConfig, MoeLoraLayer

N, r, D_IN, D_OUT = 4, 3, 16, 12
LINEAR = 2 * D_IN + N * r  # roundings one after the other: W0 x, A x, and B of what comes out
CONFIG = MoeLoraConfig(num_experts=N, r=r, lora_alpha=6, collect=True)


class Int8Linear(nn.Module):
    """A stand-in for a quantised linear: integer weights, and an output that is not its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = x @ (self.weight * self.scale).mT
        return self.last


class Subclass(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(x.shape[0], -1, self.out_features)


def hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda module, args, out: out.mul(1.5))
    return linear


BASES = {
    "plain": lambda linear: linear,
    "int8": Int8Linear,
    "hooked": hooked,
    "view": lambda linear: Subclass(D_IN, D_OUT),
    "trained": lambda linear: linear.requires_grad_(True),
}


def wrap(base: nn.Module, config: MoeLoraConfig = CONFIG) -> MoeLoraLayer:
    layer = MoeLoraLayer(base, "layers.0.mlp.up_proj", ForwardContext())
    layer.update_layer("default", config)
    generator = torch.Generator().manual_seed(0)
    for masters in (layer.moe_lora_A, layer.moe_lora_B, layer.moe_lora_G):
        masters["default"].data.normal_(generator=generator)
    return layer


@pytest.mark.parametrize("kind", BASES)
def test_any_linear_may_be_the_base(kind):
    torch.manual_seed(0)
    base = BASES[kind](nn.Linear(D_IN, D_OUT).requires_grad_(False))
    layer = wrap(base)
    x = torch.randn(2, 5, D_IN, requires_grad=True)
    weight = torch.randn(2, 5, D_OUT)
    masters = [layer.moe_lora_A.default, layer.moe_lora_B.default, layer.moe_lora_G.default]
    wanted = [x, *masters, *(p for p in base.parameters() if p.requires_grad)]
    slow = base(x) + mixture(x, *masters, 2.0)
    expected = torch.autograd.grad((slow * weight).sum(), wanted)
    y = layer(x)
    assert_same(y, slow, LINEAR)
    for grad, want in zip(torch.autograd.grad((y * weight).sum(), wanted), expected, strict=True):
        assert_same(grad, want, LINEAR)


def test_the_output_of_a_base_that_keeps_it_is_not_written_into():
    base = Int8Linear(nn.Linear(D_IN, D_OUT))
    layer, x = wrap(base), torch.randn(5, D_IN)
    y = layer(x)
    assert base.last is not None
    assert torch.equal(base.last, base(x)) and not torch.allclose(base.last, y)


def test_what_hooks_of_the_base_have_seen_is_not_written_into():
    """A forward hook may keep the output, as those that watch activations do."""
    base, kept = nn.Linear(D_IN, D_OUT), []
    layer, x = wrap(base), torch.randn(5, D_IN)
    hook = base.register_forward_hook(lambda module, args, out: kept.append(out))
    y = layer(x)
    hook.remove()
    assert torch.equal(kept[0], base(x)) and not torch.allclose(kept[0], y)


def test_bitsandbytes_four_bit_base():
    bnb = pytest.importorskip("bitsandbytes")
    base = bnb.nn.Linear4bit(D_IN * 4, D_OUT * 4, bias=False, quant_type="nf4")
    base.load_state_dict({"weight": torch.randn(D_OUT * 4, D_IN * 4)})
    layer = wrap(base.to("cpu"))
    x = torch.randn(2, 5, D_IN * 4, requires_grad=True)
    y = layer(x)
    masters = (layer.moe_lora_A.default, layer.moe_lora_B.default, layer.moe_lora_G.default)
    assert_same(y, base(x) + mixture(x, *masters, 2.0), LINEAR)
    y.sum().backward()
    assert x.grad is not None and all(p.grad is not None for p in masters)


def test_the_constant_gate_weighs_all_alike_and_does_not_learn():
    layer = MoeLoraLayer(nn.Linear(D_IN, D_OUT), "linear", ForwardContext())
    layer.update_layer("default", MoeLoraConfig(num_experts=N, r=r, gate="constant", collect=True))
    layer.moe_lora_B.default.data.normal_()
    layer(torch.randn(7, D_IN)).sum().backward()
    assert not layer.moe_lora_G.default.requires_grad
    assert layer.moe_lora_A.default.requires_grad
    usage = layer.statistics("default").usage
    torch.testing.assert_close(usage.utilisation(), torch.full((N,), 1 / N, dtype=torch.float64))


def test_a_change_of_the_masters_is_seen_at_once():
    layer, x = wrap(nn.Linear(D_IN, D_OUT)).eval(), torch.randn(3, D_IN)
    masters = (layer.moe_lora_A.default, layer.moe_lora_B.default, layer.moe_lora_G.default)
    with torch.no_grad():
        layer(x)
        for p in masters:
            p.add_(0.1)
            assert_same(layer(x), layer.base_layer(x) + mixture(x, *masters, 2.0), LINEAR)


def test_an_optimiser_that_writes_past_the_versions_is_seen_in_the_next_forward_pass():
    model = nn.Sequential(wrap(nn.Linear(D_IN, D_OUT)))
    (layer,) = model
    layer.context = ForwardContext.attach(model)
    x = torch.randn(3, D_IN)
    masters = (layer.moe_lora_A.default, layer.moe_lora_B.default, layer.moe_lora_G.default)
    for _ in range(2):
        assert_same(model(x), layer.base_layer(x) + mixture(x, *masters, 2.0), LINEAR)
        for p in masters:
            p.data.add_(0.1)  # the version does not change
    model.eval()
    assert_same(model(x), layer.base_layer(x) + mixture(x, *masters, 2.0), LINEAR)


def test_frozen_experts_take_no_part_in_the_products():
    layer = wrap(nn.Linear(D_IN, D_OUT))
    layer.statistics("default").active.copy_(torch.tensor([True, False, True, False]))
    x = torch.randn(6, D_IN)
    y = layer(x)
    masters = (layer.moe_lora_A.default, layer.moe_lora_B.default, layer.moe_lora_G.default)
    active = torch.tensor([0, 2])
    assert_same(y, layer.base_layer(x) + mixture(x, *masters, 2.0, active), LINEAR)
    packed = layer._packed["default"][1]
    assert packed.AR.shape == (2 * r + 2, D_IN) and packed.Bt.shape == (2 * r, D_OUT)
    y.sum().backward()
    assert all(not p.grad[[1, 3]].any() and p.grad[[0, 2]].any() for p in masters)


def test_other_frozen_experts_are_packed_anew():
    layer, x = wrap(nn.Linear(D_IN, D_OUT)), torch.randn(6, D_IN)
    masters = (layer.moe_lora_A.default, layer.moe_lora_B.default, layer.moe_lora_G.default)
    for active in ([0, 2], [1, 2], [0, 1, 2, 3], [3]):
        each = layer.statistics("default").active
        each.fill_(False)
        each[active] = True
        expected = layer.base_layer(x) + mixture(x, *masters, 2.0, torch.tensor(active))
        assert_same(layer(x), expected, LINEAR)


def test_configuration_errors_name_the_key():
    for key, value in {
        "num_experts": 0,
        "top_k": 9,
        "gate": "sample",
        "token_fraction": 0.0,
    }.items():
        with pytest.raises(ValueError, match=key):
            MoeLoraConfig(**{key: value})
