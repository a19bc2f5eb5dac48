"""A study's file: which rows, seeds, orders and rates, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from undrift.errors import ConfigError, unknown
from undrift.run import layers

Order = str | tuple[str, ...]

_OWN = {"benchmark": "benchmark", "seed": "seeds", "order": "orders"}  # a run's key: the study's


class Row(BaseModel):
    """One row of the table; in YAML a method's name, or a mapping.

    Args:
        label: Its name in tables and for `rates`, `against` and --only; the method's by itself.
        method: Such as "same", or "same-paper".
        options: What is changed, by dotted keys as after --set; in YAML it is called `set`.
        seeds: Those of the study's seeds that this row is run with; all where not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class StudyConfig(BaseModel):
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
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    rows: tuple[Row, ...] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    orders: tuple[Order, ...] = Field(default=("default",), min_length=1)
    results: Path
    run: dict[str, Any] = {}
    against: str | None = None
    rates: dict[str, tuple[PositiveFloat, ...]] = {}
    widen: bool = False

    @property
    def first_rates(self) -> dict[str, tuple[float | None, ...]]:
        """The rates of the file by label; None where a row has its usual rate."""
        return {row.label: tuple(sorted(self.rates.get(row.label, ()))) or (None,)
                for row in self.rows}  # fmt: skip


def load(path: Path) -> StudyConfig:
    """Read a study's file.

    Args:
        path: The YAML file.

    Returns:
        The study.

    Raises:
        ConfigError: If something in it cannot be used.
        UnknownName: If a key or label does not exist.
    """
    try:
        study = StudyConfig.model_validate(layers.load_yaml(path))
    except ValidationError as error:
        raise layers.explained(error, StudyConfig) from error
    _check(study)
    orders = tuple(layers.read_order(o) if isinstance(o, str) else o for o in study.orders)
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
    if study.widen and not study.rates:
        raise ConfigError("widen: there are no `rates` to widen")
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
            if key in (*_OWN, "method", "method.name", "out", "threads"):
                raise ConfigError(f"set.{key} of {row.label!r}: a row cannot change this")
    method = study.run.get("method", {})
    if not isinstance(method, Mapping) or "name" in method:
        raise ConfigError("run.method: options only; the methods themselves are the `rows:`")
