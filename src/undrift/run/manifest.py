"""What produced the numbers: versions, hardware, fingerprints, protocol, seconds."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from undrift.data.types import Benchmark, Task
from undrift.run.backbone import Backbone
from undrift.run.config import RunConfig, TrainConfig
from undrift.rundir.files import short_hash
from undrift.tuner import adapted
from undrift.tuner.frozen import count_parameters

_PACKAGES = ("undrift", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers")
_NO_MATTER = {"learning_rate", "checkpoint_steps", "log_steps", "activation_checkpointing"}
_WHAT_RUNS = ("commit", "versions", "hardware")
_SOURCE = Path(__file__).parents[1]


def manifest(
    config: RunConfig,
    benchmark: Benchmark,
    tasks: Sequence[Task],
    backbone: Backbone,
    method: Mapping[str, Any],
) -> dict[str, Any]:
    """Gather everything that a reader of the numbers must know.

    Args:
        config: The run.
        benchmark: The whole benchmark.
        tasks: The tasks in order, cut to what the profile uses.
        backbone: The model, with the method on it.
        method: All the method's options and the learning rate.

    Returns:
        A value for manifest.json.
    """
    template = str(backbone.processor.chat_template)
    return {
        "method": config.method.name,
        "benchmark": benchmark.name,
        "order": config.order if isinstance(config.order, str) else list(config.order),
        "seed": config.seed,
        "profile": config.profile.name,
        "backbone": config.backbone,
        "settings": dict(method),
        "adapted": adapted(backbone.model, method["targets"]),
        "protocol": {
            "tasks": [
                {
                    "name": task.name,
                    "train": len(task.train),
                    "test": len(task.test),
                    "scorer": task.scorer,
                    "max_new_tokens": task.max_new_tokens,
                }
                for task in tasks
            ],
            **config.profile.model_dump(mode="json", exclude={"name"}),
            "reading": config.reading,
            "split": config.eval.split,
            "scoring": config.eval.scoring,
            "decoding": "greedy, padded on the left",
            "prompt": template,
            "prompt_hash": short_hash(template),
            "text_padding": backbone.tokenizer.padding_side,
            "image_features": "pixels" if backbone.store is None else "kept in float16",
            "pictures": _pictures(backbone.processor),
            "training": _training(config.train),
            **(
                {"boundaries": "none", "stream": config.stream.model_dump(mode="json")}
                if config.is_stream
                else {}
            ),
        },
        "data": {
            "version": benchmark.version,
            "fingerprint": benchmark.fingerprint,
            "licence": benchmark.licence,
        },
        "weights": {
            "fingerprint": backbone.fingerprint,
            "dtype": str(backbone.model.dtype).removeprefix("torch."),
            "parameters": count_parameters(backbone.model),
            "image_features": None if backbone.store is None else backbone.store.digest(),
        },
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "hardware": hardware(backbone.device),
    }


def note_resume(content: dict[str, Any], before: Mapping[str, Any], done: int) -> str | None:
    """Keep what a run was begun with, and enter what goes on with it where that is another.

    Args:
        content: The manifest to write, of this process; changed in place.
        before: The manifest that is there; empty where there is none.
        done: How many tasks are finished.

    Returns:
        What is another than the last time, in words; None where nothing is.
    """
    if not before:
        return None
    own = {key: content[key] for key in _WHAT_RUNS}
    content |= {key: before[key] for key in _WHAT_RUNS if key in before}
    resumed = list(before.get("resumed", ()))
    last = resumed[-1] if resumed else content
    parts = {key: _differences(last.get(key), value) for key, value in own.items()}
    said = [part for found in parts.values() for part in found]
    if said:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        resumed.append({"date": date, "after": done, **own})
    if resumed:
        content["resumed"] = resumed
    return ", ".join(said) or None


def _differences(before: Any, now: Any) -> list[str]:
    """Say what is another now, such as "torch 2.13.0 (before: 2.12.0)"."""
    if not isinstance(now, Mapping) or not isinstance(before, Mapping):
        return [] if before == now else [f"commit {now} (before: {before})"]
    return [
        f"{name} {value} (before: {before[name]})"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _pictures(processor: Any) -> dict[str, Any]:
    """Return all that the image processor is set to: sizes, crop, padding, resampling ..."""
    images = getattr(processor, "image_processor", None)
    if images is None:
        return {}
    known = json.loads(images.to_json_string())
    return {key: value for key, value in known.items() if value is not None and key[0] != "_"}


def _training(train: TrainConfig) -> dict[str, Any]:
    """Return what a task's training depends on, but for the rate, which stands in settings."""
    known = train.model_dump(mode="json", exclude=_NO_MATTER)
    return {"global_batch": train.batch_size * train.accumulation, **known}


def commit() -> str | None:
    """Return the git commit of undrift's own source, "+dirty" where files differ from it.

    Returns:
        Such as "e719b59"; None where undrift is not run from its repository.
    """
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    short = _git("rev-parse", "--short", "HEAD") if tracked else None
    if short is None:
        return None
    return short + ("+dirty" if _git("status", "--porcelain", "--", ".") else "")


def _git(*words: str) -> str | None:
    """Ask git about the folder of undrift's source; None where it has no answer.

    Nothing is written there: a status cut off by the time limit would leave its lock behind.
    """
    try:
        command = ["git", "--no-optional-locks", *words]
        done = subprocess.run(
            command, cwd=_SOURCE, capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def hardware(device: torch.device) -> dict[str, Any]:
    """Say what runs: the device, the processor's name, cores, threads and system."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
