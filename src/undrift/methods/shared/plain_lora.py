"""The plain LoRA that an adapter comes to, where what it adds is one product whatever is read.

    y = W0 x + s B A x        A (R, d_in), B (d_out, R)

PEFT's LoRA is one already. A pool whose experts all count 1, and experts whose route is fixed, are
one with their factors laid side by side; so is OSF, the difference of two products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.tensor_files import check_finite, save_tensors
from undrift.tuner import MoeLoraLayer, PoolLoraLayer
from undrift.tuner.peft_internals import (
    SAFETENSORS_WEIGHTS_NAME,
    BaseTunerLayer,
    Conv1D,
    LoraLayer,
    ModulesToSaveWrapper,
    OSFLayer,
    osf_factors,
)
from undrift.tuner.targets import is_linear

WAYS_OUT = (
    "export it with --distil, which fits a plain LoRA to it and says what that costs, or train "
    "method steadylora, whose adapter is a plain LoRA"
)
_LEAVE_BASE = (True, False, "gaussian", "eva", "orthogonal")  # ways to begin a LoRA
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes, from 8
_SERVED = frozenset(
    "q_proj k_proj v_proj o_proj qkv_proj out_proj gate_proj up_proj down_proj gate_up_proj "
    "fc1 fc2 query_key_value dense dense_h_to_4h dense_4h_to_h w1 w2 w3".split()
)


@dataclass(frozen=True)
class Factors:
    """What is added to one linear, s B A.

    Args:
        A: (R, d_in).
        B: (d_out, R).
        scale: s.
    """

    A: Tensor
    B: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """R."""
        return self.A.shape[0]

    def delta(self) -> Tensor:
        """Compute s B A, (d_out, d_in) float32."""
        return self.scale * (self.B.float() @ self.A.float())


@dataclass(frozen=True)
class PlainLora:
    """A LoRA that no method is needed for.

    Args:
        factors: By the linear's name in the base model.
        modules: Tensors of modules that were trained in full, by their names in the base model.
        whole: The names of these modules.
        transposed: Whether the linears are `Conv1D`, whose weights lie the other way round.
    """

    factors: Mapping[str, Factors]
    modules: Mapping[str, Tensor]
    whole: tuple[str, ...] = ()
    transposed: bool = False

    @property
    def rank(self) -> int:
        """The largest rank of a linear, which is that of the file."""
        return max(each.rank for each in self.factors.values())


def plain_lora(model: nn.Module, expert: int | None = None) -> PlainLora:
    """Read the plain LoRA off a model's active adapter.

    Args:
        model: A PeftModel.
        expert: Of a pool, that expert alone, from 0, which is on every linear.

    Returns:
        It.

    Raises:
        ConfigError: If there is none, with the way to one.
    """
    wrapped = peft_model(model)
    adapter = active_adapter(wrapped)
    kind = str(getattr(wrapped.peft_config[adapter].peft_type, "value", "of its own"))
    found: dict[str, Factors] = {}
    transposed = False
    for name, layer in adapted_linears(wrapped, adapter).items():
        found[name] = _factors(name, layer, adapter, kind, expert)
        transposed = transposed or isinstance(layer.get_base_layer(), Conv1D)
    if not found:
        raise ConfigError(
            f"an adapter of type {kind} adds nothing to linears, so no LoRA answers as it does; "
            "train method steadylora, whose adapter is a plain LoRA"
        )
    made = PlainLora(found, *trained_in_full(wrapped, adapter), transposed)
    _check_is_all(made, wrapped, adapter)
    return made


def _check_is_all(made: PlainLora, model: PeftModel, adapter: str) -> None:
    """Make sure that products and whole modules are all that PEFT would save of a LoRA."""
    config = model.peft_config[adapter]
    if not isinstance(config, LoraConfig):
        return
    if config.init_lora_weights not in _LEAVE_BASE:
        raise ConfigError(
            f"a LoRA begun with init_lora_weights={config.init_lora_weights!r} has changed weights "
            "of the base, so its products alone are not what it adds; save it with PEFT's "
            "path_initial_model_for_weight_conversion first"
        )
    saved = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    known = {f"{name}.lora_{side}.weight" for name in made.factors for side in "AB"}
    known |= made.modules.keys()
    if more := sorted(key for key in saved if key.removeprefix("base_model.model.") not in known):
        raise ConfigError(
            f"the adapter has more than LoRAs on linears and whole modules: {more[0]}"
            f"{f' and {len(more) - 1} more' * (len(more) > 1)}; merge it with PEFT's own "
            "merge_and_unload"
        )


def adapted_linears(model: PeftModel, adapter: str) -> dict[str, BaseTunerLayer]:
    """Find the linears that an adapter is on, by the name they have in the base model."""
    return {
        name: layer
        for name, layer in model.get_base_model().named_modules()
        if is_linear(layer)
        and isinstance(layer, BaseTunerLayer)
        and any(adapter in getattr(layer, held, ()) for held in layer.adapter_layer_names)
    }


def trained_in_full(model: PeftModel, adapter: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the tensors of modules that are trained beside an adapter, and the modules' names."""
    tensors: dict[str, Tensor] = {}
    names: list[str] = []
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            names.append(name)
            own = module.modules_to_save[adapter].state_dict()
            tensors |= {f"{name}.{key}": value.detach() for key, value in own.items()}
    return tensors, tuple(names)


