"""Two small tasks of somebody's own, as files of JSON lines beside their pictures."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tests.run.tiny import COLOURS, picture

QUESTIONS = {"colours": "which colour is the picture?", "capitals": "which colour is it?"}
TRAIN = {"batch_size": 4, "max_steps": 3, "learning_rate": 0.01, "log_steps": 2}
LAYER = {"method": {"name": "same", "experts": 2, "rank": 2}, "train": TRAIN, "seed": 3}


def write_task(root: Path, name: str, train: int = 8, test: int = 4) -> None:
    """Write NAME.jsonl and NAME-test.jsonl: colours, of `capitals` in capital letters."""
    random = Random(name)
    rows = []
    for number in range(train + test):
        colour = list(COLOURS)[number % len(COLOURS)]
        path = picture(root / name, str(number), COLOURS[colour], random)
        answer = colour.upper() if name == "capitals" else colour
        row = {"question_id": number, "image": f"{name}/{path.name}", "text": QUESTIONS[name]}
        rows.append(row | {"answer": answer})
    write_rows(root / f"{name}.jsonl", rows[:train])
    write_rows(root / f"{name}-test.jsonl", rows[train:])


def write_rows(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def list_tasks(root: Path) -> Path:
    """Write the list of both tasks that `undrift run folder` reads."""
    file = root / "tasks.yaml"
    rest = "max_new_tokens: 6"  # a model that knows nothing babbles to the end
    lines = [
        f"- {{name: {n}, train: {n}.jsonl, test: {n}-test.jsonl, {rest}}}\n" for n in QUESTIONS
    ]
    file.write_text("".join(lines))
    return file
