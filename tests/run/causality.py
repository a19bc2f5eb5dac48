"""Whether a model sees an answer while it learns it: no logit hangs on a later answer token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from undrift.data.processor import IGNORED
from undrift.data.types import Example
from undrift.run.backbone import Backbone, Collator


@torch.no_grad()
def check_answers_unseen(
    backbone: Backbone, collator: Collator, examples: Sequence[Example], tolerance: float = 1e-5
) -> None:
    """Change the last token of every answer, as the collator puts it, and compare the logits.

    Batches are called as in training, with labels, and with the logits of all positions.

    Args:
        backbone: The backbone; its model is called as it is.
        collator: What makes the batches.
        examples: One batch.
        tolerance: How far logits may be apart; the computation is the same but for one token.

    Raises:
        AssertionError: If a logit before the changed token differs, or none behind it does.
    """
    encoded = collator.encode(examples, answered=True)
    batch = collator.collate(encoded)
    batch.pop("logits_to_keep", None)
    length = batch["input_ids"].shape[1]
    missing = length - batch["labels"].shape[1]
    batch["labels"] = functional.pad(batch["labels"], (missing, 0), value=IGNORED)
    last = torch.stack([(row != IGNORED).nonzero().max() for row in batch["labels"]])
    rows, changed = torch.arange(len(encoded)), dict(batch)
    other = max(token for example in encoded for token in example.answer[:-1])
    changed["input_ids"] = batch["input_ids"].clone()
    changed["input_ids"][rows, last] = other
    assert (changed["input_ids"][rows, last] != batch["input_ids"][rows, last]).all()
    was, now = (backbone.model(**backbone.inputs(one)).logits for one in (batch, changed))
    assert was.shape[1] == length
    for row, place in enumerate(last.tolist()):
        real = batch["attention_mask"][row, :place] == 1  # padding may read anything
        seen = (was[row, :place] - now[row, :place])[real].abs()
        assert seen.max() <= tolerance, (examples[row].id, seen.amax(1).nonzero().flatten())
        assert (was[row, place] - now[row, place]).abs().max() > tolerance
