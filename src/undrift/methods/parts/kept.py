"""What a method keeps with an adapter besides its weights: it goes wherever PEFT saves these.

PEFT has no place for it. So it hangs on the PeftModel by the adapter's name: `save_pretrained`, and
with it every checkpoint of a trainer, writes its files into the adapter's folder; `load_adapter`,
and with it `from_pretrained`, notes where an adapter came from; a copy of the model has a copy of
it. The three methods of PeftModel are extended when this is imported, which `import undrift` sees
to; they do what they did for every adapter that no method keeps anything with.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftModel

from undrift.errors import ConfigError, RunDirError
from undrift.methods.parts.card import RECORD, MethodState, is_ours, write_card
from undrift.rundir import atomic_write, read_record, write_json

_TYPES = ("MOE_LORA", "POOL_LORA", "SOFT_PROMPT")  # PEFT's own card would not say how to load them
_KEPT = "undrift_kept"
_HUB = ("revision", "cache_dir", "token", "subfolder")


class Keeper(Protocol):
    """A method, as far as this file knows it."""

    def record(self) -> dict[str, Any]:
        """Say what RECORD says."""
        ...

    def save_beside(self, model: PeftModel, directory: Path) -> None:
        """Write the files that lie beside the adapter."""
        ...


class Kept:
    """What is kept with one adapter of one model.

    Args:
        model: The model; None of a copy.
        name: The adapter's name.
        keeper: The method that trains it.
        source: Or where it was loaded from: a folder or a Hub name, and how PEFT finds it there.

    Attributes:
        files: Or the contents of the files, by name.
    """

    def __init__(
        self,
        model: PeftModel | None = None,
        name: str = "default",
        keeper: Keeper | None = None,
        source: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.model = weakref.ref(model) if model is not None else None
        self.name, self.keeper, self.source = name, keeper, source
        self.files: dict[str, bytes] = {}
        self._loaded = _versions(model, name) if model is not None and source else ()

    def freeze(self) -> None:
        """Hold the files themselves: the method goes on with another adapter, or this is a copy."""
        model = self.model() if self.model is not None else None
        if model is not None:
            with tempfile.TemporaryDirectory() as folder:
                self.write(model, Path(folder))
                self.files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
        self.model = self.keeper = self.source = None

    def write(self, model: PeftModel, directory: Path) -> None:
        """Write all of it into a folder; a record there of an earlier adapter goes.

        Args:
            model: The model.
            directory: The adapter's folder.
        """
        if self.keeper is not None:
            self.keeper.save_beside(model, directory)
            write_json(directory / RECORD, self.keeper.record())
            return
        files = self.files or self._read(model)
        if RECORD not in files:
            (directory / RECORD).unlink(missing_ok=True)
        for name, content in files.items():
            atomic_write(directory / name, content)

    @contextmanager
    def folder(self) -> Iterator[Path | None]:
        """Within this context its files lie in a folder.

        Yields:
            The folder; None if a method has kept nothing with the adapter.

        Raises:
            ConfigError: If the adapter was trained since it was loaded, by something else.
        """
        model = self.model() if self.model is not None else None
        files = self.files or (self._read(model) if model is not None else {})
        if self._trained_since(model):
            raise ConfigError(
                f"the adapter {self.name!r} was trained after it was loaded, and not by an undrift "
                "method: what it has learned since is not in its history. Load it again, or call "
                "method.start_history(model) to go on without the history"
            )
        with tempfile.TemporaryDirectory() as made:
            for name, content in files.items():
                (Path(made) / name).write_bytes(content)
            yield Path(made) if RECORD in files else None

    def _trained_since(self, model: PeftModel | None) -> bool:
        return (
            bool(self._loaded) and model is not None and self._loaded != _versions(model, self.name)
        )

    def _read(self, model: PeftModel | None) -> dict[str, bytes]:
        """The files that lie where it was loaded from; none if they are of other weights."""
        record = self._find(RECORD)
        if record is None or self._trained_since(model):
            return {}
        files = {RECORD: record.read_bytes()}
        for name in read_record(record, MethodState)["files"]:
            path = self._find(name)
            if path is None:
                raise RunDirError(f"{record} names {name}, which is not there; copy it as well")
            files[name] = path.read_bytes()
        return files

    def _find(self, name: str) -> Path | None:
        """Find a file where PEFT found the adapter: in a folder, or on the Hub."""
        if self.source is None:
            return None
        origin, how = self.source
        if Path(origin).is_dir():
            path = Path(origin) / how.get("subfolder", "") / name
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(origin, name, **how))
        except EntryNotFoundError:
            return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        copied = Kept(name=self.name)
        copied.model, copied.keeper, copied.source = self.model, self.keeper, self.source
        copied.files, copied._loaded = self.files, self._loaded
        copied.freeze()
        copied._loaded = ()
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()


def _versions(model: PeftModel, name: str) -> tuple[int, ...]:
    """How often each parameter of an adapter was written."""
    return tuple(p._version for key, p in model.named_parameters() if name in key.split("."))


def kept_with(model: PeftModel) -> dict[str, Kept]:
    """Return what is kept with a model's adapters.

    Args:
        model: A PeftModel.

    Returns:
        By the adapter's name; it may be added to.
    """
    return model.__dict__.setdefault(_KEPT, {})


def _extend(name: str) -> Callable[[Callable[..., Any]], None]:
    """Let a function of (its own method, the model, its arguments) stand for PeftModel's."""

    def put(made: Callable[..., Any]) -> None:
        original = getattr(PeftModel, name)
        if hasattr(original, _KEPT):
            return

        @wraps(original)
        def extended(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
            given = signature(original).bind(self, *args, **kwargs)
            given.apply_defaults()
            return made(lambda: original(self, *args, **kwargs), self, given.arguments)

        setattr(extended, _KEPT, True)
        setattr(PeftModel, name, extended)

    return put


@_extend("save_pretrained")
def _save(original: Callable[[], None], model: PeftModel, given: Mapping[str, Any]) -> None:
    original()
    chosen = given["selected_adapters"] or list(model.peft_config)
    for name in chosen if given["is_main_process"] else ():
        folder = Path(given["save_directory"]) / ("" if name == "default" else name)
        kept_with(model).get(name, Kept()).write(model, folder)
        if _is_ours(model, name) or (folder / RECORD).exists():
            write_card(folder)


@_extend("load_adapter")
def _load(original: Callable[[], Any], model: PeftModel, given: Mapping[str, Any]) -> Any:
    done = original()
    how = {key: given["kwargs"][key] for key in _HUB if given["kwargs"].get(key) is not None}
    source = (str(given["model_id"]), how)
    kept_with(model)[given["adapter_name"]] = Kept(model, given["adapter_name"], source=source)
    return done


@_extend("delete_adapter")
def _delete(original: Callable[[], None], model: PeftModel, given: Mapping[str, Any]) -> None:
    original()
    kept_with(model).pop(given["adapter_name"], None)


@_extend("create_or_update_model_card")
def _card(original: Callable[[], None], model: PeftModel, given: Mapping[str, Any]) -> None:
    """Leave the card to `write_card`, which needs the other files, where it is ours."""
    folder = Path(given["output_dir"])
    if not (any(_is_ours(model, name) for name in model.peft_config) and is_ours(folder)):
        original()


def _is_ours(model: PeftModel, name: str) -> bool:
    kind = str(model.peft_config[name].peft_type).removeprefix("PeftType.")
    return kind in _TYPES or kept_with(model).get(name, Kept()).keeper is not None
