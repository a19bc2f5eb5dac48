"""Prompts and answers in tokens of a model, against what it can take; its weights are not loaded.

A text has no more tokens than bytes. So only texts with so many bytes that they could be too long,
and the longest of the others, are tokenised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from undrift.data.doctor_checks import Finding, Item, RowQuestion, Split, counted
from undrift.data.prompts import PROBE, Renderer
from undrift.data.types import Example
from undrift.errors import DataError
from undrift.run.refused_examples import refused, renderer_of

LONGEST = 64  # texts a split that are tokenised in any case, to tell how long they get
SAMPLE = 48  # sizes of pictures that are put through the processor

Size = tuple[int, int]
ProgressCall = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ruler:
    """What measures texts and pictures in tokens of one model.

    Args:
        name: The backbone's name.
        renderer: Its prompts.
        limit: How many positions it has; None if its configuration does not say.
    """

    name: str
    renderer: Renderer
    limit: int | None

    @classmethod
    def load(cls, name: str) -> Ruler:
        """Load a backbone's configuration and processor.

        Args:
            name: See `Backbone.load`.

        Returns:
            The ruler.

        Raises:
            ConfigError: If there is no such backbone, or it has no processor with a chat template.
        """
        renderer = renderer_of(name)
        limit = getattr(renderer.config.get_text_config(), "max_position_embeddings", None)
        return cls(name, renderer, limit)

    def texts(self, examples: Sequence[Example]) -> list[tuple[int, int]]:
        """Count the tokens of prompts and first answers.

        Args:
            examples: The examples.

        Returns:
            Tokens of the prompt, each picture one placeholder, and of the answer without its end.
        """
        prompts = self.renderer.prompts(examples)
        answers = self.renderer.answers(examples, prompts)
        ids = self.renderer.ids(prompts)
        return [(len(p), len(a) - 1) for p, a in zip(ids, answers, strict=True)]

    def picture(self, size: Size) -> int:
        """Count the tokens that a picture adds to a prompt in the place of its placeholder.

        Args:
            size: Width and height.

        Returns:
            How many more tokens the prompt has with it.
        """
        made = self.renderer.blank(size)
        example = Example("picture", PROBE, (PROBE,), (Path(),))
        (plain,) = self.renderer.ids(self.renderer.prompts([example]))
        return made["input_ids"].shape[1] - len(plain)


def lengths(
    ruler: Ruler,
    splits: Sequence[Split],
    sizes: Mapping[Path, Size],
    progress: ProgressCall | None = None,
) -> list[Finding]:
    """Compare prompts and answers with the model's limit and the tasks' `max_new_tokens`.

    Args:
        ruler: The model's.
        splits: What is learned and asked.
        sizes: Width and height of the pictures.
        progress: Called with (what is being done, pieces done, pieces in all).

    Returns:
        Errors for what the processor refuses and for what is longer than the model has positions,
        warnings for answers that would be cut, and a note a task on how long they get.
    """
    tell = progress or (lambda *_: None)
    found: list[Finding] = []
    kept = []
    for number, split in enumerate(splits):
        tell("asking the processor", number, len(splits))
        try:
            reasons = refused(ruler.renderer, [one.example for one in split.questions], sizes)
        except DataError as error:
            advice = "mend the backbone's folder: nothing with a picture can be learned or asked"
            return [Finding("refused", "error", "", "", str(error), advice)]
        rest, items = _without(split, reasons)
        kept.append(rest)
        if items:
            said = f"{counted(len(items), 'example')} that {ruler.name} cannot take"
            advice = "mend them, or leave them out with --skip-bad"
            found.append(Finding("refused", "error", split.task, split.name, said, advice, items))
    tell("asking the processor", len(splits), len(splits))
    lost = {path for split in splits for path in split.pictures()}
    lost -= {path for split in kept for path in split.pictures()}
    sizes = {path: size for path, size in sizes.items() if path not in lost}
    splits = kept
    sampled = sample(sizes.values())
    tokens = {}
    for number, size in enumerate(sampled):
        tell("measuring pictures", number, len(sampled))
        tokens[size] = ruler.picture(size)
    tell("measuring pictures", len(sampled), len(sampled))
    near = {size: tokens[min(sampled, key=lambda s: _apart(s, size))] for size in {*sizes.values()}}
    pictures = {path: near[size] for path, size in sizes.items()}
    longest: dict[str, tuple[int, int]] = {}
    for number, split in enumerate(splits):
        tell("counting tokens", number, len(splits))
        measured = _measured(ruler, split, pictures)
        found += _too_long(ruler, split, measured)
        prompts, answers = longest.get(split.task, (0, 0))
        prompts = max([prompts, *(one.prompt for one in measured)])
        longest[split.task] = prompts, max([answers, *(one.answer for one in measured)])
    for task, (prompts, answers) in longest.items():
        said = f"prompts of up to {prompts:,} tokens, answers of up to {answers:,} ({ruler.name})"
        found.append(Finding("token lengths", "note", task, "", said))
    tell("counting tokens", len(splits), len(splits))
    if len(sampled) < len(near):
        said = f"tokens of pictures measured on {len(sampled)} of {len(near):,} sizes"
        found.append(Finding("token lengths", "note", "", "", f"{said}, the others by the nearest"))
    if ruler.limit is None:
        said = f"{ruler.name} does not say how many positions it has: prompts were not compared"
        found.append(Finding("token lengths", "note", "", "", said))
    return found


def _without(split: Split, reasons: Sequence[str | None]) -> tuple[Split, tuple[Item, ...]]:
    """Take out of a split what is refused."""
    pairs = list(zip(split.questions, reasons, strict=True))
    items = tuple(split.item(one, reason) for one, reason in pairs if reason is not None)
    return replace(split, questions=tuple(one for one, reason in pairs if reason is None)), items


def sample(sizes: Iterable[Size]) -> list[Size]:
    """Choose sizes to measure: evenly by area, with the narrowest and the widest.

    Args:
        sizes: Widths and heights, repetitions allowed.

    Returns:
        `SAMPLE` of them at the most, or all if there are not more.
    """
    distinct = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
    if len(distinct) <= SAMPLE:
        return distinct
    by_shape = sorted(distinct, key=lambda size: size[0] / size[1])
    step = (len(distinct) - 1) / (SAMPLE - 3)
    even = [distinct[round(step * place)] for place in range(SAMPLE - 2)]
    return list(dict.fromkeys([*even, by_shape[0], by_shape[-1]]))


def _apart(a: Size, b: Size) -> float:
    return math.hypot(math.log(a[0] / b[0]), math.log(a[1] / b[1]))


class Measured(NamedTuple):
    """Tokens of one question: its prompt, the part of it that is pictures, its first answer."""

    asked: RowQuestion
    prompt: int
    pictures: int
    answer: int

    @property
    def whole(self) -> int:
        """Prompt and answer, with the token that ends it."""
        return self.prompt + self.answer + 1


def _measured(ruler: Ruler, split: Split, pictures: Mapping[Path, int]) -> list[Measured]:
    """Measure what could be too long in a split, and its longest prompts and answers."""
    limit = math.inf if ruler.limit is None else ruler.limit
    around: dict[int, int] = {}  # bytes of the template, by number of pictures
    shown, most, answers = list[int](), list[int](), list[int]()
    for _, example in split.questions:
        number = len(example.images)
        if number not in around:
            (prompt,) = ruler.renderer.prompts([example])
            around[number] = _bytes(prompt) - _bytes(example.question)
        shown.append(sum(pictures.get(path, 0) for path in example.images))
        answers.append(_bytes(example.answers[0]))
        text = around[number] + _bytes(example.question)
        most.append(shown[-1] + text + answers[-1] + 1)
    long = sorted(range(len(most)), key=lambda at: -most[at])
    wordy = sorted(range(len(most)), key=lambda at: -answers[at])
    could = [at for at in long if most[at] > limit or answers[at] > split.max_new_tokens]
    chosen = list(dict.fromkeys([*could, *long[:LONGEST], *wordy[:LONGEST]]))
    texts = ruler.texts([split.questions[at].example for at in chosen]) if chosen else []
    return [
        Measured(split.questions[at], prompt + shown[at], shown[at], answer)
        for at, (prompt, answer) in zip(chosen, texts, strict=True)
    ]


def _too_long(ruler: Ruler, split: Split, measured: Sequence[Measured]) -> Iterator[Finding]:
    items = tuple(
        split.item(one.asked, f"{one.whole:,} tokens, {one.pictures:,} of them of pictures")
        for one in measured
        if ruler.limit is not None and one.whole > ruler.limit
    )
    if items:
        said = f"{counted(len(items), 'prompt')} longer, with the answer, than the {ruler.limit:,} "
        said += f"positions of {ruler.name}"
        advice = "shorten them, leave them out, or take a model with more positions"
        yield Finding("prompt too long", "error", split.task, split.name, said, advice, items)
    items = tuple(
        split.item(one.asked, f"{one.answer:,} tokens: {one.asked.example.answers[0][:40]!r}")
        for one in measured
        if one.answer > split.max_new_tokens
    )
    if items:
        said = f"{counted(len(items), 'answer')} of more tokens than may be generated, "
        said += f"{split.max_new_tokens:,}"
        advice = "shorten them or raise max_new_tokens: they are cut, and count as wrong"
        yield Finding("answer too long", "warning", split.task, split.name, said, advice, items)


def _bytes(text: str) -> int:
    return len(text.encode())
