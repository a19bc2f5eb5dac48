"""What an example costs before it is learned: memory, and seconds until the first step is made.

Each number of rows is learned in a process of its own, by what `undrift learn` does, for two steps.
Loading is all until the model may begin: rows are read, their pictures found, what they hold is
digested and written down. Seconds are those of the processor. Memory of loading is the peak then
above what the process had before; that at the first step is above what few rows take there.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.meter import Bar
from benchmarks.table import Table
from undrift.data.benchmarks.folder import OwnTask
from undrift.run.backbone import Backbone
from undrift.run.learn import Learn, start_from
from undrift.run.progress import Progress
from undrift.run.training_cost import peak

FEW = 1_000
PICTURES = 50
TESTED = 8
WORDS = "which what colour shape number thing left right small large round behind under".split()
FORMAT = "Answer the question using a single word or phrase."
_VARIES = (
    "what a process holds differs by 50 to 150 MB from one time to the next, whatever is learned"
)


def write_rows(folder: Path, rows: int) -> None:
    """Write questions as VQAv2 has them, a picture each, with the line that public code adds."""
    drawn = random.Random(0)
    (folder / "pictures").mkdir(parents=True)
    for number in range(PICTURES):
        picture = Image.frombytes("RGB", (32, 32), drawn.randbytes(3 * 32 * 32))
        picture.save(folder / "pictures" / f"COCO_train2014_{number:012}.png")
    for name, count in (("train", rows), ("test", TESTED)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                text = " ".join(drawn.choices(WORDS, k=drawn.randint(4, 10)))
                picture = f"pictures/COCO_train2014_{drawn.randrange(PICTURES):012}.png"
                answer = drawn.choice(WORDS)
                row = {"question_id": 458752000 + number, "image": picture}
                row |= {"text": f"{text}?\n{FORMAT}", "answer": answer}
                file.write(json.dumps(row) + "\n")


class _Clock(Progress):
    """Notes when a training was set up, and when its first step was made."""

    def __init__(self) -> None:
        self.learning, self.stepped, self.resident = False, 0.0, 0

    def stage(self, title: str, total: int, work: float = 0.0) -> None:
        """Take note that steps are what moves the bar now."""
        self.learning = title.startswith("learning")

    def advance(self, pieces: int = 1) -> None:
        """Take note of the first step."""
        if self.learning and not self.stepped:
            self.stepped, self.resident = time.process_time(), _resident()


def learn(folder: Path) -> dict[str, float]:
    """Learn one step of a folder's rows, and say what it took."""
    clock, backbone = _Clock(), Backbone.load("pocket", device="cpu")
    train = {"max_steps": 2, "batch_size": 16, "learning_rate": 1e-4}
    layer: dict[str, Any] = {"method": {"name": "finetune", "rank": 2}, "train": train}
    own = OwnTask(
        "asked", folder / "train.jsonl", folder, test=folder / "test.jsonl", max_new_tokens=1
    )
    before, begin = _resident(), time.process_time()
    start = start_from("pocket", layer)
    lesson = Learn(start, own, folder / "out", clock, backbone=backbone, keep_tests=0)
    loaded, load_peak = time.process_time(), peak(torch.device("cpu"))
    lesson.go()
    return {
        "load": loaded - begin,
        "load_bytes": load_peak - before,
        "first_step": clock.stepped - loaded,
        "resident": clock.resident,
        "peak": peak(torch.device("cpu")),
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _measured(rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        write_rows(folder, rows)
        took = subprocess.run(
            [sys.executable, "-m", "benchmarks.large_data", str(folder)],
            env={**os.environ, "UNDRIFT_CACHE": f"{place}/cache", "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(took.stdout.splitlines()[-1])


def tables(*, long: bool) -> list[Table]:
    """A few sizes, or up to a million rows."""
    base = _measured(FEW)
    rows, bars = [], []
    for count in (40_000, 160_000, *((400_000, 1_000_000) if long else ())):
        took = _measured(count)
        loading = took["load_bytes"] / count
        held = (took["resident"] - base["resident"]) / (count - FEW)
        row = {
            "rows": count,
            "loading, s": took["load"],
            "loading, us a row": took["load"] / count * 1e6,
            "loading, bytes a row": loading,
            "then to the first step, s": took["first_step"],
            "held there, bytes a row": held,
            "peak of all, MB": took["peak"] / 1e6,
        }
        rows.append(row)
        bars += [
            Bar(f"large data: bytes a row, {count:,} rows", max(loading, held), 1000),
            Bar(f"large data: seconds to the first step, {count:,} rows", took["first_step"], 10),
        ]
    title = f"A training of many rows about {PICTURES} pictures, in one process"
    note = (
        f"{FEW:,} rows have their first step {base['first_step']:.1f} s after loading, and a peak "
    )
    note += f"of {base['peak'] / 1e6:.0f} MB: that of the model and its vision tower"
    return [Table("large_data", title, rows, bars, [note, _VARIES])]


if __name__ == "__main__":
    print(json.dumps(learn(Path(sys.argv[1]))))
