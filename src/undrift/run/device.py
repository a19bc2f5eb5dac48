"""Where a model is put: the device that was asked for, if this machine has it."""

from __future__ import annotations

import warnings

import torch

from undrift.errors import ConfigError


def find_device(name: str) -> torch.device:
    """Find a device.

    Args:
        name: "auto" (an accelerator if there is one, else the CPU), or one of `devices`; "cuda"
            stands for the first of its kind.

    Returns:
        The device.

    Raises:
        ConfigError: If this machine has no such device; the message names those that it has.
    """
    there = devices()
    if name == "auto":
        return torch.device(there[-1].partition(":")[0])
    kinds = {device.partition(":")[0] for device in there}
    if name in kinds or name in there:
        return torch.device(name)
    raise ConfigError(
        f"no device is called {name!r} on this machine; there are: auto, "
        f"{', '.join(sorted({*kinds, *there}))}"
    )


def devices() -> list[str]:
    """Name the devices that this machine has: "cpu", and such as "cuda:0", "cuda:1"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of drivers that it does not find
        kind = torch.accelerator.current_accelerator(check_available=True)
        count = torch.accelerator.device_count() if kind is not None else 0
    return ["cpu", *(f"{kind.type}:{index}" for index in range(count) if kind is not None)]
