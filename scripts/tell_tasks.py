"""How well text alone and the picture alone name a task of the pocket, asked in both ways.

Python scripts/tell_tasks.py

Linear probes, fitted on training examples and told on the test: on the words of a question, and on
the mean of what the shipped backbone's vision tower says about a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from undrift.data.benchmarks import pocket
from undrift.data.tell_tasks import EXAMPLES, text_features, told_apart
from undrift.data.types import Example
from undrift.run.backbone import Backbone


def _words(split: Sequence[Example]) -> np.ndarray:
    return text_features([example.question for example in split])


def pictures(backbone: Backbone, split: Sequence[Example]) -> np.ndarray:
    """Return the mean features of the examples' pictures (n, d)."""
    paths = [example.images[0] for example in split]
    parts = [backbone.encode(paths[i : i + 50]).mean(dim=1) for i in range(0, len(paths), 50)]
    return np.concatenate([part.float().cpu().numpy() for part in parts])


def main() -> None:
    """Print a row a way of asking."""
    backbone, seen = Backbone.load("pocket"), ""
    print("| questions | text alone | picture alone |\n| --- | --- | --- |")
    for questions in ("own", "shared"):
        tasks = pocket.benchmark(questions=questions).tasks
        sides = [[task.train[:EXAMPLES] for task in tasks], [task.test for task in tasks]]
        text = told_apart(*([_words(split) for split in side] for side in sides))
        if not seen:  # the pictures are the same
            shown = [[pictures(backbone, split) for split in side] for side in sides]
            seen = f"{100 * fmean(told_apart(*shown)):.1f} %"
        print(f"| {questions} | {100 * fmean(text):.1f} % | {seen} |")


if __name__ == "__main__":
    main()
