"""The old name of `undrift.core.step_hook`; it goes with the next release."""

from __future__ import annotations

import warnings

from undrift.core.step_hook import StepHook, StepTransform, check_steps_outside, innermost

__all__ = ["StepHook", "StepTransform", "check_steps_outside", "innermost"]

warnings.warn(
    "undrift.core.stepping is called undrift.core.step_hook now", FutureWarning, stacklevel=2
)
