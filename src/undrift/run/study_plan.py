"""A study's file, read and checked, and its cells: which runs it is made of, which rate is next.

Every cell is one `undrift run`. Its folder is named by a digest of all that decides its numbers,
so a folder never holds another cell's run, and two rows that ask for the same share it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from undrift.data.types import Benchmark
from undrift.errors import ConfigError, unknown
from undrift.methods.base import Method
from undrift.run.config import (
    Frozen,
    RunConfig,
    load_yaml,
    overrides,
    parse_mapping,
    read_order,
    resolve,
    spelled_out,
    validated,
)
from undrift.run.session import make_method, options_used
from undrift.run.stream import for_stream
from undrift.rundir import RunDir, read_record
from undrift.rundir.records import Manifest, Matrix

Order = str | tuple[str, ...]
Rates = Mapping[str, Sequence[float | None]]

SIDE_STEPS = 3  # how many rates `widen` may add on each side of those in the file

_OWN = {"benchmark": "benchmark", "seed": "seeds", "order": "orders"}  # a run's key: the study's


class Row(Frozen):
    """One row of the table; in YAML a method's name, or a mapping.

    Args:
        label: Its name in tables and for `rates`, `against` and --only; the method's by itself.
        method: Such as "same", or "same-paper".
        options: What is changed, by dotted keys as after --set; in YAML it is called `set`.
        seeds: Those of the study's seeds that this row is run with; all where not given.
    """

    label: str
    method: str
    options: dict[str, Any] = Field(default={}, alias="set")
    seeds: tuple[NonNegativeInt, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"method": value}
        if isinstance(value, Mapping) and "label" not in value:
            value = {"label": value.get("method"), **value}
        return value


class StudyConfig(Frozen):
    """The content of a study's file.

    Args:
        benchmark: Its name.
        rows: The rows of the table.
        seeds: Every row is run with each; a method that learns nothing with the first one only.
        orders: Orders of the tasks, by name, by file, or as lists of task names.
        results: The table without its ending: RESULTS.json and RESULTS.md are written.
        run: The base of every cell, any keys of a run's file (profile, train, eval, method ...).
        against: The label of the row that the others are compared with, pair by pair.
        rates: Learning rates to try, by label; every rate of a row is a cell of its own.
        widen: While a row's best rate lies at the edge of those tried, try the one beyond it.
        drop: A rate that lies this many points below its row's best with the first seed, in the
            mean over orders, is not run with the other seeds; every rate is where not given.
    """

    benchmark: str
    rows: tuple[Row, ...] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    orders: tuple[Order, ...] = Field(default=("default",), min_length=1)
    results: Path
    run: dict[str, Any] = Field(default={})
    against: str | None = None
    rates: dict[str, tuple[PositiveFloat, ...]] = Field(default={})
    widen: bool = False
    drop: PositiveFloat | None = None

    @property
    def first_rates(self) -> dict[str, tuple[float | None, ...]]:
        """The rates of the file by label; None where a row has its usual rate."""
        return {row.label: tuple(sorted(self.rates.get(row.label, ()))) or (None,)
                for row in self.rows}  # fmt: skip


def load_study(path: Path) -> StudyConfig:
    """Read a study's file.

    Args:
        path: The YAML file.

    Returns:
        The study.

    Raises:
        ConfigError: If something in it cannot be used.
        UnknownName: If a key or label does not exist.
    """
    study = validated(StudyConfig, load_yaml(path))
    _check(study)
    orders = tuple(read_order(o) if isinstance(o, str) else o for o in study.orders)
    return study.model_copy(update={"orders": orders})


def _check(study: StudyConfig) -> None:
    labels = [row.label for row in study.rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"rows: {label!r} stands twice; give one of them a `label:`")
    for key, given in (("seeds", study.seeds), ("orders", study.orders)):
        if len(set(given)) < len(given):
            raise ConfigError(f"{key}: a value stands twice in {list(given)}")
    for key, named in (("against", [study.against] if study.against else []),
                       ("rates", list(study.rates))):  # fmt: skip
        for label in named:
            if label not in labels:
                raise unknown(f"label in {key}", label, labels)
    for label, rates in study.rates.items():
        if not rates or len(set(rates)) < len(rates):
            raise ConfigError(f"rates.{label}: expected different rates (got {list(rates)})")
    if study.against and len(study.rates.get(study.against, (0,))) > 1:
        raise ConfigError(f"against: {study.against!r} has several rates; name a row with one")
    for key, given in (("widen", study.widen), ("drop", study.drop)):
        if given and not study.rates:
            raise ConfigError(f"{key}: there are no `rates` to {key}")
    for key in study.run:
        if key in _OWN:
            raise ConfigError(f"run.{key}: give it as `{_OWN[key]}:` of the study itself")
        if key in ("out", "threads"):
            raise ConfigError(f"run.{key}: a study decides that itself; leave it out")
    for row in study.rows:
        if not {*row.seeds} <= {*study.seeds} or len({*row.seeds}) < len(row.seeds):
            raise ConfigError(
                f"seeds of {row.label!r}: expected some of the study's own, {list(study.seeds)} "
                f"(got {list(row.seeds)})"
            )
        for key in row.options:
            if key in (*_OWN, "method", "method.name", "out", "threads") or (
                key.partition(".")[0] == "reading"
            ):
                raise ConfigError(f"set.{key} of {row.label!r}: a row cannot change this")
    method = study.run.get("method", {})
    if not isinstance(method, Mapping) or "name" in method:
        raise ConfigError("run.method: options only; the methods themselves are the `rows:`")
    reading = study.run.get("reading", {})
    if not isinstance(reading, Mapping):
        raise ConfigError(f"run.reading: expected options, `key: value` (got {reading!r})")


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        row: The row it belongs to.
        seed: Its seed.
        order: Its order.
        rate: The learning rate that the study gives it; None for the usual one.
        trained: Whether the method learns anything.
        setting: Which named setting the method has; None if it has no settings.
        words: The command behind `undrift`, but for --out.
        config: What that command asks for.
        settings: What its manifest must say about method and rate, defaults included.
        fingerprint: What its manifest must say about the data.
        name: The name of its folder.
    """

    row: Row
    seed: int
    order: Order
    rate: float | None
    trained: bool
    setting: str | None
    words: tuple[str, ...]
    config: RunConfig
    settings: Mapping[str, Any]
    fingerprint: str
    name: str

    @property
    def title(self) -> str:
        """Its name for people, such as "same, seed 0, rate 0.006"."""
        order = self.order if isinstance(self.order, str) else ", ".join(self.order)
        said = [self.row.label, f"seed {self.seed}"]
        said += [f"order {order}"] * (order != "default")
        said += [] if self.rate is None else [f"rate {self.rate:g}"]
        return ", ".join(said)

    @property
    def known(self) -> dict[str, Any]:
        """Its name for programs."""
        return {"label": self.row.label, "seed": self.seed, "order": self.order,
                "learning_rate": self.rate}  # fmt: skip

    def last(self, run: RunDir) -> float | None:
        """Return the last average of a run, if it is finished and just what is asked for here."""
        files = (run.config_file, run.manifest_file, run.matrix_file)
        if not all(file.is_file() for file in files):
            return None
        manifest = read_record(run.manifest_file, Manifest)
        same = run.config_text() == self.config.text()
        same = same and manifest["settings"] == self.settings
        same = same and manifest["data"]["fingerprint"] == self.fingerprint
        return read_record(run.matrix_file, Matrix)["metrics"]["last"] if same else None


