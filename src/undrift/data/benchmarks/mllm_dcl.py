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

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from undrift.data.files import BadRow
from undrift.data.instructions import Row
from undrift.data.published import PublishedTask, data_folder, find, inner, published
from undrift.data.sources import Lost, Source
from undrift.data.types import Benchmark

HOLDS = "the domains' folders RS, Med, AD, Sci and Fin"
LICENCE = (
    "Apache-2.0 as stated by MLLM-CL/MLLM-CL on the Hub; the pictures are those of RSVQA, PathVQA, "
    "DriveLM, AI2D, SciVerse, MapQA, TQA, StockQA and FinVis, each under its own terms"
)


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


def sources(
    root: Path | None = None, *, only: Sequence[str] | None = None, lost: Lost | None = None
) -> list[Source]:
    """Find the files of MLLM-DCL; see `benchmark`, and `undrift.data.published.find` for `lost`."""
    folder = data_folder("mllm_dcl", root, HOLDS)
    return find(TASKS, inner(folder, "domain"), None, only, lost)


def benchmark(
    root: Path | None = None,
    *,
    progress: bool = True,
    only: Sequence[str] | None = None,
    bad: list[BadRow] | None = None,
) -> Benchmark:
    """Load MLLM-DCL.

    Args:
        root: The folder that --data names, laid out as above.
        progress: Show a bar.
        only: Names of the domains to load; all if None.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Returns:
        The benchmark.

    Raises:
        ConfigError: If no folder is given.
        DataError: If a folder or file is missing, or a row cannot be used.
    """
    folder = data_folder("mllm_dcl", root, HOLDS)
    return published(
        "mllm_dcl",
        "published",
        LICENCE,
        sources(root, only=only),
        root=inner(folder, "domain"),
        progress=progress,
        bad=bad,
    )
