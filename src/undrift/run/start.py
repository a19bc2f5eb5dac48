"""Where `undrift learn` starts: a model by itself, or an adapter and what was noted beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undrift.errors import ConfigError, RunDirError
from undrift.run.adapters import find_adapter, origin_of
from undrift.run.config import RunConfig, merged, resolve, spelled_out, validated
from undrift.run.learned_tasks import Note
from undrift.run.load_model import source


@dataclass(frozen=True)
class Start:
    """What learning goes on from.

    Args:
        config: The run that the adapter comes from, with what is asked for now put over it.
        adapter: The adapter's folder; None to start one.
        notes: A note of each task it has learned, see `undrift.run.learned_tasks`.
        fingerprint: Of the backbone that it was trained on, if there is one.
        changes: What had changed while it was made, see `undrift.run.input_changes`.
    """

    config: RunConfig
    adapter: Path | None = None
    notes: Sequence[Note] = ()
    fingerprint: str | None = None
    changes: Sequence[Mapping[str, Any]] = ()


def start_from(given: str, *asked: Mapping[str, Any]) -> Start:
    """Find out what to go on from.

    Args:
        given: An adapter's folder, a run's, that of an earlier `learn`; or a backbone.
        *asked: Layers of configuration, as in `undrift.run.config`.

    Returns:
        The start.

    Raises:
        ConfigError: If it is neither, or a layer cannot be used.
        RunDirError: If the adapter was not saved by undrift's own commands.
    """
    try:
        folder = find_adapter(Path(given))
    except RunDirError:
        source(given)  # a name that cannot be a backbone either is told now
        return Start(resolve({"benchmark": "folder", "backbone": given}, *asked))
    origin = origin_of(folder)
    if "learned" not in origin:
        raise RunDirError(
            f"{folder} does not say which tasks it has learned; start from an adapter that "
            "`undrift run` or `undrift learn` has saved"
        )
    own = {key: value for layer in map(spelled_out, asked) for key, value in layer.items()}
    name = own.get("method", {}).get("name", origin["method"])
    if name != origin["method"]:
        raise ConfigError(
            f"{folder} was made by {origin['method']!r}, and cannot be continued by {name!r}; "
            "leave out --method"
        )
    content = merged(spelled_out(origin["run"]), *map(spelled_out, asked))
    if "backbone" in own and "backbone_folder" not in own:
        content.pop("backbone_folder", None)  # that of another place
    config = validated(RunConfig, content)
    changes = origin.get("changes", ())
    return Start(config, folder, origin["learned"], origin["fingerprint"], changes)
