"""Models with an adapter under torch.compile, and merged ones under torch.export."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from undrift.methods.finetune import Finetune
from undrift.methods.same import Same
from undrift.methods.steadylora import SteadyLora

IDS = torch.arange(3, 21).view(2, 9)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]


def adapted(kind):
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    method = kind(experts=2, rank=2)
    model = method.attach(LlamaForCausalLM(llama))
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    return method, model


@pytest.mark.parametrize("kind", [Finetune, SteadyLora])
def test_a_merged_model_can_be_exported(kind):
    _, model = adapted(kind)

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(input_ids=ids, use_cache=False).logits

    merged = Logits(model.merge_and_unload().eval())
    with torch.no_grad():
        exported = torch.export.export(merged, (IDS,))
        torch.testing.assert_close(exported.module()(IDS), merged(IDS))


# both are provoked by dynamo itself while it traces an autograd Function
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", [SteadyLora, Same])
def test_a_compiled_model_learns_and_counts_as_it_does_otherwise(kind):
    """Traced by dynamo and autograd; no kernels are made, which takes minutes."""
    mask = torch.ones_like(IDS)
    mask[1, -2:] = 0
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        method, model = adapted(kind)
        method.task_start(model, 1, 10)
        model.train()
        call = torch.compile(model, backend="aot_eager") if compiled else model
        call(input_ids=IDS, attention_mask=mask, labels=IDS, use_cache=False).loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        sums = [t for each in method.statistics.values() for t in each.running().values()]
        found.append((grads, sums))
        assert {float(each.usage.tokens) for each in method.statistics.values()} == {16.0}
    torch.testing.assert_close(found[0], found[1])
    assert found[0][0] and found[0][1]
