"""The model card of an adapter: what it is, and the lines that load it, made from its own files.

PEFT writes an empty template there. This one replaces it, and itself, and never a card that
somebody has written or changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from pydantic import Field, NonNegativeInt

from undrift.registry import METHODS
from undrift.rundir import atomic_write, read_json, read_record
from undrift.rundir.records import Name, Origin, Record
from undrift.tuner.peft_internals import CONFIG_NAME

CARD = "README.md"
RECORD = "undrift_state.json"
_ORIGIN = "undrift.json"
_MARK = "<!-- made by undrift, which replaces it as long as nobody changes it: "
_PEFTS_END = "### Framework versions"
_HERE = Path(__file__).parents[2]  # the package: the pocket backbone ships with it
_PEFT = "from peft import PeftModel"
_PUBLIC = ("Finetune", "Joint", "MoeLora", "Same", "SteadyLora")


class MethodState(Record):
    """undrift_state.json beside an adapter: which method trained it, and how far it has come."""

    method: str
    options: dict[str, Any]
    tasks: NonNegativeInt
    learning: bool = False
    steps: NonNegativeInt = 0
    files: list[Name] = Field(default=[])


def is_ours(folder: Path) -> bool:
    """Whether the card of a folder may be written: there is none, or nobody has changed it.

    Args:
        folder: An adapter's folder.

    Returns:
        False where somebody's own words would be lost.
    """
    file = folder / CARD
    if not file.exists():
        return True
    text = file.read_text(encoding="utf-8", errors="replace")
    body, marked, digest = text.partition(_MARK)
    if marked:
        return digest.startswith(_digest(body))
    try:
        own, empty = ModelCard(text), ModelCard.from_template(ModelCardData())
    except ValueError:  # its head is no YAML: nobody but a person has written it
        return False
    return own.text.partition(_PEFTS_END)[0].split() == empty.text.partition(_PEFTS_END)[0].split()


def write_card(folder: Path) -> None:
    """Write the card of a saved adapter, unless it has one of somebody's own.

    Args:
        folder: The adapter's folder, with its other files in it.
    """
    if is_ours(folder) and (folder / CONFIG_NAME).exists():
        config, found = read_json(folder / CONFIG_NAME), []
        for name, kind in ((RECORD, MethodState), (_ORIGIN, Origin)):
            file = folder / name
            found.append(read_record(file, kind) if file.exists() else {})
        body = _text(config, *found)
        atomic_write(folder / CARD, f"{body}{_MARK}{_digest(body)} -->\n")


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _text(config: Mapping[str, Any], state: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    kind, method = str(config["peft_type"]), state.get("method")
    made = METHODS.load(method) if method in METHODS.names() else None
    base = config.get("base_model_name_or_path")
    head = {"library_name": "peft", "license": "unknown"}
    tags = ["undrift", *([method] if method else [])]
    on_hub = base is not None and not Path(base).is_absolute()
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in head.items()),
        f"tags: {json.dumps(tags)}",
        *([f"base_model: {json.dumps(base)}"] if on_hub else []),
        "---",
        "",
        f"# An adapter of type {kind}" + (f", trained with undrift's `{method}`" if method else ""),
        "",
        f"- Base model: {f'`{_named(base)}`' if base else 'not known'}",
    ]
    if made is not None:
        lines.append(f"- Method: {made.summary()}")
        options = ", ".join(f"{key} {value!r}" for key, value in state["options"].items())
        lines.append(f"- Options: {options or 'the defaults'}")
        lines.append(f"- Tasks learned: {_tasks(state, origin)}")
    lines += [
        "- Licence: nothing is known of the data; what base model and data allow counts.",
        "",
        "## Load it",
        "",
        *_block(_loading(config, state, made)),
    ]
    if made is not None:
        lines += ["", "## Teach it one more task", "", *_block(_going_on(config, state, made))]
    return "\n".join([*lines, ""])


def _tasks(state: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    learned = [str(note.get("name")) for note in origin.get("learned", ())]
    inside = " (saved inside the next one)" if state.get("learning") else ""
    return (f"{len(learned)}: {', '.join(learned)}" if learned else str(state["tasks"])) + inside


def _named(base: str) -> str:
    return "the pocket, which comes with undrift" if _in_package(base) else base


def _in_package(base: str) -> bool:
    return Path(base).is_absolute() and Path(base).is_relative_to(_HERE)


def _block(lines: list[str]) -> list[str]:
    return ["```python", *lines, "```"]


def _base(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The lines that import, and those that open base model and processor."""
    named = (config.get("auto_mapping") or {}).get("base_model_class") or "AutoModelForCausalLM"
    reader = "AutoTokenizer" if named.endswith("ForCausalLM") else "AutoProcessor"
    base, imports = config.get("base_model_name_or_path"), []
    if base and _in_package(base):
        inside = Path(base).relative_to(_HERE)
        imports = ["from importlib.resources import files", ""]
        place = f'base = str(files("undrift") / {inside.as_posix()!r})'
    else:
        place = f"base = {base or 'NAME OF THE BASE MODEL'!r}"
    imports += [
        "import undrift  # tells PEFT and transformers about its types",
        _PEFT,
        f"from transformers import {', '.join(sorted((reader, named)))}",
    ]
    return imports, [
        "",
        place,
        f"model = {named}.from_pretrained(base)",
        f"processor = {reader}.from_pretrained(base)",
    ]


def _loading(
    config: Mapping[str, Any], state: Mapping[str, Any], made: type[Any] | None
) -> list[str]:
    imports, opened = _base(config)
    if made is None or made.alone:
        loaded = 'model = PeftModel.from_pretrained(model, ".")  # this folder, or its Hub name'
        return [*imports, *opened, loaded]
    imports[imports.index(_PEFT)] = "from pathlib import Path"
    return [
        *imports,
        *_method_import(made),
        *opened,
        f"method = {_call(state, made)}",
        "model = method.attach(model)",
        'method.load_state(model, Path("."))  # this folder',
        "with method.predicting(model.eval()):",
        "    ...  # model.generate",
    ]


def _going_on(config: Mapping[str, Any], state: Mapping[str, Any], made: type[Any]) -> list[str]:
    imports, opened = _base(config)
    return [
        *imports,
        *_method_import(made),
        *opened,
        'model = PeftModel.from_pretrained(model, ".", is_trainable=True)',
        f"method = {_call(state, made)}",
        "# Trainer(model, ..., callbacks=[method]).train(), then model.save_pretrained(...)",
    ]


def _method_import(made: type[Any]) -> list[str]:
    return [] if _public(made) else [f"from {made.__module__} import {made.__name__}"]


def _public(made: type[Any]) -> bool:
    return made.__name__ in _PUBLIC and made.__module__.startswith("undrift.methods.")


def _call(state: Mapping[str, Any], made: type[Any]) -> str:
    options = ", ".join(f"{key}={value!r}" for key, value in state["options"].items())
    return f"{'undrift.' if _public(made) else ''}{made.__name__}({options})"