@torch.no_grad()
def _factors(name: str, layer: Any, adapter: str, kind: str, expert: int | None) -> Factors:
    if isinstance(layer, OSFLayer):
        A, B = osf_factors(layer, adapter)
        return Factors(A.detach(), B.detach(), 1.0)
    if isinstance(layer, LoraLayer):
        return _of_lora(name, layer, adapter)
    if isinstance(layer, MoeLoraLayer):
        config, experts = layer.moe_lora_config[adapter], len(layer.moe_lora_A[adapter])
        if experts > 1 and (config.gate != "constant" or config.top_k is not None):
            raise ConfigError(
                f"its experts are chosen by token, so it is no plain LoRA; {WAYS_OUT}"
            )
        pairs = [(layer.moe_lora_A[adapter], layer.moe_lora_B[adapter])]
        return _side_by_side(pairs, config.scale / experts)
    if isinstance(layer, PoolLoraLayer):
        config = layer.pool_lora_config[adapter]
        if expert is not None:
            A, B = (torch.cat([past[adapter], new]) for new, past in layer.pairs(adapter))
            own = slice(expert, expert + 1)
            return _side_by_side([(A[own], B[own])], config.scale)
        if config.gates != "all":
            raise ConfigError(
                "its experts are weighed by prompt, so it is no plain LoRA; export that of one "
                f"task with --task NAME, where each has its own; or {WAYS_OUT}"
            )
        (A, past_A), (B, past_B) = layer.pairs(adapter)
        return _side_by_side([(past_A[adapter], past_B[adapter]), (A, B)], config.scale)
    raise ConfigError(
        f"{name} has an adapter of type {kind}, of which no plain LoRA is known to undrift; merge "
        "it with PEFT's own merge_and_unload, or train method steadylora"
    )


def _of_lora(name: str, layer: LoraLayer, adapter: str) -> Factors:
    A, B = (dict(held.items()).get(adapter) for held in (layer.lora_A, layer.lora_B))
    variant = getattr(layer, "lora_variant", {}).get(adapter) is not None
    biased = getattr(B, "bias", None) is not None
    if not (isinstance(A, nn.Linear) and isinstance(B, nn.Linear)) or variant or biased:
        raise ConfigError(
            f"the LoRA on {name} is of a variant (DoRA, a bias, an embedding) that is more than a "
            "product; merge it with PEFT's own merge_and_unload"
        )
    return Factors(A.weight.detach(), B.weight.detach(), float(layer.scaling[adapter]))