class Plan:
    """Makes the cells of a study.

    Args:
        study: The study.
        benchmark: The benchmark, loaded.

    Raises:
        ConfigError: If a cell cannot be run.
        UnknownName: If a method, option, order ... does not exist.
    """

    def __init__(self, study: StudyConfig, benchmark: Benchmark) -> None:
        self.study = study
        self.benchmark = benchmark
        self._cells: dict[tuple[str, float | None], list[Cell]] = {}
        for order in study.orders:
            benchmark.in_order(order)
        for cell in self.cells(study.first_rates):  # every mistake is told before anything runs
            if cell.rate is not None and not cell.trained:
                raise ConfigError(f"rates: {cell.row.label!r} learns nothing, so it has no rate")

    def cells(self, rates: Rates) -> list[Cell]:
        """List all cells, row by row, and within a row by rate, order and seed.

        Args:
            rates: Which rates to try, by label.

        Returns:
            The cells.
        """
        return [cell for row in self.study.rows for cell in self.of_row(row, rates[row.label])]

    def of_row(self, row: Row, rates: Sequence[float | None]) -> list[Cell]:
        """List the cells of a row, by rate, order and seed.

        Args:
            row: The row.
            rates: Which rates to try.

        Returns:
            The cells.
        """
        for rate in rates:
            if (row.label, rate) not in self._cells:
                self._cells[row.label, rate] = list(self._at_rate(row, rate))
        return [cell for rate in rates for cell in self._cells[row.label, rate]]

    def _at_rate(self, row: Row, rate: float | None) -> Iterator[Cell]:
        """Make the cells of a row at one rate; they differ in order and seed only."""
        own = spelled_out(self.study.run)
        profile = dict(own.get("profile", {}))
        name = profile.pop("name", None)
        changes = {**_dotted({**own, "profile": profile}), **row.options}
        if rate is not None:
            changes["train.learning_rate"] = rate
        asked = {"benchmark": self.study.benchmark, "method": row.method}
        asked |= {"profile": name} if name is not None else {}
        config = for_stream(resolve(asked, overrides(_settings(changes))))
        method = make_method(config.method.name, config.method.options)
        settings = json.loads(json.dumps(options_used(config, method)))
        setting = _setting(row.method)
        seeds = row.seeds or self.study.seeds
        seeds = seeds if method.needs_training else seeds[:1]
        for order, seed in product(self.study.orders, seeds):
            named = isinstance(order, str)
            words = ["run", self.study.benchmark, "--method", row.method, "--seed", str(seed)]
            words += ["--order", order] if named and order != "default" else []
            words += ["--profile", name] if name is not None else []
            listed = {} if named else {"order": list(order)}
            words += [w for text in _settings({**changes, **listed}) for w in ("--set", text)]
            of_cell = config.model_copy(update={"seed": seed, "order": order})
            yield Cell(
                row=row,
                seed=seed,
                order=order,
                rate=rate,
                trained=method.needs_training,
                setting=setting,
                words=tuple(words),
                config=of_cell,
                settings=settings,
                fingerprint=self.benchmark.fingerprint,
                name=_name(of_cell, method, self.benchmark),
            )


