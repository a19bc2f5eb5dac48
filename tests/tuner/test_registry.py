"""Targets in every class that transformers has for answers, and the page that says so.

`UNDRIFT_WRITE_DOCS=1` writes the tables of docs/models.md anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from torch import nn

from tests.tuner.tiny_families import READING, SEEING, family
from undrift.errors import ConfigError
from undrift.tuner import find_targets
from undrift.tuner.targets import Linear, blocks, has_fused_experts, linears

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::Warning"),
    pytest.mark.foreign("6.2", "6.3", "6.4", "6.6", "6.8"),
]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- written by tests/tuner/test_registry.py -->", "<!-- end -->"
PINNED = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
IS_PINNED = PINNED is not None and hf.__version__ == PINNED[1]

# What a default configuration lacks, by model_type.
LACKS: dict[str, dict[str, Any]] = {
    "aya_vision": {
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 64, "num_attention_heads": 4,
        },
    },
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "emu3": {"vocabulary_map": {"<image>": 1}},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
}  # fmt: skip
TIMM = "its vision tower needs timm"
DEFAULT = "its default configuration makes no model"
NOT_BUILT = {
    "CohereCompassForCausalLM": DEFAULT,
    "CohereCompassForConditionalGeneration": DEFAULT,
    "DeepseekOcr2ForConditionalGeneration": DEFAULT,
    "DiffusionGemmaForBlockDiffusion": DEFAULT,
    "FastVlmForConditionalGeneration": TIMM,
    "Gemma3nForConditionalGeneration": TIMM,
    "Gemma4AssistantForCausalLM": DEFAULT,
    "Gemma4UnifiedAssistantForCausalLM": DEFAULT,
    "Granite4VisionForConditionalGeneration": DEFAULT,
    "PerceptionLMForConditionalGeneration": TIMM,
    "Qwen4ExpForCausalLM": DEFAULT,
    "Qwen4ExpForConditionalGeneration": DEFAULT,
}
REFUSED = {
    "BltForCausalLM": "several models under one get_decoder, of bytes and of patches",
    "PI0ForConditionalGeneration": "moves a robot: its decoder gives actions",
}
# Whose blocks have no FFN, or one without linears that is no mixture of experts.
NO_FFN = {"FalconMambaForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM"}
NO_ATTENTION = {"XLNetLMHeadModel"}  # it holds tensors
# Independent of how targets are found: no name of theirs may have this in it.
FORBIDDEN = re.compile(
    r"vision|visual|image|audio|speech|video|multi_modal|projector|connector|qformer|perceiver|"
    r"resampler|merger|protein_encoder|(^|\.)(lm_)?head|embed_|embeddings?\.|router|indexer|expert_gate|\.gate$|\.gate\.|"
    r"m(ixer|amba)\.dt_proj|cross_?attn\.(k|v)_|crossattention\.self\.(key|value)"
)


def classes() -> Iterator[tuple[type, Any]]:
    """Every class of the two registries, with a configuration class of its own."""
    seen = set()
    for mapping in (hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, hf.MODEL_FOR_CAUSAL_LM_MAPPING):
        for config, kinds in mapping.items():
            for kind in kinds if isinstance(kinds, tuple | list) else (kinds,):
                if kind not in seen:
                    seen.add(kind)
                    yield config, kind


def built(config: Any, kind: Any) -> Any:
    """A class on the meta device, of its default configuration, or of the text in that."""
    made = config(**LACKS.get(config.model_type, {}))
    with torch.device("meta"):
        try:
            return kind(made)
        except Exception:
            text = made.get_text_config(decoder=True)
            if text is made:
                raise
            return kind(text)


class Found(NamedTuple):
    """What there is in a class, and which of its targets are wrong."""

    linears: list[Linear]
    fused: int
    wrong: list[str]

    @property
    def kinds(self) -> set[str]:
        return {each.kind for each in self.linears if not each.never}


@cache
def everything() -> Mapping[str, Found | str]:
    """By class; why not, where it was not built."""
    found: dict[str, Found | str] = {}
    for config, kind in classes():
        try:
            model = built(config, kind)
        except Exception as error:
            found[kind.__name__] = str(error).strip().partition("\n")[0]
            continue
        fused = sum(map(has_fused_experts, blocks(model).values()))
        found[kind.__name__] = Found(linears(model), fused, wrong(model))
    return found


def made() -> dict[str, Found]:
    return {name: each for name, each in everything().items() if isinstance(each, Found)}


def wrong(model: Any) -> list[str]:
    """Targets outside the language model, or of a kind that cannot be adapted."""
    try:
        targets = find_targets(model, "all")
    except ConfigError as error:
        return [str(error)]
    modules = dict(model.named_modules())
    decoder = model.get_decoder()
    towers = [
        name
        for name, module in modules.items()
        if getattr(module, "main_input_name", "input_ids") != "input_ids"
        and all(part is not decoder for part in module.modules())
    ]
    never = {each.name for each in linears(model) if each.never}
    matched = {name for name in modules if re.fullmatch(targets.expression, name)}
    bad = [
        name
        for name in matched
        if FORBIDDEN.search(name)
        or name in never
        or modules[name] is model.get_output_embeddings()
        or isinstance(modules[name], nn.Embedding)
        or any(name.startswith(f"{tower}.") for tower in towers)
    ]
    return sorted({*bad, *matched.symmetric_difference(targets.names)})


def test_every_class_was_built_or_is_named_with_the_reason():
    lost = {name: why for name, why in everything().items() if isinstance(why, str)}
    assert len(lost) < len(everything()) / 10
    if IS_PINNED:
        assert set(lost) == set(NOT_BUILT), lost


def test_targets_are_in_the_language_model_and_can_be_adapted():
    faults = {name: each.wrong for name, each in made().items() if each.wrong}
    refused = {name: faults.pop(name) for name in REFUSED if name in made()}
    assert not faults, {name: names[:3] for name, names in faults.items()}
    assert all(
        f"{name} has no blocks of a language model" in why for name, (why,) in refused.items()
    )


def test_every_class_has_both_parts_or_is_named_with_the_reason():
    for name, each in made().items():
        if name not in REFUSED:
            assert "ffn" in each.kinds or each.fused or name in NO_FFN, name
            assert "attention" in each.kinds or name in NO_ATTENTION, name
    if IS_PINNED:
        assert all("ffn" not in made()[name].kinds for name in NO_FFN)
        assert all("attention" not in made()[name].kinds for name in NO_ATTENTION)


# ---------------------------------------------------------------- the page


def ends(found: list[Linear], kind: str) -> str:
    names = dict.fromkeys(
        e.name.rpartition(".")[2] for e in found if e.kind == kind and not e.never
    )
    return ", ".join(f"`{name}`" for name in names)


def left(model: Any, found: list[Linear]) -> str:
    never = dict.fromkeys(each.name.rpartition(".")[2] for each in found if each.never)
    named = [f"`{name}`" for name in never]
    fused = sum(map(has_fused_experts, blocks(model).values()))
    if fused:
        named.append(f"fused experts of {fused} of {len(blocks(model))} blocks")
    return ", ".join(named)


def row(name: str) -> str:
    model, _ = family(name)
    found = linears(model)
    sees = "yes" if name in SEEING else ""
    cells = (
        name,
        sees,
        ends(found, "ffn"),
        ends(found, "attention"),
        ends(found, "other"),
        left(model, found),
    )
    return "| " + " | ".join(cells) + " |"


def sentences() -> Iterator[str]:
    yield (
        f"In transformers {hf.__version__} {len(everything())} classes answer to pictures or text. "
        f"{len(made()) - len(REFUSED)} of them have targets. Refused are:"
    )
    yield "\n".join(f"- `{name}`: {why}." for name, why in REFUSED.items())
    fused = [name for name, each in made().items() if each.fused and "ffn" not in each.kinds]
    yield (
        "Without linears in their FFNs, so that `targets: ffn` is refused and names what there is: "
        f"{named(NO_FFN)} (state spaces); {named(fused)} (all experts fused)."
    )
    yield f"Without linears in their attention: {named(NO_ATTENTION)}."
    yield f"Not built for this test: {named(NOT_BUILT)} ({TIMM}, or {DEFAULT})."


def named(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def tables() -> str:
    titles = ("family", "sees", "`ffn`", "`attention`", "`all` also", "never adapted")
    head = f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"
    rows = [row(name) for name in sorted({*SEEING, *READING})]
    return "\n\n".join(["\n".join([head, *rows]), *sentences()])


@pytest.mark.skipif(not IS_PINNED, reason="the page is of the pinned transformers")
def test_the_page_says_what_was_found():
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"
    if os.environ.get("UNDRIFT_WRITE_DOCS"):
        PAGE.write_text(fresh)
    assert fresh == text, "docs/models.md is not what was found: UNDRIFT_WRITE_DOCS=1 writes it"
