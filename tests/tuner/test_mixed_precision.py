"""Masters in float32, products in bfloat16: routes and statistics are as if all were float32."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor

from tests.tuner.llava import randomise, tiny_batch, tiny_llava
from undrift.tuner import MoeLoraConfig, layers, statistics


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_routes_and_statistics_under_autocast_are_those_of_float32(base):
    torch.manual_seed(0)
    config = MoeLoraConfig(num_experts=4, r=3, collect=True, columns=16)
    model = peft.get_peft_model(tiny_llava().to(base), config, autocast_adapter_dtype=False).train()
    randomise(model)
    seen: dict[str, list[Tensor]] = {}
    for name, layer in layers(model).items():
        layer.watcher = lambda tokens, name=name: lambda *parts: seen.update({name: [*parts]})
    batch = tiny_batch((9, 9))
    batch["pixel_values"] = batch["pixel_values"].to(base)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch).loss.backward()
    assert len(seen) == 6
    for name, layer in layers(model).items():
        x, w, h, _ = seen[name]
        assert x.dtype == torch.bfloat16 and w.dtype == h.dtype == torch.float32, name
        exact = (x.double() @ layer.moe_lora_G["default"].detach().double().mT).softmax(-1)
        rounded = layer.moe_lora_G["default"].detach().bfloat16().mT
        assert (w - exact).abs().max() < 1e-4, name
        assert ((x @ rounded).float().softmax(-1) - exact).abs().max() > 1e-4  # it could be worse
        each = statistics(model)[name]
        for key, value in each.running().items():
            assert value.dtype in (torch.float32, torch.float64), f"{name} {key}"
        if each.owner is each:
            sketch = each._sketch
            C = x.double().mT @ x.double()
            torch.testing.assert_close(sketch.Y.double(), C @ sketch.Omega.double(), rtol=1e-5,
                                       atol=1e-5 * float(C.abs().max()))  # fmt: skip
        torch.testing.assert_close(each._z.total.double(), h.double().mT @ h.double(),
                                   rtol=1e-4, atol=1e-6)  # fmt: skip
    kinds = {p.grad.dtype for p in model.parameters() if p.grad is not None}
    assert kinds == {torch.float32}
