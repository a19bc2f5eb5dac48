"""MLLM-DCL: five domains, from satellite pictures to stock charts; the domain part of MLLM-CL.

```
DATA/                or DATA/domain/, as in the whole of MLLM-CL
├── RS/              train.json, test.json, images/
└── ...              Med, AD, Sci, Fin
```

The pictures' names are relative to the DOMAIN's folder. The names themselves matter: public scoring
reads the part of Sci that a question comes from off the beginning of its picture's name (`AI2D_`,
`TQA_`, `VQA_`, `SciVerse_`), so renamed pictures give other scores.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from undrift.data.instructions import Row
from undrift.data.published_benchmark import PublishedBenchmark, PublishedTask


def _subset(row: Row) -> Row:
    """Add the part of Sci that a question is of."""
    image = row.get("image")
    name = image[0] if isinstance(image, list) and image else image
    return {**row, "subset": PurePosixPath(str(name or "")).name.partition("_")[0]}


_FILES = (("train.json",), ("test.json",))

TASKS = (
    PublishedTask("RS", *_FILES, "mllm_dcl/RS"),
    PublishedTask("Med", *_FILES, "mllm_dcl/Med"),
    PublishedTask("AD", *_FILES, "mllm_dcl/AD"),
    PublishedTask("Sci", *_FILES, "mllm_dcl/Sci", add=_subset),
    PublishedTask("Fin", *_FILES, "mllm_dcl/Fin"),
)
"""In the published order; no source states the numbers of rows."""

MLLM_DCL = PublishedBenchmark(
    name="mllm_dcl",
    licence=(
        "Apache-2.0 as stated by MLLM-CL/MLLM-CL on the Hub; the pictures are those of RSVQA, "
        "PathVQA, DriveLM, AI2D, SciVerse, MapQA, TQA, StockQA and FinVis, each under its own terms"
    ),
    holds="the domains' folders RS, Med, AD, Sci and Fin",
    tasks=TASKS,
    instructions="domain",
)
benchmark, sources = MLLM_DCL.benchmark, MLLM_DCL.sources
