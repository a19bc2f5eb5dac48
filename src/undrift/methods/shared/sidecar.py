"""What a method keeps with an adapter besides its weights: it goes wherever PEFT saves these.

PEFT has no place for it. So it hangs on the PeftModel by the adapter's name: `save_pretrained`, and
with it every checkpoint of a trainer, writes its files into the adapter's folder; `load_adapter`,
and with it `from_pretrained`, notes where an adapter came from; a copy of the model has a copy of
it. The three methods of PeftModel are extended when this is imported, which `import undrift` sees
to; they do what they did for every adapter that no method keeps anything with.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import PeftModel
from torch import Tensor
from torch.distributed.tensor import DTensor

from undrift.errors import ConfigError, RunDirError
from undrift.methods.shared.model_card import RECORD, MethodState, is_ours, write_card
from undrift.rundir import atomic_write, read_record, write_json
from undrift.rundir.files import own_folder, temporary_folder
from undrift.tuner.distributed import full_tensor, is_sharded
from undrift.tuner.frozen import named_frozen

if TYPE_CHECKING:
    from undrift.methods.base import Method

_TYPES = ("MOE_LORA", "POOL_LORA", "SOFT_PROMPT")  # PEFT's own card would not say how to load them
_SIDECARS = "undrift_sidecars"
_HUB = ("revision", "cache_dir", "token", "subfolder")
_CASTS = (torch.float32, torch.bfloat16, torch.float16)  # what `.to(dtype)` may make of an adapter


class Sidecar:
    """What is kept with one adapter of one model.

    Args:
        model: The model; None of a copy.
        name: The adapter's name.
        method: The method that trains it.
        source: Or where it was loaded from: a folder or a Hub name, and how PEFT finds it there.

    Attributes:
        files: Or the contents of the files, by name.
        loaded: Whether the adapter was loaded.
    """

    def __init__(
        self,
        model: PeftModel | None = None,
        name: str = "default",
        method: Method | None = None,
        source: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.model = weakref.ref(model) if model is not None else None
        self.name, self.method, self.source = name, method, source
        self.files: dict[str, bytes] = {}
        self.loaded = source is not None
        self._noted = _contents(model, name, _CASTS) if model is not None else []
        if source is not None and Path(source[0]).is_dir():  # now: others may be saved there later
            self.source = (str(Path(source[0]).resolve()), source[1])
            with suppress(RunDirError, OSError):  # said when the history is needed
                self.files = self._read()
                self.source = None

    def freeze(self) -> None:
        """Hold the files themselves: the method goes on with another adapter, or this is a copy."""
        model = self.model() if self.model is not None else None
        if model is not None:
            with own_folder() as folder:
                self.write(model, folder)
                self.files = {file.name: file.read_bytes() for file in folder.iterdir()}
        if self.method is not None and self.method.learning:
            self._noted = []
        self.model = self.method = self.source = None

    def write(self, model: PeftModel, directory: Path) -> None:
        """Write all of it into a folder; a record there of an earlier adapter goes.

        Args:
            model: The model.
            directory: The adapter's folder.
        """
        changed = self.changed(model)
        if self.method is not None and not changed:
            self.method.save_beside(model, directory)
            write_json(directory / RECORD, self.method.record(model))
            return
        try:
            files = {} if changed else self.files or self._read()
        except _Offline as error:
            warnings.warn(f"{error}; it was saved without", stacklevel=4)
            files = {}
        if RECORD not in files:
            (directory / RECORD).unlink(missing_ok=True)
        for name, content in files.items():
            atomic_write(directory / name, content)

    @contextmanager
    def folder(self) -> Iterator[Path | None]:
        """Within this context its files lie in a folder.

        Yields:
            The folder; None if a method has kept nothing with the adapter.
        """
        files = self.files or self._read()
        with temporary_folder() as made:
            for name, content in files.items():
                (made / name).write_bytes(content)
            yield made if RECORD in files else None

    def changed(self, model: PeftModel) -> bool:
        """Tell whether something else has written the weights since they were loaded or learned.

        Args:
            model: The model.

        Returns:
            Whether it has; another precision is no change. False where it cannot be told: inside a
            task, and of weights in shards.
        """
        if self.method is not None and self.method.learning:
            return False
        now = _contents(model, self.name, _CASTS[:1])
        if not (self._noted and now):
            return False
        return len(now) != len(self._noted) or any(
            own not in known for (own,), known in zip(now, self._noted, strict=True)
        )

    def check_unchanged(self, model: PeftModel) -> None:
        """Refuse weights that the history is not of.

        Args:
            model: The model.

        Raises:
            ConfigError: If something else has trained them.
        """
        if self.changed(model):
            raise ConfigError(
                f"the adapter {self.name!r} was trained after it was loaded, or after its last "
                "task, and not by an undrift method: what it has learned since is not in its "
                "history. Load it again, or call method.start_history(model) to go on without the "
                "history"
            )

    def _read(self) -> dict[str, bytes]:
        """The files that lie where it was loaded from."""
        record = self._find(RECORD)
        if record is None:
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
        except LocalEntryNotFoundError as error:  # it may well be there
            raise _Offline(
                f"the Hub could not be asked whether {origin} has a {name}, where the history of "
                f"the adapter {self.name!r} is: go online, or load it from a folder"
            ) from error
        except EntryNotFoundError:
            return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Sidecar:
        copied = Sidecar(name=self.name)
        copied.__dict__.update(self.__dict__)
        model = self.model() if self.model is not None else None
        if model is not None and self.method is not None:
            self.method.flush(model)
        copied.freeze()
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return Sidecar, ()


class _Offline(RunDirError):
    """A history that may lie on the Hub, which cannot be reached."""


@torch.no_grad()
def _contents(model: PeftModel, name: str, casts: tuple[torch.dtype, ...]) -> list[list[int]]:
    """A digest of each tensor of an adapter in each precision; none if one is not here whole."""
    held = (*model.named_parameters(), *named_frozen(model))
    own = [p for key, p in held if name in key.split(".")]
    if any(isinstance(p, DTensor) or p.is_meta for p in own):
        return []
    return [[_digest(p.float().to(cast).float()) for cast in casts] for p in own]


def _digest(values: Tensor) -> int:
    """Sum up bits, each value's with an odd weight of its own: exact in any order, anywhere."""
    bits = values.contiguous().flatten().view(torch.int32).long()
    return int((bits * (2 * torch.arange(bits.numel(), device=bits.device) + 1)).sum())


