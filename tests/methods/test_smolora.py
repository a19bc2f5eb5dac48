from __future__ import annotations

import pytest
import torch

from tests.methods.training import SMALL, attached, batch_of, learn
from undrift.errors import ConfigError
from undrift.methods.smolora import SMoLora
from undrift.tuner.pool_lora import gate_context, pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LENGTHS = (9, 12, 7, 10)


def made(**options):
    method = SMoLora(**{**SMALL, **options})
    model = attached(method)
    for layer in pool_layers(model).values():  # as if it had learned something
        torch.nn.init.normal_(layer.pool_lora_B["default"], std=0.3)
    method.start_history(model)
    return method, model


def question(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def routes(model):
    """What the last forward pass chose, by linear, (B, N)."""
    context = gate_context(model)
    return {name: context.gates_of(name).chosen for name in pool_layers(model)}


def test_the_output_is_the_fused_sum_of_one_expert_of_each_group():
    method, model = made()
    name, layer = next(iter(pool_layers(model).items()))
    routing = method.gate.linears[0]
    seen = {}
    hook = layer.register_forward_hook(lambda module, args, out: seen.update(x=args[0], y=out))
    model.eval()
    with torch.no_grad():
        model(**question(batch_of(1, 5)))
        hook.remove()
        x, chosen = seen["x"], routes(model)[name]
        A, B = layer.pool_lora_A["default"], layer.pool_lora_B["default"]
        for row, length in enumerate(LENGTHS):
            for place in range(length):
                token = x[row, place]
                parts = [2.0 * chosen[row, i] * (token @ A[i].T @ B[i]) for i in range(4)]
                u, v = parts[0] + parts[1], parts[2] + parts[3]
                a, b = torch.stack([routing.fusion[0] @ u, routing.fusion[1] @ v]).softmax(0)
                wanted = layer.base_layer(token) + a * u + b * v
                torch.testing.assert_close(seen["y"][row, place], wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(chosen[:, :2].sum(1), torch.ones(4))
    assert torch.equal(chosen[:, 2:].sum(1), torch.ones(4))


@pytest.mark.parametrize("gate_grad", ["none", "straight_through"])
def test_routers_move_in_the_first_task_at_most(gate_grad):
    method, model = made(gate_grad=gate_grad)
    soft = gate_grad == "straight_through"

    def moved(task):
        before = {n: p.clone() for n, p in model.state_dict().items() if "undrift_gate" in n}
        learn(method, model, task=task, steps=3)
        after = model.state_dict()
        return {n.rpartition(".")[2] for n, p in before.items() if not torch.equal(p, after[n])}

    assert moved(1) == ({"seen", "asked", "fusion"} if soft else {"fusion"})
    assert moved(2) == {"fusion"}


def test_the_size_of_the_groups_is_checked():
    with pytest.raises(ConfigError, match="experts is 3, expected an even number"):
        SMoLora(experts=3)
