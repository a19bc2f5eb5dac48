"""What undrift uses of PEFT and transformers unpromised: still there, and in one file."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests.tuner.llava import tiny_llava
from undrift.tuner import peft_internals

SOURCE = Path(__file__).parents[2] / "src" / "undrift"
THERE = Path(peft_internals.__file__).relative_to(Path(peft_internals.__file__).parents[1])
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / THERE)
THEIRS = ("peft", "transformers")
BASES = {
    "BaseTuner": peft_internals.BaseTuner,
    "BaseTunerLayer": peft_internals.BaseTunerLayer,
    "Trainer": transformers.Trainer,
}
# Methods of theirs that our subclasses override, and which are called by name from over there.
OVERRIDDEN = {
    "BaseTuner": (
        "_prepare_adapter_config",  # target_modules become those of the language model
        "_prepare_model",  # one context of tokens or gates a model
        "_create_and_replace",  # puts our layer around a linear
        "_check_merge_allowed",  # experts and prompts have no merged weight
    ),
    "BaseTunerLayer": (
        "_move_adapter_to_device_of_base_layer",  # masters stay float32, whatever the base is
    ),
    "Trainer": (
        "_clip_grad_norm",  # the norm is looked at before anything is clipped
        "_get_grad_norm",
        "_load_from_checkpoint",  # weights come from Method.load_state, with the statistics
        "_load_optimizer_and_scheduler",  # a snapshot is undrift's: nothing pickled
        "_load_rng_state",
        "_save_checkpoint",
    ),
}
# torch's own and the standard library's, which this file is not about.
ELSEWHERE = {
    "_exit", "_parser",
    "_asdict", "_apply", "_version", "_softmax_backward_data", "_load_from_state_dict",
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
}  # fmt: skip


def imported(tree: ast.AST) -> set[str]:
    """The modules of PEFT and transformers, other than the top ones, that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif (  # importlib.import_module("peft.utils") and the like
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith(tuple(f"{name}." for name in THEIRS))
            and node.value.replace(".", "").replace("_", "").isalnum()
        ):
            found.add(node.value)
    return {name for name in found if name.split(".")[0] in THEIRS and "." in name}


def private(tree: ast.AST) -> set[str]:
    """The underscored attributes of other objects that a file reads or writes."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_")
        and not node.attr.startswith("__")
    }  # fmt: skip


def own(trees: list[ast.AST]) -> set[str]:
    """The underscored names that our source itself defines."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "context"):
                found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_other_file_imports_what_is_not_promised(path):
    found = imported(ast.parse(path.read_text()))
    if path == SOURCE / "__init__.py":  # waits for it by name, since importing it is not light
        found -= {transformers.AutoConfig.__module__}
    assert not found, f"import it from tuner/peft_internals.py, with a line why: {path}"


def test_no_other_file_reaches_for_underscored_names_of_others():
    trees: dict[Path, ast.AST] = {path: ast.parse(path.read_text()) for path in FILES}
    ours = own(list(trees.values())) | ELSEWHERE
    astray = {str(path): private(tree) - ours for path, tree in trees.items()}
    assert not {path: names for path, names in astray.items() if names}


def test_what_is_overridden_is_named_and_nothing_else():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            for base in getattr(node, "bases", ()):
                if not isinstance(base, ast.Name) or base.id not in BASES:
                    continue
                inside = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                theirs = {name for name in inside if name in dir(BASES[base.id])}
                hidden = {name for name in theirs if name[0] == "_" and name[1] != "_"}
                assert hidden <= set(OVERRIDDEN[base.id]), path


PARAMETERS = {
    "_prepare_adapter_config": ["self", "peft_config", "model_config"],
    "_prepare_model": ["self", "peft_config", "model"],
    "_create_and_replace": [
        "self", "peft_config", "adapter_name", "target", "target_name", "parent", "current_key",
        "parameter_name",
    ],
    "_check_merge_allowed": ["self"],
    "_move_adapter_to_device_of_base_layer": ["self", "adapter_name", "device"],
    "_clip_grad_norm": ["self", "model"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_load_rng_state": ["self", "checkpoint"],
    "_save_checkpoint": ["self", "model", "trial"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("base", "name"),
    [(base, name) for base, names in OVERRIDDEN.items() for name in names],
)
def test_the_overridden_method_is_there_and_takes_what_ours_takes(base, name):
    assert [*inspect.signature(getattr(BASES[base], name)).parameters] == PARAMETERS[name]


def test_the_overridden_methods_are_all_tried():
    assert {*PARAMETERS} == {name for names in OVERRIDDEN.values() for name in names}


def test_hook_add_type_and_register_type():
    kind = peft_internals.add_type("tried_lora")
    assert peft_internals.add_type("tried_lora") is kind is peft.PeftType("TRIED_LORA")
    assert kind == "TRIED_LORA" and kind in list(peft.PeftType)
    mapping = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    try:
        tuner = type("Tried", (peft_internals.BaseTuner,), {"prefix": "tried_lora_"})
        for _ in range(2):
            peft_internals.register_type(kind, peft.PeftConfig, tuner)
        assert mapping[kind] is peft.PeftConfig
    finally:
        mapping.pop(kind, None)
        peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING.pop(kind, None)
        peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING.pop(kind, None)
        peft.PeftType._member_names_.remove(kind.name)
        del peft.PeftType._member_map_[kind.name], peft.PeftType._value2member_map_[kind.value]


def lora() -> peft.PeftModel:
    return peft.get_peft_model(tiny_llava(), peft.LoraConfig(r=2, target_modules=["down_proj"]))


def test_hook_replace_module():
    tuner = lora().base_model
    parent, new = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)}), torch.nn.Linear(2, 2)
    peft_internals.replace_module(tuner, parent, "a", new, parent["a"])
    assert parent["a"] is new


