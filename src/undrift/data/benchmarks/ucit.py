"""UCIT: six tasks that LLaVA-1.5 has not been trained on, two of them captions.

```
DATA/
├── instructions/            or the tasks' folders in DATA itself, as MCITlib has them
│   ├── ImageNet-R/          train.json, test_3000.json
│   ├── ArxivQA/             train_4w.json, test_3000.json
│   ├── VizWiz/              train.json, test_3000.json, val_coco_type_3000.json
│   └── ...                  IconQA, CLEVR (or CLEVR-Math), Flickr30k
└── datasets/                ArxivQA/images, CLEVR/images/train, Flickr30k/val ...
```

Captions are scored against several references, which stand in a file of COCO's form. They are
matched by the name of the picture; public code goes by the number of the line, so that a shuffled
or partial file of predictions is compared with the references of other pictures. A caption task's
score is CIDEr (times 100), for the published mean of seven needs METEOR.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from undrift.data.instructions import Join, Row
from undrift.data.published_benchmark import Annotation, PublishedBenchmark, PublishedTask
from undrift.errors import DataError


def _references(content: Any) -> Join:
    """Read captions in COCO's form: rows get all captions of their picture, and its image_id."""
    captions: dict[Any, list[str]] = {}
    for note in content["annotations"]:
        captions.setdefault(note["image_id"], []).append(note["caption"])
    known: dict[str, Row] = {}
    for image in content["images"]:
        name = PurePosixPath(image["file_name"]).name
        if name in known:
            raise DataError(
                f"two pictures of the caption file are called {name!r}; expected names of their own"
            )
        known[name] = {"answers": captions.get(image["id"]), "image_id": image["id"]}

    def join(row: Row) -> Row:
        name = PurePosixPath(str(row.get("image"))).name
        if not known.get(name, {}).get("answers"):
            raise DataError(f"the caption file has no caption of the picture {name!r}")
        return {**row, **known[name]}

    return join


_TEST = ("test_3000.json", "test.json")
_CAPTIONS = Annotation(("val_coco_type_3000.json", "test_coco_type.json"), _references)

TASKS = (
    PublishedTask("ImageNet-R", ("train.json",), _TEST, "ucit/ImageNet-R", 23_998, 3_000),
    PublishedTask("ArxivQA", ("train_4w.json", "train.json"), _TEST, "ucit/ArxivQA",
                  40_000, 3_000),
    PublishedTask("VizWiz", ("train.json",), _TEST, "ucit/VizWiz", 40_000, 3_000,
                  annotation=_CAPTIONS),
    PublishedTask("IconQA", ("train.json",), _TEST, "ucit/IconQA", 29_859, 3_000),
    PublishedTask("CLEVR-Math", ("train_4w.json", "train.json"), _TEST, "ucit/CLEVR",
                  40_000, 3_000, folders=("CLEVR", "CLEVR-Math")),
    PublishedTask("Flickr30k", ("train_brief_4w.json", "train.json"), _TEST, "ucit/Flickr30k",
                  40_000, 3_000, annotation=_CAPTIONS),
)  # fmt: skip
"""In the published order. `upper` is equality in capitals, with neither spaces nor a period cut."""

UCIT = PublishedBenchmark(
    name="ucit",
    licence=(
        "instructions as published with UCIT (HaiyangGuo/UCIT on the Hub); the pictures are those "
        "of ImageNet-R, ArxivQA, VizWiz, IconQA, CLEVR and Flickr30k, each under its own terms"
    ),
    holds="instructions/ and datasets/",
    tasks=TASKS,
    instructions="instructions",
    pictures="datasets",
)
benchmark, sources = UCIT.benchmark, UCIT.sources