def _side_by_side(pairs: list[tuple[Tensor, Tensor]], scale: float) -> Factors:
    """Lay experts A (n, r, d_in) and B transposed (n, r, d_out) side by side."""
    A = torch.cat([a.detach().float().flatten(0, 1) for a, _ in pairs])
    B = torch.cat([b.detach().float().flatten(0, 1) for _, b in pairs]).mT
    return Factors(A, B, scale)


# ---------------------------------------------------------------- as PEFT's files


def write_lora(lora: PlainLora, folder: Path, model: nn.Module, base: str, *, text: bool) -> None:
    """Write a plain LoRA as PEFT does, in the form that servers' loaders take.

    One rank and one alpha for all linears: smaller ones are filled up with zeros, which changes no
    product.

    Args:
        lora: It.
        folder: A folder that is there.
        model: The model without or with adapters, in which names must be told apart.
        base: What the base model is loaded by: a Hub name or a folder.
        text: Whether it is a text-only causal language model.

    Raises:
        TrainingDiverged: If a tensor is not finite; nothing was written.
        RunDirError: If it cannot be written.
    """
    rank = lora.rank
    scales = {each.scale for each in lora.factors.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    tensors: dict[str, Tensor] = {}
    for name, each in lora.factors.items():
        own = each.scale / scale if scale else 1.0
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = _filled(each.A.float(), rank, 0)
        tensors[f"{key}.lora_B.weight"] = _filled(each.B.float() * own, rank, 1)
    for name, value in lora.modules.items():
        tensors[f"base_model.model.{name}"] = value.cpu().contiguous()
    file = folder / SAFETENSORS_WEIGHTS_NAME
    check_finite(tensors, file)
    alpha = scale * rank
    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if math.isclose(alpha, round(alpha)) else alpha,  # pyright: ignore[reportArgumentType]
        target_modules=_ends(model, list(lora.factors)),
        modules_to_save=list(lora.whole) or None,
        fan_in_fan_out=lora.transposed,
        task_type="CAUSAL_LM" if text else None,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.target_modules = _ends(model, list(lora.factors))  # PEFT made a set of it
    config.save_pretrained(str(folder))
    save_tensors(tensors, file)


def _filled(factor: Tensor, rank: int, dim: int) -> Tensor:
    """Fill a factor up to a rank, in a layout and a memory of its own."""
    shape = list(factor.shape)
    shape[dim] = rank
    made = torch.zeros(shape)
    made.narrow(dim, 0, factor.shape[dim]).copy_(factor)
    return made


def _ends(model: nn.Module, names: list[str]) -> list[str]:
    """The ends of the names of linears, where they mean these and no others; else whole names."""
    base: Any = peft_model(model).get_base_model()
    ends = sorted({name.rpartition(".")[2] for name in names})
    places = {name.removesuffix(".base_layer") for name, _ in base.named_modules()}
    meant = {place for place in places if place.rpartition(".")[2] in ends}
    return ends if meant == set(names) else names


def about_serving(lora: PlainLora) -> list[str]:
    """Say what vLLM has to be told to serve a plain LoRA, and what it would not take.

    Args:
        lora: It.

    Returns:
        Sentences.
    """
    fitting = next((each for each in _RANKS if each >= lora.rank), None)
    said = [
        f"rank {lora.rank}: vLLM needs --enable-lora --max-lora-rank {fitting} (by itself 16)"
        if fitting
        else f"rank {lora.rank}: vLLM takes none above {_RANKS[-1]}; export with --to merged"
    ]
    strange = sorted({name.rpartition(".")[2] for name in lora.factors} - _SERVED)
    if strange or lora.transposed:
        said.append(
            f"vLLM may refuse the targets {', '.join(strange)}; --to merged is always taken"
        )
    if lora.whole:
        said.append(
            f"{', '.join(lora.whole)} was trained in full (modules_to_save): PEFT loads it, vLLM "
            "and llama.cpp refuse it; export with --to merged for them"
        )
    return said
