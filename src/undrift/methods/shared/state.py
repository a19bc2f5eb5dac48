"""What a method knows of past tasks beside its adapter: named once, for files, ranks and sizes.

`Method.state` names it and `Method.restore` takes it back. The adapter's folder, `save_pretrained`,
checkpoints inside a task, the sums of several processes and counts of bytes follow from the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.methods.shared.tensor_files import load_tensors, save_tensors
from undrift.rundir import read_record, write_json
from undrift.rundir.records import Record
from undrift.tuner.distributed import full_tensor, sharded_like

_GONE = {
    "beside": "state_name",
    "save_beside": "state",
    "load_beside": "restore",
    "extra_bytes": "state",
    "ends_itself": "cut_off",
    "finish": "cut_off",
}
"""What a method could override before there was one protocol, and what it overrides now."""


def check_protocol(method: type) -> None:
    """Refuse a class of the protocol before this one: its state would be lost.

    Args:
        method: A subclass of `Method`.

    Raises:
        ConfigError: If it does; what to override instead is named.
    """
    for name, now in _GONE.items():
        if name in vars(method):
            raise ConfigError(
                f"{method.__name__}.{name} is of an older protocol; override {now} instead, see "
                "undrift.methods.base.Method"
            )


@dataclass(frozen=True)
class State:
    """What learning one more task needs, and PEFT's own file of the adapter does not hold.

    Attributes:
        tensors: What a safetensors file beside the adapter holds, by name: the tensors that the
            method works with, no copies. None where there is no such file.
        sums: Those, here or in the adapter, that every process adds up of its own examples. They
            are added up over all processes before they are saved, and never averaged; once they
            are loaded, only the first process goes on with them.
        values: What a JSON file beside the adapter holds. None where there is no such file.
        record: What the values must be when they are read.
        whole: All tensors are whole numbers, whatever their names.
        path: The file that it was read from.
    """

    tensors: Mapping[str, Tensor] | None = None
    sums: Sequence[Tensor] = ()
    values: Any = None
    record: type[Record] | None = None
    whole: bool = False
    path: Path = Path()

    def running(self) -> dict[str, Tensor]:
        """Name the sums, for `tuner.distributed.summed`."""
        return {str(place): each for place, each in enumerate(self.sums)}

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(each.numel() * each.element_size() for each in (self.tensors or {}).values())

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 has sharded one of the tensors."""
        return any(isinstance(each, DTensor) for each in (self.tensors or {}).values())

    def gathered(self) -> dict[str, Tensor]:
        """Gather the tensors that FSDP2 has sharded; all processes have to call it."""
        tensors = (self.tensors or {}).items()
        return {name: full_tensor(each) for name, each in tensors if isinstance(each, DTensor)}

    def file(self, name: str) -> str | None:
        """The file that it is kept in, under the method's `state_name`; None if in none."""
        if self.tensors is not None:
            return f"{name}.safetensors"
        return f"{name}.json" if self.values is not None else None

    def save(
        self, directory: Path, name: str, gathered: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write its file into the adapter's folder.

        Args:
            directory: The folder.
            name: The method's `state_name`.
            gathered: What `gathered` gave, where not all processes are here.
        """
        file = self.file(name)
        if file is not None and self.tensors is not None:
            tensors = {**self.tensors, **(gathered or self.gathered())}
            save_tensors(tensors, directory / file, whole=self.whole)
        elif file is not None:
            write_json(directory / file, self.values)

    def read(self, directory: Path, name: str) -> State:
        """Read what another state of this kind has saved.

        Args:
            directory: The adapter's folder.
            name: The method's `state_name`.

        Returns:
            Its tensors, on the CPU, or its values.

        Raises:
            RunDirError: If its file is missing or damaged.
        """
        file = self.file(name)
        if file is None:
            return State()
        path = directory / file
        if not path.is_file():
            raise RunDirError(
                f"{path} is missing; without it the adapter can be used but not go on learning. It "
                "is written by save_state, and into every checkpoint"
            )
        if self.tensors is not None:
            return State(load_tensors(path, whole=self.whole), path=path)
        assert self.record is not None
        return State(values=read_record(path, self.record), path=path)

    @torch.no_grad()
    def fill(self, saved: State) -> None:
        """Overwrite its tensors with saved ones of the same names and shapes.

        Args:
            saved: From `read`.

        Raises:
            AdapterMismatch: If a tensor is missing, left over or of another shape.
        """
        own, found = self.tensors or {}, saved.tensors or {}
        astray = sorted(found.keys() ^ own.keys())
        if astray:
            raise saved.mismatch(f"it {'lacks' if astray[0] in own else 'has'} {astray[0]}")
        for name, each in own.items():
            if found[name].shape != each.shape:
                there, here = tuple(found[name].shape), tuple(each.shape)
                raise saved.mismatch(f"{name} is {there} there and {here} here")
            each.copy_(sharded_like(each, found[name]))

    def mismatch(self, why: str) -> AdapterMismatch:
        """Make the error of a file that belongs to another adapter."""
        return AdapterMismatch(f"{self.path} is of another adapter: {why}")


def checkpoint_folder(args: Any, state: Any) -> Path:
    """The folder of a trainer's checkpoint after the current step.

    Args:
        args: The trainer's arguments.
        state: The trainer's state.

    Returns:
        Where it resumes from, or where it has just saved.
    """
    name = f"checkpoint-{state.global_step}"
    given = args.resume_from_checkpoint
    if isinstance(given, str) and Path(given).name == name:
        return Path(given)
    return Path(args.output_dir) / name
