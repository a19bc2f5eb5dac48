"""Teach a multimodal LLM one task after another without forgetting the earlier ones.

```python
import undrift

method = undrift.Same()
trainer = SFTTrainer(model, peft_config=method.peft_config(), callbacks=[method], ...)
```

Nothing heavy is imported before it is asked for. PEFT can load a saved MoE-LoRA adapter once
`import undrift.tuner` has registered its type.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("undrift")
    if name not in _HOMES:
        raise AttributeError(f"module 'undrift' has no attribute {name!r}")
    return getattr(importlib.import_module(f"undrift.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
