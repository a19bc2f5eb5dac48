"""Names to objects: a file's stem is the name, so a new method or benchmark is one new file.

Nothing is imported before it is asked for: `names()` reads the folder's listing, so that
`undrift list` and `undrift --help` stay instant. Other packages add names through entry points::

    [project.entry-points."undrift.methods"]
    mymethod = "mypackage.mymethod:MyMethod"

What cannot be loaded hurts only who asks for it by its name.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from undrift.errors import ConfigError, UndriftError, unknown


def registered(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of other packages, looked for again where a path has changed."""
    return _registered(group, tuple((path, _changed(path)) for path in sys.path))


@lru_cache(maxsize=64)  # a look takes a tenth of a second, and every run looks a dozen times
def _registered(group: str, _paths: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _changed(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


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
        return sorted({*self._files(), *self.plugins()})

    def plugins(self) -> set[str]:
        """Return the names that other packages add."""
        return {point.name for point in registered(self.package)}

    def load(self, name: str) -> Any:
        """Import the file, or the entry point, called `name` and return its object.

        UnknownName offers the nearest name. Another ConfigError says that the file lacks the
        attribute, that another package registers a name that undrift itself or a third one uses, or
        that what it registers cannot be loaded.
        """
        files = self._files()
        plugins = [point for point in registered(self.package) if point.name == name]
        if name in files and plugins:
            raise ConfigError(
                f"{self.kind} {name!r} is part of undrift, and {plugins[0].value} registers "
                f"the same name; rename the entry point in the group {self.package!r}"
            )
        if plugins:
            return self._plugged(name, plugins)
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
        """Split a name such as "same-paper" into name and setting; "same" has None."""
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

    def _plugged(self, name: str, points: list[EntryPoint]) -> Any:
        places = sorted({point.value for point in points})
        if len(places) > 1:
            raise ConfigError(
                f"{self.kind} {name!r} is registered twice, as {' and '.join(places)}; rename one "
                f"of the entry points in the group {self.package!r}, or uninstall its package"
            )
        try:
            return points[0].load()
        except UndriftError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.kind} {name!r} cannot be loaded from {places[0]}, which the group "
                f"{self.package!r} names ({type(error).__name__}: {error}); mend that package or "
                "uninstall it"
            ) from error


METHODS = Registry("method", "undrift.methods", "METHOD", hidden=("base",))
DEFAULT_METHOD = "nearlora"
"""Who learns where nobody is named; docs/decisions.md says why."""
BENCHMARKS = Registry("benchmark", "undrift.data.benchmarks", "benchmark")
SCORERS = Registry("scorer", "undrift.scorers", "")  # of other packages: ours are in scoring
