"""What the files of `undrift diagnose` hold."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from undrift.rundir.record import Name, Number, Record


class _Cell(Record):
    task: PositiveInt
    name: Name
    after: PositiveInt
    before: PositiveInt | None = None


class _RoutesCell(_Cell):
    overlap: float
    js: float
    tv: float
    top1: float
    entropy: float
    spread: float
    balance: float
    use: list[list[float]]


class _MovedCell(_Cell):
    moved: float


class _Corner(Record):
    strict: Number
    lenient: Number
    form: Number = None


class _Corners(Record):
    old_old: _Corner
    old_new: _Corner
    new_old: _Corner
    new_new: _Corner


class _Lost(Record):
    strict: float
    lenient: float


class _CausesCell(_Cell):
    parts: str
    corners: _Corners
    lost: _Lost
    router: float
    expert: float
    form: float


class _RerouteCell(Record):
    after: PositiveInt
    strict: Number
    lenient: Number
    as_is: Number
    entropy: float


class _Part(Record):
    applies: bool
    why: str
    probe: NonNegativeInt | None = None
    asked: dict[str, int | None] = Field(default={})


class Routes(_Part):
    """routes.json of `undrift diagnose`."""

    linears: list[str] = Field(default=[])
    experts: NonNegativeInt = 0
    cells: list[_RoutesCell]

    @model_validator(mode="after")
    def _every_linear(self) -> Routes:
        if any(len(cell.use) != len(self.linears) for cell in self.cells):
            raise ValueError("cells: expected the use of every linear")
        return self


class Experts(_Part):
    """experts.json of `undrift diagnose`."""

    cells: list[_MovedCell]


class Causes(_Part):
    """causes.json of `undrift diagnose`."""

    cells: list[_CausesCell]


class Reroute(_Part):
    """reroute.json of `undrift diagnose --reroute`."""

    task: PositiveInt | None = None
    name: Name | None = None
    cells: list[_RerouteCell]


class Entropy(Record):
    """What is noted beside the answers of a model whose routers were trained anew."""

    entropy: float


PARTS: Mapping[str, type[Record]] = {
    "routes": Routes,
    "experts": Experts,
    "causes": Causes,
    "reroute": Reroute,
}
"""The answers of `undrift diagnose`, by the file's name."""