def next_rate(means: Mapping[float, float], first: Sequence[float]) -> float | None:
    """Choose the rate to try next, beyond the edge where the best one lies.

    Args:
        means: What each rate tried has reached; minus infinity for one that failed.
        first: The rates of the study's file; not more than SIDE_STEPS are added on a side.

    Returns:
        The rate, or None if the best one has neighbours, or nothing has worked.
    """
    tried = sorted(means)
    best = best_rate(means)
    if best is None:
        return None
    if best == tried[0] and sum(rate < min(first) for rate in tried) < SIDE_STEPS:
        ratio = tried[1] / tried[0] if len(tried) > 1 else 2.0
        return float(f"{tried[0] / ratio:.6g}")
    if best == tried[-1] and sum(rate > max(first) for rate in tried) < SIDE_STEPS:
        ratio = tried[-1] / tried[-2] if len(tried) > 1 else 2.0
        return float(f"{tried[-1] * ratio:.6g}")
    return None


def best_rate(means: Mapping[float, float]) -> float | None:
    """Choose the rate with the highest mean, the smaller one of two equal ones; None if none is."""
    worked = {rate: mean for rate, mean in means.items() if mean > float("-inf")}
    return max(sorted(worked), key=worked.__getitem__) if worked else None


def _dotted(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write {"train": {"epochs": 2}} as {"train.epochs": 2}."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            out.update(_dotted(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def _settings(changes: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_text(value)}" for key, value in changes.items()]


def _text(value: Any) -> str:
    """Write a value so that --set reads the same value again."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
    if plain and parse_mapping(f"value: {value}", "a value")["value"] == value:
        return value
    return json.dumps(value, default=str)


def _setting(method: str) -> str | None:
    """Name the setting that a method has, also where it is the default."""
    made = make_method(method, {})
    for name, options in made.settings.items():
        if made.Config(**options) == made.config:
            return name
    return None


def _name(config: RunConfig, method: Method, benchmark: Benchmark) -> str:
    """Name a folder by what decides the numbers, a method's own defaults and the data included."""
    decides = [config.text(), asdict(method.config), method.learning_rate, benchmark.fingerprint]
    digest = hashlib.sha256(json.dumps(decides, default=str).encode()).hexdigest()[:10]
    order = config.order if isinstance(config.order, str) else "own-order"
    return f"{config.method.name}-{order}-s{config.seed}-{digest}"
