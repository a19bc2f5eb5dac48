"""Bars on answering, in batches and one by one, and on how long the command line takes to begin."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.meter import Bar, measure, median
from benchmarks.table import Table
from undrift.data.types import Example
from undrift.run.answer import answers
from undrift.run.backbone import Backbone
from undrift.run.image_features import FeatureStore
from undrift.run.session import Session, make_method

EXAMPLES, BATCH, NEW = 32, 16, 8
WORDS = "which colour shape number is the thing on left right small large round".split()


def questions(folder: Path) -> list[Example]:
    """Pictures of noise, and questions of 4 to 24 words about them."""
    drawn = random.Random(0)
    made = []
    for number in range(EXAMPLES):
        picture = folder / f"{number}.png"
        Image.frombytes("RGB", (96, 96), drawn.randbytes(3 * 96 * 96)).save(picture)
        text = " ".join(drawn.choices(WORDS, k=drawn.randint(4, 24)))
        made.append(Example(f"{number}", f"{text}?", ("unknown",), (picture,)))
    return made


def generation_bars(rounds: int) -> list[Bar]:
    """Greedy answers with kept image features, every answer as long as it may get."""
    backbone = Backbone.load("pocket", device="cpu")
    backbone.stop_ids = ()  # so that both do the same work
    with tempfile.TemporaryDirectory() as folder:
        examples = questions(Path(folder))
        backbone.store = FeatureStore(Path(folder), backbone.encode)  # not in the user's cache
        backbone.prepare([picture for example in examples for picture in example.images])
    method = make_method("same", {})
    session = Session(backbone, method.attach(backbone.model).eval(), method)
    encoded = session.collator.encode(examples, answered=False)

    def said(size: int) -> dict[str, str]:
        session.batch_size = size
        return dict(answers(session, encoded, NEW))

    taken = measure({"one": lambda: said(1), "batch": lambda: said(BATCH)}, rounds)
    ratio = median(taken, lambda s: s["one"] / s["batch"])
    return [Bar(f"generation: one by one / batches of {BATCH}", ratio, 5.0, at_most=False)]


def help_bars(rounds: int) -> list[Bar]:
    """Seconds of the processor, not of the clock, until `undrift --help` has been printed."""
    command = [sys.executable, "-c", "from undrift.cli import main; main()", "--help"]
    taken = []
    for _ in range(rounds):
        before = os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        taken.append(sum(after[2:4]) - sum(before[2:4]))
    return [Bar("command line: CPU seconds of --help", min(taken), 1.0)]


def tables(*, long: bool) -> list[Table]:
    """All of them."""
    rounds = 6 if long else 3
    bars = [*generation_bars(rounds), *help_bars(rounds)]
    return [Table("answering", "Answers in batches, and the command line", [], bars)]
