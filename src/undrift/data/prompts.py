"""Prompts and answers as text and tokens, by the chat template of a model's processor.

`ChatTemplate` takes turns in whichever form the template does; what it cannot write is refused.

What counts is looked up in the tokens, not in the text: where an answer ends, whether a text begins
with its start token, and whether it holds one that stands for a picture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from undrift.data.processor import (
    PLAIN,
    end_tokens,
    media_tokens,
    shortened,
    spelled_out,
    text_only,
    tokenizer_of,
    tokens_around,
)
from undrift.data.types import Example
from undrift.errors import ConfigError, DataError, unknown

PROBE = "undrift?"  # a question, and an answer, that no template holds
_TEMPLATES = Path(__file__).parent / "templates"
_BLANK = Example("blank", PROBE, (PROBE,))
_KNOWN = 4096  # answers whose tokens are remembered
_PRINTED = re.compile(r"""['"]type['"]: ?['"]text['"]""")
_REFUSALS = (TemplateError, TypeError, ValueError, AttributeError, LookupError)


class ChatTemplate:
    """Writes examples as text.

    Args:
        processor: A Hugging Face processor, or the tokenizer of a text-only model, with a chat
            template.

    Raises:
        ConfigError: If there is no chat template, or none that writes a question.
    """

    def __init__(self, processor: Any) -> None:
        if not getattr(processor, "chat_template", None):
            raise ConfigError(
                f"the backbone's {type(processor).__name__} has no chat template; add "
                "a chat_template.jinja to its folder, or use an instruction-tuned backbone"
            )
        self._processor = processor
        # Templates of models that think aloud: the short answer is what is taught and asked for.
        thinks = "enable_thinking" in str(processor.chat_template)
        self._options = {"enable_thinking": False} if thinks else {}
        self._in_parts = dict[str, bool]()  # of the turns of each role
        if self._takes_parts("user") is None:
            raise ConfigError(
                "the backbone's chat template writes a question neither as a list of parts nor as "
                "a text; give its folder another chat_template.jinja"
            )
        self._has_system = self._takes_parts("system") is not None

    def prompts(self, examples: Sequence[Example]) -> list[str]:
        """Write each question up to the point where the answer begins.

        A DataError names the example that the template refuses, or has no system turn for.
        """
        for example in examples:
            if example.system and not self._has_system:
                raise DataError(
                    f"the backbone's chat template has no system turn, and example {example.id!r} "
                    f"has one: {example.system[:80]!r}; put it into the question"
                )
        turns = [self._turns(example) for example in examples]
        return self._named(examples, turns, add_generation_prompt=True)

    def conversation(self, example: Example) -> str:
        """Write a question with its first answer."""
        turns = [*self._turns(example), self._turn("assistant", example.answers[0])]
        return self._named([example], [turns], add_generation_prompt=False)[0]

    def _named(self, examples: Sequence[Example], turns: list[Any], **asked: bool) -> list[str]:
        """Write turns; the example that the template refuses is named."""
        try:
            return self._written(turns, **asked)
        except _REFUSALS as error:
            if len(examples) > 1:
                pairs = zip(examples, turns, strict=True)
                return [self._named([one], [turn], **asked)[0] for one, turn in pairs]
            (example,) = examples
            raise DataError(
                f"the backbone's chat template refuses example {example.id!r}: "
                f"{(str(error).strip() or repr(error)).splitlines()[0]}"
            ) from error

    def _written(self, turns: list[Any], *, add_generation_prompt: bool) -> list[str]:
        return self._processor.apply_chat_template(
            turns, add_generation_prompt=add_generation_prompt, tokenize=False, **self._options
        )

    def _turns(self, example: Example) -> list[Mapping[str, Any]]:
        asked = self._turn("user", example.question, len(example.images))
        return [self._turn("system", example.system), asked] if example.system else [asked]

    def _turn(self, role: str, text: str, images: int = 0) -> Mapping[str, Any]:
        if self._in_parts.get(role, self._in_parts["user"]):
            parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
            return {"role": role, "content": parts}
        token = getattr(self._processor, "image_token", None)
        if images and token is None:
            raise ConfigError(
                "the backbone's chat template takes texts alone, and its processor does not say "
                "which token stands for a picture (image_token); give it a template of parts"
            )
        return {"role": role, "content": f"{token}\n" * images + text}

    def _takes_parts(self, role: str) -> bool | None:
        """Find out whether a turn is to be a list of parts or one text; None if it is not written.

        A template of texts prints a list as Python or JSON would, or stops.
        """
        for parts in (False, True) if text_only(self._processor) else (True, False):
            self._in_parts[role] = parts
            behind = [] if role == "user" else [self._turn("user", "?")]
            try:
                turns = [[self._turn(role, PROBE), *behind]]
                (text,) = self._written(turns, add_generation_prompt=True)
            except _REFUSALS:
                continue
            if PROBE in text and not _PRINTED.search(text):
                return parts
        return None


class Renderer:
    """Prompts and answers as text, by the processor's chat template.

    Args:
        processor: A Hugging Face processor, or the tokenizer of a text-only model, with a chat
            template.
        stop_ids: Tokens that end an answer.
        config: The model's configuration, which names further tokens that stand for media.

    Attributes:
        template: The chat template.
        media: The tokens that stand for pictures, videos and sounds, by id.

    Raises:
        ConfigError: If there is no chat template, none that writes a question, or no
            end-of-sequence token.
    """

    def __init__(self, processor: Any, stop_ids: Iterable[int], config: Any = None) -> None:
        self.template = ChatTemplate(processor)
        self.processor, self.config = processor, config
        self.tokenizer = tokenizer_of(processor)
        stops = [i for i in (self.tokenizer.eos_token_id, *stop_ids) if i is not None]
        if not stops:
            raise ConfigError("the backbone's tokenizer names no end-of-sequence token")
        self._stops = {i: self.tokenizer.convert_ids_to_tokens(i) for i in dict.fromkeys(stops)}
        self._ends = end_tokens(self.tokenizer, stops)
        self._spelled: Any = ...  # made when an answer needs it
        self._starts_itself = False  # whether the processor puts a start token of its own
        self._tails: dict[str, str] = {}
        self._answers: dict[tuple[str, str], list[int]] = {}
        self._marks: dict[tuple[int, bool], Counter[int]] = {}
        self.media = {} if text_only(processor) else media_tokens(processor, config)
        ends = {token: self.tokenizer.convert_ids_to_tokens(token) for token in self._ends}
        self._names = {**ends, **self.media}
        self._adds, self._behind = self._added()

    # ------------------------------------------------------------ prompts

    def prompts(self, examples: Sequence[Example]) -> list[str]:
        """Render each question up to the point where the answer begins; equal ones once."""
        alike = {_asked(example): example for example in examples}
        texts = self.template.prompts(list(alike.values()))
        rendered = dict(zip(alike, texts, strict=True))
        return [rendered[_asked(example)] for example in examples]

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokenise prompts as the processor would; equal ones once."""
        distinct = list(dict.fromkeys(prompts))
        made = self.tokenizer(distinct, add_special_tokens=self._adds)["input_ids"]
        known = dict(zip(distinct, made, strict=True))
        return [known[prompt][: len(known[prompt]) - self._behind] for prompt in prompts]

    def check(
        self,
        example: Example,
        text: str,
        prompt: Sequence[int],
        answer: Sequence[int],
        times: Mapping[int, int] | None = None,
    ) -> None:
        """Refuse a text with a token that stands for media, or that begins or ends what is read.

        Args:
            example: The example.
            text: Its prompt.
            prompt: The tokens of its prompt.
            answer: Those of its answer.
            times: How many of a token the prompt has in the place of one of the template's.

        Raises:
            DataError: If question, answer or system turn holds one of `media`, if question or
                system turn holds one that begins or ends a text or a turn, or if the template does
                not write each picture.
        """
        number = len(example.images)
        own = self._own(number, bool(example.system))
        for token, name in self._names.items():
            one = (times or {}).get(token, 1)
            found = prompt.count(token) // one + (answer.count(token) if token in self.media else 0)
            if found > own[token]:
                text = f"the text of example {example.id!r} holds {name!r}, which "
                if token in self.media:
                    text += f"stands for a picture, a video or a sound, {found} times, and the "
                    text += f"example has {number} pictures"
                else:
                    text += "begins or ends the model's texts"
                raise DataError(f"{text}; take it out: {_shown(example)}")
        image = getattr(self.processor, "image_token", None)
        if image is not None and text.count(image) != number:
            raise DataError(
                f"the prompt of example {example.id!r} has {text.count(image)} {image!r}, and the "
                f"example has {number} pictures; look at the chat template: {text[:80]!r}"
            )

    def blank(self, size: tuple[int, int] = PLAIN) -> dict[str, Any]:
        """Let the processor make the tensors of a short question with a grey picture of a size."""
        example = replace(_BLANK, images=(Path(),))
        return self.read(self.prompts([example]), [[Image.new("RGB", size, "grey")]])

    def read(self, texts: Sequence[str], pictures: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Let the processor make the tensors of prompts with pictures, padded on the left.

        Args:
            texts: What `prompts` returned.
            pictures: Those of each prompt.

        Returns:
            Its tensors; `input_ids` has the tokens of `ids`, with more where a picture stands.
        """
        made, start = self._read(texts, pictures), self.tokenizer.bos_token_id
        if start is not None and not self._starts_itself:
            (own,), there = self.ids(texts[:1]), made["attention_mask"][0] == 1
            found = int((made["input_ids"][0][there] == start).sum())
            if found > own.count(start) > 0:
                self._starts_itself = True
                made = self._read(texts, pictures)
        return made

    def _read(self, texts: Sequence[str], pictures: Sequence[Sequence[Any]]) -> dict[str, Any]:
        adds, behind = self._adds, self._behind
        if self._starts_itself:
            start = self.tokenizer.bos_token
            texts = texts if adds else [text.replace(start, "", 1) for text in texts]
            adds, behind = False, 0
        made = self.processor(
            text=list(texts),
            images=[list(own) for own in pictures] if any(pictures) else None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=adds,
        )
        made = {name: value for name, value in made.items() if name != "labels"}
        return shortened(made, behind)

    def suspicious(self, example: Example) -> bool:
        """Tell whether a text could be refused for a token in it; without a look at its tokens."""
        text = "".join((example.system, example.question, example.answers[0]))
        return any(name in text for name in self._names.values())

    def _own(self, images: int, system: bool) -> Counter[int]:
        """Count the tokens of the template around so many pictures, with a system turn or not."""
        if (images, system) not in self._marks:
            asked = replace(_BLANK, images=(Path(),) * images, system=PROBE if system else "")
            (ids,) = self.ids(self.template.prompts([asked]))
            self._marks[images, system] = Counter(ids)
        return self._marks[images, system]

    # ------------------------------------------------------------ answers

    def answers(self, examples: Sequence[Example], prompts: Sequence[str]) -> list[list[int]]:
        """Tokenise each first answer with its end-of-turn token, as a continuation of its prompt.

        What a template puts around an answer does not depend on the question, so of equal answers
        behind equal ends of prompts the tokens are remembered, for some thousands of them.

        Args:
            examples: The examples.
            prompts: What `prompts` returned for them.

        Returns:
            Token ids, one list an example: only the last one is a token that ends an answer.

        Raises:
            DataError: If the template refuses or changes an answer, or if an answer holds a token
                that would end it and cannot be taken for plain text.
        """
        known, found = self._answers, list[list[int]]()
        for example, prompt in zip(examples, prompts, strict=True):
            place = prompt.rfind(example.question)
            end = prompt[place + len(example.question) :] if place >= 0 else ""
            key = (end or prompt, example.answers[0])
            if key not in known:
                made = self._answer(example, prompt, key[0])
                if len(known) >= _KNOWN:
                    known.clear()
                known[key] = made
            found.append(known[key])
        return found

    def _answer(self, example: Example, prompt: str, end: str) -> list[int]:
        """Tokenise one answer behind `end`, the last part of its prompt."""
        body, tail = self._body(example, prompt, end)
        stops = [(tail.find(text), token) for token, text in self._stops.items() if text in tail]
        place, stop = min(stops) if stops else (len(tail), next(iter(self._stops)))
        text = body + tail[:place] if stops else (body + tail).rstrip()
        ids = _behind(self._plain, end, text + self._stops[stop])
        if ids[-1:] == [stop] and self._ends.isdisjoint(ids[:-1]):
            return ids
        if self._spelled is ...:
            self._spelled = spelled_out(self.tokenizer, self._ends)
        ids = [] if self._spelled is None else _behind(self._spelled, end, text)
        held = self._ends.intersection(ids)
        if not ids or held:
            texts = self.tokenizer.convert_ids_to_tokens(sorted(held or self._ends))
            raise DataError(
                f"the answer of example {example.id!r} holds {' or '.join(map(repr, texts))}, "
                "where the model's answers begin or end, and the tokenizer cannot take it for "
                f"plain text; take it out: {_shown(example)}"
            )
        return [*ids, stop]

    def _body(self, example: Example, prompt: str, end: str) -> tuple[str, str]:
        """Return the answer as the template writes it, and what the template puts behind it."""
        whole = self.template.conversation(example)
        if not whole.startswith(prompt):
            return example.answers[0], ""
        if end not in self._tails:
            known = self.template.conversation(replace(example, answers=(PROBE,)))
            if PROBE not in known[len(prompt) :]:
                raise ConfigError("the backbone's chat template does not write the answers")
            self._tails[end] = known[known.rfind(PROBE) + len(PROBE) :]
        tail = self._tails[end]
        if not whole.endswith(tail):
            raise DataError(
                f"the backbone's chat template changes the answer of example {example.id!r}, so "
                f"its end cannot be found: {example.answers[0][:80]!r}"
            )
        return whole[len(prompt) : len(whole) - len(tail)], tail

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _added(self) -> tuple[bool, int]:
        """Whether the tokenizer is to put tokens around a prompt, and how many it puts behind.

        A start token that the template writes, wherever, is not doubled; what is put behind a
        prompt is taken off again.
        """
        before, behind = tokens_around(self.tokenizer)
        own = self._plain(self.template.prompts([_BLANK])[0]) if before else []
        adds = bool(before) and not set(before).intersection(own)
        return adds, len(behind) if adds else 0


def training_template(family: str) -> str:
    """Return a chat template that marks the answers, for trainers that learn nothing else.

    Set it as `processor.chat_template` where TRL's `assistant_only_loss=True` is asked for.

    Args:
        family: "llava_1_5"; TRL ships those of other families itself.

    Returns:
        The template's text.

    Raises:
        UnknownName: If there is no template for that family.
    """
    known = {file.stem: file for file in _TEMPLATES.glob("*.jinja")}
    if family not in known:
        raise unknown("training template", family, known)
    return known[family].read_text(encoding="utf-8")


def _asked(example: Example) -> tuple[str, str, int]:
    """What a prompt is made of."""
    return example.system, example.question, len(example.images)


def _shown(example: Example) -> str:
    return f"{example.question[:80]!r}, {example.answers[0][:80]!r}"


def _behind(tokenise: Callable[[str], list[int]], first: str, text: str) -> list[int]:
    """Tokenise a text as what goes on behind another, or by itself where that changes the other."""
    before, both = tokenise(first), tokenise(first + text)
    return both[len(before) :] if both[: len(before)] == before else tokenise(text)