def sidecars(model: PeftModel) -> dict[str, Sidecar]:
    """Return what is kept with a model's adapters.

    Args:
        model: A PeftModel.

    Returns:
        By the adapter's name; it may be added to.
    """
    return model.__dict__.setdefault(_SIDECARS, {})


def _extend(name: str) -> Callable[[Callable[..., Any]], None]:
    """Let a function of (its own method, the model, its arguments) stand for PeftModel's.

    What the function gives its own method beside is added to the arguments.
    """

    def put(made: Callable[..., Any]) -> None:
        original = getattr(PeftModel, name)
        if hasattr(original, _SIDECARS):
            return

        @wraps(original)
        def extended(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
            given = signature(original).bind(self, *args, **kwargs)
            given.apply_defaults()
            call = partial(original, self, *args, **kwargs)
            return made(call, self, given.arguments)

        setattr(extended, _SIDECARS, True)
        setattr(PeftModel, name, extended)

    return put


@_extend("save_pretrained")
def _save(original: Callable[..., None], model: PeftModel, given: Mapping[str, Any]) -> None:
    chosen = given["selected_adapters"] or list(model.peft_config)
    if given["kwargs"].get("state_dict") is None and is_sharded(model):
        held = model.state_dict()
        own = {key for key in held if not {*key.split(".")}.isdisjoint(chosen)}
        original = partial(
            original, state_dict={k: full_tensor(v) if k in own else v for k, v in held.items()}
        )
    chosen = chosen if given["is_main_process"] else ()
    for name in chosen:
        method = sidecars(model).get(name, Sidecar()).method
        if method is not None:
            method.flush(model)  # before: some state lies in the adapter itself
    original()
    for name in chosen:
        folder = Path(given["save_directory"]) / ("" if name == "default" else name)
        sidecars(model).get(name, Sidecar()).write(model, folder)
        if _is_ours(model, name) or (folder / RECORD).exists():
            write_card(folder)


@_extend("load_adapter")
def _load(original: Callable[[], Any], model: PeftModel, given: Mapping[str, Any]) -> Any:
    done = original()
    how = {key: given["kwargs"][key] for key in _HUB if given["kwargs"].get(key) is not None}
    source = (str(given["model_id"]), how)
    sidecars(model)[given["adapter_name"]] = Sidecar(model, given["adapter_name"], source=source)
    return done


@_extend("delete_adapter")
def _delete(original: Callable[[], None], model: PeftModel, given: Mapping[str, Any]) -> None:
    original()
    sidecars(model).pop(given["adapter_name"], None)


@_extend("create_or_update_model_card")
def _card(original: Callable[[], None], model: PeftModel, given: Mapping[str, Any]) -> None:
    """Leave the card to `write_card`, which needs the other files, where it is ours."""
    folder = Path(given["output_dir"])
    if not (any(_is_ours(model, name) for name in model.peft_config) and is_ours(folder)):
        original()


def _is_ours(model: PeftModel, name: str) -> bool:
    kind = str(model.peft_config[name].peft_type).removeprefix("PeftType.")
    return kind in _TYPES or sidecars(model).get(name, Sidecar()).method is not None
