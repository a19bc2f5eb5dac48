"""Every family that can be built tiny: where its adapters are, and that answers stay unseen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.tuner.llava import adapted_names
from tests.tuner.tiny_families import READING, ROWS, SEEING, Inputs, family
from undrift.errors import ConfigError
from undrift.methods.base import Method
from undrift.methods.same import Same
from undrift.methods.steadylora import SteadyLora

pytestmark = pytest.mark.filterwarnings("ignore::Warning")

ALWAYS = ("falcon", "git", "gpt2", "mamba", "mllama", "phi4_multimodal")  # the others are slow
OTHERS = sorted({*SEEING, *READING} - {*ALWAYS})
FAMILIES = [*ALWAYS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
NEAR = {"rtol": 1e-4, "atol": 1e-4}  # float32 sums of 16 to 64 products, some layers deep
METHODS: dict[str, type[Method]] = {"same": Same, "steadylora": SteadyLora}
SMALL = {"experts": 2, "rank": 2, "targets": "all"}
# Whose shared experts PEFT's LoRA takes for the fused ones, see `methods.finetune`.
NOT_FOR_LORA = ("deepseek_v2", "deepseek_v3", "qwen3_next")


def attached(method: Method, model: Any) -> Any:
    """A model with adapters as if trained for long."""
    wrapped: Any = method.attach(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return wrapped


def example(inputs: Inputs, row: int) -> Inputs:
    """One example of a batch; the pieces of several pictures may be in one row."""

    def part(tensor: torch.Tensor) -> torch.Tensor:
        each = len(tensor) // ROWS
        return tensor[row * each : (row + 1) * each]

    return {name: part(tensor) for name, tensor in inputs.items()}


@torch.no_grad()
def logits(model: Any, inputs: Inputs) -> torch.Tensor:
    return model(**inputs).logits


def tokens_seen(model: Any, inputs: Inputs) -> dict[str, int]:
    """How many vectors each adapted module reads in one forward pass."""
    seen: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen[name] = given[0].shape[:-1].numel()

        return module.register_forward_pre_hook(hook)

    base = model.get_base_model()
    hooks = [watch(name, base.get_submodule(name)) for name in adapted_names(model)]
    logits(model, inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.foreign("6.2", "6.3", "6.4", "6.8")
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_read_the_text_and_nothing_else_and_start_as_the_base(name):
    model, inputs = family(name)
    before = logits(model, inputs)
    wrapped: Any = Same(**SMALL).attach(model)
    torch.testing.assert_close(logits(wrapped, inputs), before, **NEAR)
    expected = dict.fromkeys(adapted_names(wrapped), before.shape[:-1].numel())
    assert expected and tokens_seen(wrapped, inputs) == expected


@pytest.mark.foreign("6.1")
@pytest.mark.parametrize("name", FAMILIES)
def test_no_logit_depends_on_a_later_token(name):
    model, inputs = family(name)
    wrapped = attached(Same(**SMALL), model)
    ids = inputs["input_ids"].clone()
    ids[:, -1] = ids[:, -1] % 40 + 5  # another word
    assert not (ids == inputs["input_ids"])[:, -1].any()
    one, other = logits(wrapped, inputs), logits(wrapped, {**inputs, "input_ids": ids})
    torch.testing.assert_close(other[:, :-1], one[:, :-1], **NEAR)
    assert (other[:, -1] - one[:, -1]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_an_example_gets_the_same_logits_alone(name):
    model, inputs = family(name)
    wrapped = attached(Same(**SMALL), model)
    together = logits(wrapped, inputs)
    alone = torch.cat([logits(wrapped, example(inputs, row)) for row in range(ROWS)])
    torch.testing.assert_close(together, alone, **NEAR)
    assert torch.pdist(together[:, -1]).min() > 1e-3  # the examples do differ


def learnable(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.foreign("6.3", "6.7", "6.8")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_adapter_learns_in_a_step(name, method):
    model, inputs = family(name)
    # GIT's own tokens of a picture stand in front of the text: what belongs together is not known.
    weights = {"token_weights": "same"} if name == "git" else {}
    chosen = METHODS[method](**SMALL, **weights)
    if method == "steadylora" and name in NOT_FOR_LORA:
        with pytest.raises(ConfigError, match="fused experts"):
            chosen.attach(model)
        return
    wrapped = attached(chosen, model).train()
    chosen.task_start(wrapped, 1, 1)
    chosen.loss(wrapped, {**inputs, "labels": inputs["input_ids"]}).backward()
    idle = [
        name
        for name, p in learnable(wrapped)
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert not idle
