"""Other people's evaluators, asking an adapter as undrift asks it: lmms-eval and lm-eval."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def lmms_eval_manifest() -> Any:
    """Tell lmms-eval of its model `undrift`; the entry point, which every start of it calls."""
    registry = import_module("lmms_eval.models.registry_v2")
    place = f"{__name__}.lmms_eval_model.Undrift"
    return registry.ModelManifest(model_id="undrift", chat_class_path=place)
