"""How well a linear probe names the task of an example: of its text alone, or of other features.

Ridge regression onto the tasks, every task of the same weight: fitted on some examples, told on
others. Where text alone names the task, routing by the input proves little about pictures.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

COLUMNS = 2048
EXAMPLES = 400
"""So many of a task's examples are enough to fit a probe on and to tell."""
_RIDGE = 1e-2
_PIECES = re.compile(r"\w+|[^\w\s]")


def text_features(texts: Sequence[str]) -> np.ndarray:
    """Count words and pairs of words, hashed to columns; each row of unit length (n, COLUMNS)."""
    found = np.zeros((len(texts), COLUMNS), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        words = _PIECES.findall(text.lower())
        for piece in (*words, *map(" ".join, pairwise(words))):
            row[zlib.crc32(piece.encode(errors="surrogatepass")) % COLUMNS] += 1.0
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def told_apart(fitted: Sequence[np.ndarray], asked: Sequence[np.ndarray]) -> list[float]:
    """Fit a probe on features of several tasks, and say how often it names the task of others.

    Args:
        fitted: Features by task, (examples, columns) each.
        asked: Features of other examples of the same tasks, in the same order.

    Returns:
        The share of each task's asked examples that are named as that task's, in [0, 1].
    """
    used = np.any([features.any(axis=0) for features in fitted], axis=0)
    fitted, asked = [f[:, used] for f in fitted], [f[:, used] for f in asked]
    scale = float(np.concatenate(fitted).std()) or 1.0
    columns = fitted[0].shape[1] + 1
    gram, target = np.zeros((columns, columns)), np.zeros((columns, len(fitted)))
    for number, features in enumerate(fitted):
        rows = _with_one(features, scale)
        gram += rows.T @ rows / len(rows)
        target[:, number] = rows.mean(axis=0)
    ridge = _RIDGE * np.trace(gram) / columns * np.eye(columns)
    weights = np.linalg.solve(gram + ridge, target)
    named = [(_with_one(features, scale) @ weights).argmax(axis=1) for features in asked]
    return [float((each == number).mean()) for number, each in enumerate(named)]


def _with_one(features: np.ndarray, scale: float) -> np.ndarray:
    rows = features.astype(np.float64) / scale
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