def test_hook_switch_layers_and_lora_layer():
    model = lora()
    layers = [m for m in model.modules() if isinstance(m, peft_internals.LoraLayer)]
    assert layers and all(isinstance(layer, peft_internals.BaseTunerLayer) for layer in layers)
    needs = [p.requires_grad for p in model.parameters()]
    for off in (True, False):
        peft_internals.switch_layers(layers, off=off)
        assert all(layer.disable_adapters is off for layer in layers)
    assert [p.requires_grad for p in model.parameters()] == needs


def test_hook_choose_adapter_and_device_of():
    model = lora()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["down_proj"]))
    layers = [m for m in model.modules() if isinstance(m, peft_internals.LoraLayer)]
    needs = [p.requires_grad for p in model.parameters()]
    peft_internals.choose_adapter(layers, "other")
    assert all(layer.active_adapters == ["other"] for layer in layers)
    assert [p.requires_grad for p in model.parameters()] == needs
    assert peft_internals.device_of(layers[0]) == torch.device("cpu")


def test_hook_modules_to_save_wrapper_and_set_additional_trainable_modules():
    model, config = tiny_llava(), peft.LoraConfig(modules_to_save=["multi_modal_projector"])
    peft_internals.set_additional_trainable_modules(model, config, None, "default")
    assert any(isinstance(m, peft_internals.ModulesToSaveWrapper) for m in model.modules())


def test_hook_buffer_dict():
    held = peft_internals.BufferDict({"a": torch.ones(2)}, persistent=True)
    held["b"] = torch.zeros(1)
    assert list(held) == ["a", "b"] and "a" in held and len(held) == 2
    del held["b"]
    assert list(held.state_dict()) == ["a"] and not list(held.parameters())


def test_hook_dummy_target_modules():
    config = peft.LoraConfig(target_modules=peft_internals.DUMMY_TARGET_MODULES)
    model = peft.get_peft_model(tiny_llava(), config)
    assert not any(isinstance(m, peft_internals.LoraLayer) for m in model.modules())


def test_hook_names_of_files(tmp_path):
    model = lora()
    model.save_pretrained(tmp_path)
    assert (tmp_path / peft_internals.SAFETENSORS_WEIGHTS_NAME).is_file()
    assert (tmp_path / peft_internals.CONFIG_NAME).is_file()
    assert peft_internals.WEIGHTS_NAME.endswith(".bin")
    from transformers.trainer import TRAINER_STATE_NAME

    assert peft_internals.TRAINER_STATE_NAME == TRAINER_STATE_NAME


def test_hook_find_adapter_config_file(tmp_path):
    assert peft_internals.find_adapter_config_file(str(tmp_path)) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    assert peft_internals.find_adapter_config_file(str(tmp_path)) is not None


def test_hook_base_model_output_with_pooling():
    out = peft_internals.BaseModelOutputWithPooling(
        last_hidden_state=torch.zeros(1), pooler_output=torch.ones(1), hidden_states=()
    )
    assert float(out.pooler_output) == 1


def test_hook_conv1d():
    linear = peft_internals.Conv1D(5, 3)
    assert (linear.nx, linear.nf) == (3, 5)
    assert linear(torch.ones(2, 3)).shape == (2, 5)


def test_hook_reporters():
    assert issubclass(peft_internals.reporters()["tensorboard"], transformers.TrainerCallback)


def test_hook_one_device(tmp_path):
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True)
    assert arguments.n_gpu <= 1
    arguments._n_gpu = 4
    peft_internals.one_device(arguments)
    assert arguments.n_gpu == 1


def test_hook_osf_layer_and_osf_factors():
    config = peft.OSFConfig(target_modules=["down_proj"], effective_rank=20)
    model = peft.get_peft_model(tiny_llava(), config)
    layer = next(m for m in model.modules() if isinstance(m, peft_internals.OSFLayer))
    with torch.no_grad():
        layer.osf_svd_params["default"]["S_low"] *= 2
    A, B = peft_internals.osf_factors(layer, "default")
    assert torch.allclose(B @ A, layer.get_delta_weight("default"), atol=1e-6)


def test_hook_loaded_names():
    model = tiny_llava()
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    key = name.replace("model.language_model.", "language_model.model.")
    found = peft_internals.loaded_names(model, model.state_dict(), [key, "lm_head.weight", name])
    assert found == {key: name, "lm_head.weight": "lm_head.weight", name: name}


def test_every_hook_has_been_tried():
    text = Path(__file__).read_text()
    used = {
        alias.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "undrift.tuner.peft_internals"
        for alias in node.names
    }
    assert len(used) > 15
    assert not [name for name in used if f"peft_internals.{name}" not in text]
