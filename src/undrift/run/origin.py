"""Where a model comes from that is named by a user: a built-in one, a folder, or the Hub.

A name that looks like a path is one: if nothing is there, that is said, and the Hub is not asked.
A name of the Hub's that is neither in its cache nor within reach is refused after one short look.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session

from undrift.errors import ConfigError, unknown
from undrift.run import layers
from undrift.run.config import RunConfig
from undrift.run.device import find_device
from undrift.rundir import RunDir, missing

BUILT_IN = {"pocket": "undrift.run.pocket"}  # package with a `tower` module and a `weights` folder
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_ELSEWHERE = {"backbone": "; if it has moved, give its folder with --backbone DIR", "encoder": ""}
_PATIENCE = 5.0  # seconds in which the Hub has to answer at all


def check_named(backbone: str | None, encoder: str | None, device: str) -> str | None:
    """Refuse what is named and cannot be, before anything is read or drawn.

    Args:
        backbone: See `source`; None if it is loaded already.
        encoder: See `encoder_source`; None if a method needs none.
        device: See `find_device`.

    Returns:
        The folder or the Hub name of the backbone.

    Raises:
        ConfigError: If one of them cannot be.
    """
    find_device(device)
    if encoder is not None:
        encoder_source(encoder)
    return None if backbone is None else source(backbone)


def source(name: str) -> str:
    """Find a backbone without loading it.

    Args:
        name: "pocket", a folder, or a Hub name such as "llava-hf/llava-1.5-7b-hf".

    Returns:
        The folder, from anywhere, or the Hub name behind it.

    Raises:
        ConfigError: If it can be none.
        UnknownName: If there is no such name; the nearest is offered.
    """
    if name in BUILT_IN:
        importlib.import_module(f"{BUILT_IN[name]}.tower")
        spec = importlib.util.find_spec(BUILT_IN[name])
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"the backbone {name!r} is not part of this installation")
        return str(Path(spec.submodule_search_locations[0]) / "weights")
    folder = local_folder(name, "backbone")
    if folder is not None:
        if "undrift" in (folder / "config.json").read_text():  # a relative of a built-in one
            for package in BUILT_IN.values():
                importlib.import_module(f"{package}.tower")
        return str(folder.resolve())  # PEFT writes it beside an adapter
    if not _HUB_NAME.fullmatch(name):
        raise unknown("backbone", name, [*BUILT_IN, "a folder", "a Hub name such as org/model"])
    check_hub(name, "backbone")
    return name


def placed(config: RunConfig, files: RunDir | None) -> RunConfig:
    """Note where the backbone of a run lies, so that it is found from any other folder.

    A run that is gone on with keeps the name that its base was begun with, wherever that lies now:
    `--backbone DIR` names another place, and whether the same base is there its fingerprint tells.

    Args:
        config: What is asked for.
        files: The folder of the run, which may hold one that was begun; None to begin anew.

    Returns:
        The configuration with `backbone_folder`, if the backbone is a folder.
    """
    place = config.base
    folder = expanded(place).resolve()
    if place in BUILT_IN or not folder.is_dir():
        return config
    name = config.backbone
    if files is not None and files.config_file.is_file():
        there = layers.load_yaml(files.config_file)
        run = there.get("run", there)  # of `learn`, and of `run`
        begun = run.get("backbone") if isinstance(run, Mapping) else None
        if isinstance(begun, str) and (
            files.manifest_file.is_file() or str(folder) in (begun, run.get("backbone_folder"))
        ):
            name = begun
    kept = None if str(folder) == name else folder
    return config.model_copy(update={"backbone": name, "backbone_folder": kept})


def encoder_source(name: str) -> str:
    """Find an encoder without loading it.

    Args:
        name: A folder, or a Hub name such as "openai/clip-vit-large-patch14" or "gpt2".

    Returns:
        The folder or the Hub name.

    Raises:
        ConfigError: If it can be none.
    """
    folder = local_folder(name, "encoder")
    if folder is not None:
        return str(folder)
    check_hub(name, "encoder")
    return name


def local_folder(name: str, kind: str) -> Path | None:
    """Find the folder of a model.

    Args:
        name: As given by the user; `~` stands for the home.
        kind: What it should be, such as "backbone".

    Returns:
        The folder; None if the name looks like one of the Hub's.

    Raises:
        ConfigError: If the name looks like a path, and no model is there.
    """
    folder = expanded(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"the {kind} folder {folder} holds no config.json")
        return folder
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} is no folder; expected that of the {kind}, or a Hub name")
    if looks_local(name):
        raise ConfigError(f"cannot load the {kind} {name!r}: {missing(folder)}{_ELSEWHERE[kind]}")
    return None


def looks_local(name: str) -> bool:
    """Tell whether a name is meant as a path: by how it is written, or as it begins with a folder.

    Args:
        name: Such as "adapters/w1".

    Returns:
        Whether nobody could mean a name of the Hub's.
    """
    first, slash, _ = name.partition("/")
    written = name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
    windows = "\\" in name or re.match(r"[A-Za-z]:", name) is not None
    return written or windows or (bool(slash) and Path(first).is_dir())


def expanded(name: str | Path) -> Path:
    """Put the home in the place of `~`, as far as there is one."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 (it never raises)


def check_hub(name: str, kind: str) -> None:
    """Refuse a model of the Hub's that is neither in the cache nor can be fetched.

    Where the Hub does not answer, the libraries are told not to ask it again.

    Args:
        name: A Hub name.
        kind: What it should be, such as "backbone".

    Raises:
        ConfigError: If it cannot be had.
    """
    why = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
            return
        except Exception as error:  # whichever HTTP library it is, and whatever it calls a failure
            constants.HF_HUB_OFFLINE = True
            why = f"{constants.ENDPOINT} cannot be reached ({error or type(error).__name__})"
    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise ConfigError(
            f"cannot load the {kind} {name!r}: no folder of that name is here, it is not in the "
            f"Hub's cache, and {why}; give a folder, or download it first{_ELSEWHERE[kind]}"
        )
