"""Names to objects: a file's stem is the name, so a new method or benchmark is one new file.

Nothing is imported before it is asked for: `names()` reads the folder's listing, so that
`undrift list` and `undrift --help` stay instant. Other packages add names through entry points::

    [project.entry-points."undrift.methods"]
    mymethod = "mypackage.mymethod:MyMethod"
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from undrift.errors import ConfigError, unknown


@dataclass(frozen=True)
class Registry:
    """The files of one package, each of which offers one object under one attribute.

    Args:
        kind: What a name stands for, used in messages ("method").
        package: The package whose files are listed ("undrift.methods").
        attribute: What each file calls its object ("METHOD").
        hidden: Files of the package that are no names (a base class).
    """

    kind: str
    package: str
    attribute: str
    hidden: Collection[str] = ()

    def names(self) -> list[str]:
        """List every name, sorted, without importing any of the files."""
        return sorted({*self._files(), *self._plugins()})

    def load(self, name: str) -> Any:
        """Import the file called `name` and return its object.

        Args:
            name: The stem of a file in the package, or the name of an entry point.

        Returns:
            What the file holds under the registry's attribute.

        Raises:
            UnknownName: If there is no such name; the message offers the nearest.
            ConfigError: If the file lacks the attribute, or if another package registers a name
                that undrift itself uses.
        """
        files, plugins = self._files(), self._plugins()
        if name in files and name in plugins:
            raise ConfigError(
                f"{self.kind} {name!r} is part of undrift, and {plugins[name].value} registers "
                f"the same name; rename the entry point in the group {self.package!r}"
            )
        if name in plugins:
            return plugins[name].load()
        if name not in files:
            raise unknown(self.kind, name, self.names())
        module = importlib.import_module(f"{self.package}.{name}")
        if not hasattr(module, self.attribute):
            raise ConfigError(
                f"{module.__name__} has no {self.attribute}; a file in {self.package} must define "
                f"it (or be listed as hidden)"
            )
        return getattr(module, self.attribute)

    def split(self, name: str) -> tuple[str, str | None]:
        """Split `"<name>-<setting>"` into its two parts.

        Args:
            name: Such as "same-paper", or "same", which has no setting.

        Returns:
            The name and the setting, or None where no setting is given.

        Raises:
            UnknownName: If neither `name` nor what stands before a hyphen is known.
        """
        known = self.names()
        if name in known:
            return name, None
        stem, hyphen, setting = name.rpartition("-")
        if hyphen and setting and stem in known:
            return stem, setting
        raise unknown(self.kind, name, known)

    def _files(self) -> set[str]:
        spec = importlib.util.find_spec(self.package)
        folders = spec.submodule_search_locations if spec is not None else None
        return {
            module.name
            for module in pkgutil.iter_modules(folders or [])
            if not module.ispkg and not module.name.startswith("_")
        } - set(self.hidden)

    def _plugins(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.package)}


METHODS = Registry("method", "undrift.methods", "METHOD", hidden=("base",))
BENCHMARKS = Registry("benchmark", "undrift.data.benchmarks", "benchmark")
