"""Tiny random models of many families, with inputs made directly: no processor, no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf

Inputs = dict[str, Any]
Made = tuple[Any, Inputs]
IMAGE, VOCABULARY = 63, 64
SIDE, PATCH = 12, 6  # pixels; 4 patches
ROWS, LENGTH, PICTURE = 3, 14, 4  # examples of one length; a picture's tokens stand in front
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
TEXT = {**SIZES, "vocab_size": VOCABULARY, **ENDS}
TOWER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
MIXTURE = {
    "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "head_dim": 4, "num_key_value_heads": 2,
}  # fmt: skip
DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip

# By model_type: what its configuration needs besides the common sizes; None takes one away.
READING: dict[str, Mapping[str, Any]] = {
    "apertus": {}, "arcee": {}, "biogpt": {}, "bloom": {}, "cohere": {}, "doge": {}, "ernie4_5": {},
    "gemma2": {}, "glm4": {}, "gpt2": {}, "gpt_bigcode": {}, "gpt_neox": {}, "granite": {},
    "helium": {}, "llama": {}, "mamba": {}, "falcon_mamba": {}, "mistral": {}, "mpt": {},
    "nemotron": {}, "olmo2": {}, "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16}, "persimmon": {},
    "phi": {}, "phi3": {}, "qwen3": {}, "rwkv": {}, "smollm3": {}, "stablelm": {},
    "starcoder2": {}, "xglm": {"ffn_dim": 32}, "exaone4": {},
    "codegen": {"num_attention_heads": 4, "rotary_dim": 2},
    "deepseek_v2": {**MIXTURE, **LATENT, "first_k_dense_replace": 1},
    "deepseek_v3": {**MIXTURE, **LATENT, "first_k_dense_replace": 1},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_oss": MIXTURE, "granitemoe": MIXTURE, "mixtral": MIXTURE, "olmoe": MIXTURE,
    "gptj": {"rotary_dim": 4},
    "jamba": {
        **MIXTURE, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1,
        "expert_layer_period": 2, "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba2": {"num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1},
    "qwen2_moe": MIXTURE,
    "qwen3_moe": MIXTURE,
    "qwen3_next": {**MIXTURE, **DELTA},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 16},
}  # fmt: skip


def reading(name: str) -> Made:
    """A language model, with random tokens."""
    sizes = {key: value for key, value in {**TEXT, **READING[name]}.items() if value is not None}
    model = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(name, **sizes))
    return model, {"input_ids": words()}


def words() -> torch.Tensor:
    return torch.randint(3, 50, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def shown(tokens: int = PICTURE) -> torch.Tensor:
    """Random tokens with a picture's tokens in front of them."""
    ids = words()
    ids[:, 1 : 1 + tokens] = IMAGE
    return ids


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(ROWS, *shape, generator=torch.Generator().manual_seed(2))


def whole(*numbers: int) -> torch.Tensor:
    """The same whole numbers for every example."""
    return torch.tensor([numbers] * ROWS)


def sees(name: str, text: Any, vision: Any, *, tokens: int = PICTURE, **more: Any) -> Made:
    """A vision-language model, and plain pixels; `more` is its configuration."""
    config = hf.AutoConfig.for_model(
        name, text_config={**TEXT, **text}, vision_config={**TOWER, **vision},
        image_token_id=IMAGE, image_token_index=IMAGE, **more,
    )  # fmt: skip
    model = hf.AutoModelForImageTextToText.from_config(config)
    return model, {"input_ids": shown(tokens), "pixel_values": noise(3, SIDE, SIDE)}


def given(made: Made, **inputs: Any) -> Made:
    """Give a model other inputs as well."""
    return made[0], {**made[1], **inputs}


def llava(name: str, **more: Any) -> Made:
    return sees(name, LLAMA, {"model_type": "clip_vision_model"}, vision_feature_layer=-1, **more)


def llava_next(name: str, **more: Any) -> Made:
    pins = [[SIDE, SIDE]]
    made = llava(name, tokens=10, image_grid_pinpoints=pins, **more)
    return given(made, pixel_values=noise(2, 3, SIDE, SIDE), image_sizes=whole(SIDE, SIDE))


def pixtral(name: str, **more: Any) -> Made:
    tower = {"model_type": "pixtral", "head_dim": 8}
    made = sees(name, {"model_type": "mistral"}, tower, vision_feature_layer=-1, **more)
    return given(made, image_sizes=whole(SIDE, SIDE))


def several(made: Made) -> Made:
    """Let each example have a list of pictures, of one."""
    return given(made, pixel_values=made[1]["pixel_values"][:, None])


def patched(name: str, text: Any, vision: Any, **more: Any) -> Made:
    """A model that reads patches with a grid beside them, as Qwen-VL does."""
    tower = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 16,
    }  # fmt: skip
    marks = {"video_token_id": 61, "vision_start_token_id": 60, **more}
    model, _ = sees(name, {"rope_parameters": ROPE, **text}, {**tower, **vision}, **marks)
    ids = shown()
    return model, {
        "input_ids": ids, "pixel_values": noise(16, 96).flatten(0, 1),
        "image_grid_thw": whole(1, 4, 4), "mm_token_type_ids": (ids == IMAGE).long(),
    }  # fmt: skip


