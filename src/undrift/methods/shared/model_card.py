"""The model card of an adapter: what it is, and the lines that load it, made from its own files.

PEFT writes an empty template there. This one replaces it, and itself, and never a card that
somebody has written or changed. A card names no folder of the machine and holds no example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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


def write_card(folder: Path, scores: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the card of a saved adapter, unless it has one of somebody's own.

    Args:
        folder: The adapter's folder, with its other files in it.
        scores: What became of each task when the last one was learned: `task`, `before` and
            `after` in percent, None where it was not asked.
    """
    if is_ours(folder) and (folder / CONFIG_NAME).exists():
        config = read_json(folder / CONFIG_NAME)
        state, origin = (
            read_record(folder / name, kind) if (folder / name).exists() else {}
            for name, kind in ((RECORD, MethodState), (_ORIGIN, Origin))
        )
        body = _text(config, state, origin, scores)
        atomic_write(folder / CARD, f"{body}{_MARK}{_digest(body)} -->\n")


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _text(
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    origin: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]],
) -> str:
    kind, method = str(config["peft_type"]), state.get("method")
    made = METHODS.load(method) if method in METHODS.names() else None
    base = config.get("base_model_name_or_path")
    tags = ["undrift", *([method] if method else [])]
    on_hub = base is not None and not Path(base).is_absolute()
    shown = _shown(base) if base else "not known"
    lines = [
        "---",
        "library_name: peft",
        "license: unknown",
        f"tags: {json.dumps(tags)}",
        *([f"base_model: {json.dumps(base)}"] if on_hub else []),
        "---",
        "",
        f"# An adapter of type {kind}" + (f", trained with undrift's `{method}`" if method else ""),
        "",
        f"- Base model: {shown}",
    ]
    if origin:
        lines.append(f"- Fingerprint of the base's weights: {origin['fingerprint'][:16]}")
    if made is not None:
        lines.append(f"- Method: {made.summary()}")
        options = ", ".join(f"{key} {_named(value)!r}" for key, value in state["options"].items())
        lines.append(f"- Options: {options or 'the defaults'}")
        lines.append(f"- Tasks learned: {_tasks(state, origin)}")
    lines += [
        "- Licence: nothing is known of the data; what base model and data allow counts.",
        f"- Of the data it keeps {_kept(made)}.",
        *_of_tasks(origin, scores),
        "",
        "## Load it",
        "",
        *_code(config, state, made, teach=False),
    ]
    if made is not None:
        lines += ["", "## Teach it one more task", "", *_code(config, state, made, teach=True)]
    return "\n".join([*lines, ""])


def _of_tasks(origin: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tabulate what was learned from how much, and how well it is known."""
    notes = origin.get("learned", ())
    if not notes:
        return []
    of = {str(row["task"]): row for row in scores}
    names = [str(note["name"]) for note in notes]
    last = names[-1]
    lines = [
        "",
        "## Tasks",
        "",
        f"| task | training examples | test questions | before {last} | after {last} |",
        "|---|---|---|---|---|",
    ]
    for name, note in zip(names, notes, strict=True):
        counts = note.get("examples") or {}
        asked = [of.get(name, {}).get(when) for when in ("before", "after")]
        cells = [
            name,
            *(str(counts.get(split, "")) for split in ("train", "test")),
            *("" if score is None else f"{score:.1f} %" for score in asked),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _kept(made: type[Any] | None) -> str:
    if made is not None and made.keeps_examples:
        return "examples that it was trained on: questions, answers and the names of pictures"
    return "no example; a history holds second moments of the layers' inputs over all tokens"


def _named(value: Any) -> Any:
    """Return a value without the folders that only this machine has."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _shown(base: str) -> str:
    if _in_package(base):
        return "`the pocket, which comes with undrift`"
    return f"`{_named(base)}`" + (", of a local folder" if Path(base).is_absolute() else "")


def _tasks(state: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    learned = [str(note.get("name")) for note in origin.get("learned", ())]
    inside = " (saved inside the next one)" if state.get("learning") else ""
    return (f"{len(learned)}: {', '.join(learned)}" if learned else str(state["tasks"])) + inside


def _in_package(base: str) -> bool:
    return Path(base).is_absolute() and Path(base).is_relative_to(_HERE)


def _code(
    config: Mapping[str, Any], state: Mapping[str, Any], made: type[Any] | None, *, teach: bool
) -> list[str]:
    """The lines that load an adapter, by its method where PEFT alone cannot, or teach it more."""
    named = (config.get("auto_mapping") or {}).get("base_model_class") or "AutoModelForCausalLM"
    reader = "AutoTokenizer" if named.endswith("ForCausalLM") else "AutoProcessor"
    base = config.get("base_model_name_or_path")
    by_method = not (made is None or made.alone or teach)
    lines = ["```python"]
    place = f"base = {_named(base) or 'NAME OF THE BASE MODEL'!r}"
    if base and Path(base).is_absolute():
        place += "  # where your copy of it lies"
    if base and _in_package(base):
        lines += ["from importlib.resources import files", ""]
        place = f'base = str(files("undrift") / {Path(base).relative_to(_HERE).as_posix()!r})'
    lines += [
        "import undrift  # tells PEFT and transformers about its types",
        "from pathlib import Path" if by_method else "from peft import PeftModel",
        f"from transformers import {', '.join(sorted((reader, named)))}",
    ]
    method = ""
    if made is not None and (by_method or teach):
        public = made.__name__ in _PUBLIC and made.__module__.startswith("undrift.methods.")
        lines += [] if public else [f"from {made.__module__} import {made.__name__}"]
        options = ", ".join(f"{key}={_named(value)!r}" for key, value in state["options"].items())
        method = f"method = {'undrift.' if public else ''}{made.__name__}({options})"
    lines += [
        "",
        place,
        f"model = {named}.from_pretrained(base)",
        f"processor = {reader}.from_pretrained(base)",
    ]
    if by_method:
        lines += [
            method,
            "model = method.attach(model)",
            'method.load_state(model, Path("."))  # this folder',
            "with method.predicting(model.eval()):",
            "    ...  # model.generate",
        ]
    elif teach:
        lines += [
            'model = PeftModel.from_pretrained(model, ".", is_trainable=True)',
            method,
            "# Trainer(model, ..., callbacks=[method]).train(), then model.save_pretrained(...)",
        ]
    else:
        lines += ['model = PeftModel.from_pretrained(model, ".")  # this folder, or its Hub name']
    return [*lines, "```"]
