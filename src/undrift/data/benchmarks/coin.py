"""CoIN: eight vision-language tasks, the benchmark of most published comparisons.

```
DATA/
├── Instructions_Original/   or _Diverse, _10Type: instructions="Diverse", "10Type"
│   ├── ScienceQA/           train.json, test.json (optional: problems.json)
│   ├── TextVQA/             train.json, val.json, TextVQA_0.5.1_val.json
│   └── ...                  ImageNet, GQA, VizWiz, Grounding, VQAv2, OCRVQA
└── COCO2014/train2014, GQA/images, OCR-VQA/images, TextVQA/train_images ...
```

The pictures' folders may also lie in DATA/cl_dataset, where CoIN's own scripts expect them. Of
TextVQA, VizWiz and VQAv2, `val.json` is what is asked, though the VizWiz folder holds a `test.json`
as well: that one has no answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undrift.data.instructions import Join, Lost, TaskFiles
from undrift.data.published_benchmark import (
    Annotation,
    PublishedBenchmark,
    PublishedTask,
    by_question_id,
)
from undrift.data.row_files import BadRow
from undrift.data.types import Benchmark
from undrift.errors import unknown

INSTRUCTIONS = ("Original", "Diverse", "10Type", "Type1", "Type2")
LICENCE = (
    "instructions as published with CoIN (Zacks-Chen/CoIN on the Hub); the pictures are those of "
    "ScienceQA, TextVQA, ImageNet, GQA, VizWiz, COCO, RefCOCO and OCR-VQA, each under its own terms"
)


def _ten_answers(content: Any) -> Join:
    """Read TextVQA's official file, which holds ten answers a question."""
    known = {str(row["question_id"]): {"answers": row["answers"]} for row in content["data"]}
    return by_question_id(known, "official file of TextVQA")


def _choices(content: Any) -> Join:
    """Read ScienceQA's problems.json: a letter beyond the last choice is wrong."""
    known = {str(key): {"choices": row["choices"]} for key, row in content.items()}
    return by_question_id(known, "problems.json of ScienceQA")


def _answers(content: Any) -> Join:
    """Read GQA's testdev_balanced_questions.json, for test rows without an answer of their own."""
    known = {str(key): {"answer": row["answer"]} for key, row in content.items()}
    return by_question_id(known, "official file of GQA")


_TRAIN, _TEST, _VAL = ("train.json",), ("test.json",), ("val.json", "valid.json", "test.json")

TASKS = (
    PublishedTask(
        "ScienceQA", _TRAIN, _TEST, "coin/ScienceQA", 12_726, 4_241, max_new_tokens=1024,
        annotation=Annotation(("problems.json",), _choices, required=False),
    ),
    PublishedTask(
        "TextVQA", _TRAIN, _VAL, "coin/TextVQA", 34_602, 5_000,
        annotation=Annotation(("TextVQA_0.5.1_val.json",), _ten_answers),
    ),
    PublishedTask("ImageNet", _TRAIN, _TEST, "coin/ImageNet"),
    PublishedTask(
        "GQA", _TRAIN, _TEST, "coin/GQA", 72_140, 12_578,
        annotation=Annotation(("testdev_balanced_questions.json",), _answers, required=False),
    ),
    PublishedTask("VizWiz", _TRAIN, _VAL, "coin/VizWiz", 20_523, 4_319),
    PublishedTask("REC", _TRAIN, _TEST, "coin/Grounding", folders=("Grounding",)),
    PublishedTask("VQAv2", _TRAIN, _VAL, "coin/VQAv2", 82_783),
    PublishedTask("OCR-VQA", _TRAIN, _TEST, "coin/OCRVQA", folders=("OCRVQA",)),
)  # fmt: skip
"""In the published order. Rows that no source states, or only about, are not given."""


def benchmark(
    root: Path | None = None,
    *,
    progress: bool = True,
    instructions: str = "Original",
    only: Sequence[str] | None = None,
    bad: list[BadRow] | None = None,
) -> Benchmark:
    """Load CoIN in one wording of `INSTRUCTIONS`; for the rest see `PublishedBenchmark`.

    Args:
        root: The folder that --data names.
        progress: Show a bar.
        instructions: The wording, "Original" or "Diverse".
        only: Only these tasks.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Returns:
        The benchmark.
    """
    return _worded(instructions).benchmark(root, progress=progress, only=only, bad=bad)


def sources(
    root: Path | None = None,
    *,
    instructions: str = "Original",
    only: Sequence[str] | None = None,
    lost: Lost | None = None,
) -> list[TaskFiles]:
    """Find the files of CoIN in one wording; for the rest see `PublishedBenchmark`."""
    return _worded(instructions).sources(root, only=only, lost=lost)


def _worded(instructions: str) -> PublishedBenchmark:
    if instructions not in INSTRUCTIONS:
        raise unknown("instructions", instructions, INSTRUCTIONS)
    return PublishedBenchmark(
        name="coin",
        licence=LICENCE,
        holds=f"Instructions_{instructions}/ and the folders of pictures",
        tasks=TASKS,
        instructions=f"Instructions_{instructions}",
        pictures="cl_dataset",
        version=instructions,
        whole=True,
    )
