"""What a benchmark leaves: rows, the bars on them, and a JSON file that says where from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.meter import Bar
from undrift.run.manifest import commit, hardware

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """The numbers of one benchmark.

    Attributes:
        name: Its file is NAME.json.
        title: What was measured, in one line.
        rows: All with the same keys, which are the heads of the columns.
        bars: What the numbers are held to; none where they are only told.
        notes: What a reader has to know: what is random, what was left out, what is not measured.
        device: Where it was measured.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Cell]]
    bars: Sequence[Bar] = ()
    notes: Sequence[str] = field(default=())
    device: str = "cpu"

    def __str__(self) -> str:
        heads = list(self.rows[0]) if self.rows else []
        cells = [heads, *([_written(row[head]) for head in heads] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        return "\n".join(["", self.title, *lines, *self.notes, *map(str, self.bars)])

    def write(self, folder: Path, command: str) -> Path:
        """Write it down for docs/performance.md.

        Args:
            folder: Where to; it is made.
            command: What made it.

        Returns:
            The file.
        """
        content: dict[str, Any] = {
            "title": self.title,
            "command": command,
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "hardware": hardware(torch.device(self.device)),
            "notes": [*self.notes],
            "bars": [asdict(bar) | {"holds": bar.holds} for bar in self.bars],
            "rows": [dict(row) for row in self.rows],
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return path


def _written(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