def mllama() -> Made:
    text = {"cross_attention_layers": [1], "rope_parameters": {**ROPE, "mrope_section": None}}
    vision = {
        "num_global_layers": 1, "attention_heads": 2, "max_num_tiles": 1, "vision_output_dim": 32,
        "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]],
    }  # fmt: skip
    model, _ = sees("mllama", text, vision)
    return model, {
        "input_ids": words(), "pixel_values": noise(1, 1, 3, SIDE, SIDE),
        "aspect_ratio_ids": whole(1), "aspect_ratio_mask": whole(1)[..., None],
        "cross_attention_mask": torch.ones(ROWS, LENGTH, 1, 1, dtype=torch.long),
    }  # fmt: skip


def gemma4() -> Made:
    text = {
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 8, "num_kv_shared_layers": 0, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    vision = {
        "patch_size": 4, "pooling_kernel_size": 2, "head_dim": 8, "position_embedding_size": 16,
        "default_output_length": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    model, _ = sees("gemma4", text, vision)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(ROWS, -1, -1)
    ids = shown()
    return model, {
        "input_ids": ids, "pixel_values": noise(16, 48), "image_position_ids": places,
        "mm_token_type_ids": (ids == IMAGE).long(),
    }  # fmt: skip


def lfm2_vl() -> Made:
    vision = {"model_type": "siglip2_vision_model", "num_patches": 16, "vision_use_head": False}
    text = {"model_type": "lfm2", **READING["lfm2"]}
    model, _ = sees("lfm2_vl", text, vision, projector_hidden_size=16, downsample_factor=2)
    return model, {
        "input_ids": shown(), "pixel_values": noise(16, 108), "spatial_shapes": whole(4, 4),
        "pixel_attention_mask": torch.ones(ROWS, 16, dtype=torch.long),
    }  # fmt: skip


def phi4_multimodal() -> Made:
    vision = {**TOWER, "image_size": 28, "patch_size": 14, "crop_size": 28, "image_token_id": IMAGE}
    audio = {
        "hidden_size": 16, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
        "ext_pw_out_channel": 16, "nemo_conv_channels": 16, "audio_token_id": 62,
    }  # fmt: skip
    config = hf.Phi4MultimodalConfig(vision_config=vision, audio_config=audio, **TEXT)
    return hf.Phi4MultimodalForCausalLM(config), {"input_ids": words()}


def idefics() -> Made:
    vision = {**TOWER, "embed_dim": 16}
    none = {"use_resampler": False}
    config = hf.IdeficsConfig(
        vision_config=vision, perceiver_config=none, additional_vocab_size=0, **TEXT
    )
    return hf.IdeficsForVisionText2Text(config), {
        "input_ids": words(), "pixel_values": noise(1, 3, SIDE, SIDE),
        "image_attention_mask": torch.ones(ROWS, LENGTH, 1, dtype=torch.long),
    }  # fmt: skip


def kosmos2() -> Made:
    text = {
        "vocab_size": VOCABULARY, "embed_dim": 16, "layers": 2, "ffn_dim": 32, "attention_heads": 2,
        "max_position_embeddings": 64, **ENDS,
    }  # fmt: skip
    config = hf.Kosmos2Config(text_config=text, vision_config=TOWER, latent_query_num=4)
    return hf.Kosmos2ForConditionalGeneration(config), {
        "input_ids": words(), "pixel_values": noise(3, SIDE, SIDE),
        "image_embeds_position_mask": (shown() == IMAGE).long(),
    }  # fmt: skip


def fuyu() -> Made:
    config = hf.FuyuConfig(
        image_size=SIDE, patch_size=PATCH, image_token_id=IMAGE,
        text_config={"model_type": "persimmon", **TEXT}, **TEXT,
    )  # fmt: skip
    return hf.FuyuForCausalLM(config), {"input_ids": shown(), "image_patches": noise(4, 108)}


def git() -> Made:
    config = hf.GitConfig(vision_config=TOWER, **TEXT)
    return hf.GitForCausalLM(config), {"input_ids": words(), "pixel_values": noise(3, SIDE, SIDE)}


LLAMA = {"model_type": "llama"}
OPT = {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 16}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
INTERLEAVED = {"rope_parameters": {**ROPE, "mrope_interleaved": True}}
QFORMER = {
    **TOWER, "encoder_hidden_size": 16, "cross_attention_frequency": 1, "vocab_size": VOCABULARY,
}  # fmt: skip
PERCEIVER = {
    "hidden_size": 16, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
    "resampler_head_dim": 8, "num_key_value_heads": 1,
}  # fmt: skip
SQUARE = {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}

SEEING: dict[str, Callable[[], Made]] = {
    "aria": lambda: given(
        sees(
            "aria",
            {"model_type": "aria_text", "moe_num_experts": 4, "moe_topk": 2,
             "moe_num_shared_experts": 1},
            {"model_type": "idefics3_vision"}, projector_patch_to_query_dict={"4": 4},
        ),
        pixel_mask=torch.ones(ROWS, SIDE, SIDE, dtype=torch.bool),
    ),
    "aya_vision": lambda: sees(
        "aya_vision", {"model_type": "cohere2"}, SIGLIP, tokens=1, vision_feature_layer=-1,
        downsample_factor=2,
    ),
    "blip-2": lambda: sees("blip-2", OPT, {}, qformer_config=QFORMER, num_query_tokens=4),
    "cohere2_vision": lambda: sees(
        "cohere2_vision", {"model_type": "cohere2"}, SIGLIP, tokens=1, downsample_factor=2,
        alignment_intermediate_size=32,
    ),
    "deepseek_vl": lambda: sees("deepseek_vl", LLAMA, SIGLIP),
    "fuyu": fuyu,
    "gemma3": lambda: given(
        sees("gemma3", {"model_type": "gemma3_text"}, SIGLIP, tokens=1, mm_tokens_per_image=1),
        token_type_ids=(shown(1) == IMAGE).long(),
    ),
    "gemma4": gemma4,
    "git": git,
    "glm4v": lambda: patched(
        "glm4v", {}, {"image_size": 16}, image_start_token_id=60, image_end_token_id=62,
        video_start_token_id=58, video_end_token_id=59,
    ),
    "idefics": idefics,
    "idefics2": lambda: several(
        sees("idefics2", {"model_type": "mistral"}, {}, perceiver_config=PERCEIVER)
    ),
    "idefics3": lambda: several(sees("idefics3", LLAMA, {}, tokens=1, scale_factor=2)),
    "instructblip": lambda: given(
        sees("instructblip", OPT, {}, qformer_config=QFORMER, num_query_tokens=4),
        qformer_input_ids=words()[:, :3],
    ),
    "internvl": lambda: sees(
        "internvl", {"model_type": "qwen2"}, SQUARE, tokens=1, downsample_ratio=0.5
    ),
    "kosmos-2": kosmos2,
    "lfm2_vl": lfm2_vl,
    "llama4": lambda: sees(
        "llama4",
        {**MIXTURE, "intermediate_size_mlp": 32, "interleave_moe_layer_step": 2},
        {"intermediate_size": 64, "vision_output_dim": 16, "projector_input_dim": 16,
         "projector_output_dim": 16, "pixel_shuffle_ratio": 0.5, "vision_feature_layer": -1},
        tokens=1,
    ),
    "llava": lambda: llava("llava"),
    "llava_next": lambda: llava_next("llava_next"),
    "llava_next_video": lambda: llava_next("llava_next_video", video_token_index=62),
    "mistral3": lambda: pixtral("mistral3", spatial_merge_size=1),
    "mllama": mllama,
    "ovis2": lambda: sees(
        "ovis2", {"model_type": "qwen2"},
        {"num_visual_indicator_tokens": 5, "vocab_size": 16, "hidden_stride": 2},
        tokens=1, hidden_size=16, visual_indicator_token_ids=[58, 59, 60, 61, 62],
    ),
    "paligemma": lambda: given(  # all of it prompt, but for the last three tokens
        sees(
            "paligemma", {"model_type": "gemma"}, {**SIGLIP, "projection_dim": 16},
            projection_dim=16,
        ),
        token_type_ids=whole(*[0] * (LENGTH - 3), 1, 1, 1),
    ),
    "phi4_multimodal": phi4_multimodal,
    "pixtral": lambda: pixtral("llava", vision_feature_select_strategy="full"),
    "qwen2_5_vl": lambda: patched(
        "qwen2_5_vl", {}, {"window_size": 16, "fullatt_block_indexes": [0]}
    ),
    "qwen2_vl": lambda: patched("qwen2_vl", {}, {"embed_dim": 16, "mlp_ratio": 2}),
    "qwen3_5": lambda: patched(
        "qwen3_5",
        {**DELTA, "rope_parameters": {**ROPE, "mrope_interleaved": True,
                                      "partial_rotary_factor": 1.0}},
        {"num_position_embeddings": 16},
    ),
    "qwen3_vl": lambda: patched(
        "qwen3_vl", INTERLEAVED, {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    ),
    "smolvlm": lambda: several(sees("smolvlm", LLAMA, {}, tokens=1, scale_factor=2)),
    "video_llava": lambda: _as_images(llava("video_llava", video_token_index=62)),
    "vipllava": lambda: sees(
        "vipllava", LLAMA, {"model_type": "clip_vision_model"}, vision_feature_layers=[-1]
    ),
}  # fmt: skip


def _as_images(made: Made) -> Made:
    model, inputs = made
    return model, {"input_ids": inputs["input_ids"], "pixel_values_images": inputs["pixel_values"]}


def family(name: str) -> Made:
    """The tiny model of a family, in evaluation, and a batch of ROWS examples for it."""
    torch.manual_seed(0)
    model, inputs = SEEING[name]() if name in SEEING else reading(name)
    with torch.no_grad():  # larger weights, so that every token tells in every logit
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            elif (
                "gate" in key or "alpha" in key or key.endswith(".A")
            ):  # at zero, it lets nothing by
                parameter.add_(0.5)
    return model.eval(), inputs
