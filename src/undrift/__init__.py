"""Teach a multimodal LLM one task after another without forgetting the earlier ones.

```python
import undrift

method = undrift.Same()
trainer = SFTTrainer(model, peft_config=method.peft_config(), callbacks=[method], ...)
```

Nothing heavy is imported before it is asked for. When PEFT and transformers are imported, before or
after this, they are told about undrift's types of adapters and of models, so that
`PeftModel.from_pretrained` and the Auto classes load them.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing's, whose import would be the longest part of this one
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from undrift.core import PAPER, UNDRIFT, Settings
    from undrift.errors import UndriftError
    from undrift.methods.base import Method
    from undrift.methods.finetune import Finetune
    from undrift.methods.joint import Joint
    from undrift.methods.moelora import MoeLora
    from undrift.methods.same import Same
    from undrift.methods.steadylora import SteadyLora
    from undrift.methods.zeroshot import ZeroShot
    from undrift.tuner import MoeLoraConfig

__version__: str

__all__ = [
    "PAPER",
    "UNDRIFT",
    "Finetune",
    "Joint",
    "Method",
    "MoeLora",
    "MoeLoraConfig",
    "Same",
    "Settings",
    "SteadyLora",
    "UndriftError",
    "ZeroShot",
    "__version__",
]

_HOMES = {
    "PAPER": "core",
    "UNDRIFT": "core",
    "Settings": "core",
    "UndriftError": "errors",
    "Method": "methods.base",
    "Finetune": "methods.finetune",
    "Joint": "methods.joint",
    "MoeLora": "methods.moelora",
    "Same": "methods.same",
    "SteadyLora": "methods.steadylora",
    "ZeroShot": "methods.zeroshot",
    "MoeLoraConfig": "tuner",
}

_AFTER = {
    "peft": "undrift.tuner",
    "undrift.tuner": "undrift.methods.shared.sidecar",
    "transformers.models.auto.configuration_auto": "undrift.run.pocket.sizes",
}
"""What is imported as soon as something else is, to tell it about our types."""


class _Announcer:
    """Finds modules as the others do, and has what belongs to them imported after them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in _AFTER:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _announce(name)

            spec.loader.exec_module = exec_module
        return spec


def _announce(name: str) -> None:
    if _AFTER[name] not in sys.modules:  # else it is being imported, and needed this one
        from importlib import import_module

        import_module(_AFTER[name])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("undrift")
    if name not in _HOMES:
        raise AttributeError(f"module 'undrift' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"undrift.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.meta_path.insert(0, _Announcer())
for _name in _AFTER:
    if _name in sys.modules:
        _announce(_name)
