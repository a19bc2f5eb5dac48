"""Examples of the published formats become batches: pictures, text alone, and both in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from undrift.registry import BENCHMARKS

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def tasks():
    made = BENCHMARKS.load("coin")(FIXTURES / "coin", progress=False)
    return {task.name: task for task in made.tasks}


@pytest.mark.parametrize("kept_features", [True, False])
@pytest.mark.parametrize("name", ["ScienceQA", "GQA"])
def test_a_picture_is_shown_once_a_question(backbone, tasks, name, kept_features):
    examples = tasks[name].train
    if kept_features:
        backbone.prepare([path for example in examples for path in example.images])
    collator = backbone.collator()
    encoded = collator.encode(examples, answered=True)
    shown = [example.text.count("<image>") for example in encoded]
    assert shown == [len(example.images) for example in examples]
    assert collator.collate(encoded)["labels"].shape[0] == len(examples)
