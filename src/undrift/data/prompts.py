"""Prompts and answers as text and tokens, by the chat template of a model's processor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from undrift.data.types import Example
from undrift.errors import ConfigError, unknown

_TEMPLATES = Path(__file__).parent / "templates"


class Renderer:
    """Prompts and answers as text, by the processor's chat template.

    Args:
        processor: A Hugging Face processor, or the tokenizer of a text-only model, with a chat
            template.
        stop_ids: Tokens that end an answer.

    Raises:
        ConfigError: If there is no chat template, or no end-of-sequence token.
    """

    def __init__(self, processor: Any, stop_ids: Iterable[int]) -> None:
        if not getattr(processor, "chat_template", None):
            raise ConfigError(
                f"the backbone's {type(processor).__name__} has no chat template; add "
                "a chat_template.jinja to its folder, or use an instruction-tuned backbone"
            )
        self.processor = processor
        self.tokenizer = tokenizer_of(processor)
        self.text_only = text_only(processor)
        stops = [i for i in (self.tokenizer.eos_token_id, *stop_ids) if i is not None]
        if not stops:
            raise ConfigError("the backbone's tokenizer names no end-of-sequence token")
        # Templates of models that think aloud: the short answer is what is taught and asked for.
        thinks = "enable_thinking" in str(processor.chat_template)
        self._options = {"enable_thinking": False} if thinks else {}
        self._stops = [self.tokenizer.convert_ids_to_tokens(i) for i in dict.fromkeys(stops)]

    def prompts(self, examples: Sequence[Example]) -> list[str]:
        """Render each question up to the point where the answer begins; equal ones once.

        Args:
            examples: The examples.

        Returns:
            One text each.
        """
        alike = {(example.question, len(example.images)): example for example in examples}
        turns = [[self._question(example)] for example in alike.values()]
        texts = self._render(turns, add_generation_prompt=True)
        rendered = dict(zip(alike, texts, strict=True))
        return [rendered[example.question, len(example.images)] for example in examples]

    def answers(self, examples: Sequence[Example], prompts: Sequence[str]) -> list[list[int]]:
        """Tokenise each first answer with its end-of-turn token, as a continuation of its prompt.

        What a template puts around an answer does not depend on the question, so equal answers
        behind equal ends of prompts are rendered and tokenised once.

        Args:
            examples: The examples.
            prompts: What `prompts` returned for them.

        Returns:
            Token ids, one list an example.
        """
        known: dict[tuple[str, str], list[int]] = {}
        found = []
        for example, prompt in zip(examples, prompts, strict=True):
            end = prompt[prompt.rfind(example.question) + len(example.question) :]
            key = (end or prompt, example.answers[0])
            if key not in known:
                known[key] = self._answer(example, prompt, key[0])
            found.append(known[key])
        return found

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokenise prompts as the processor would; equal ones once."""
        distinct = list(dict.fromkeys(prompts))
        made = self.tokenizer(distinct, **self.text_options(distinct))["input_ids"]
        known = dict(zip(distinct, made, strict=True))
        return [known[prompt] for prompt in prompts]

    def text_options(self, prompts: Sequence[str]) -> dict[str, bool]:
        """Return the tokenizer options that keep a template's own start token from doubling."""
        start = self.tokenizer.bos_token
        return {"add_special_tokens": not (start and prompts[0].startswith(start))}

    def _answer(self, example: Example, prompt: str, end: str) -> list[int]:
        """Tokenise one answer behind `end`, the last part of its prompt."""
        turn = [self._question(example), self._reply(example)]
        (whole,) = self._render([turn], add_generation_prompt=False)
        goes_on = whole.startswith(prompt)
        text = self._ended(whole[len(prompt) :] if goes_on else example.answers[0])
        pieces = self.tokenizer([end, end + text, text], add_special_tokens=False)["input_ids"]
        first, both, alone = pieces
        return both[len(first) :] if both[: len(first)] == first else alone

    def _render(self, turns: list[Any], *, add_generation_prompt: bool) -> list[str]:
        return self.processor.apply_chat_template(
            turns, add_generation_prompt=add_generation_prompt, tokenize=False, **self._options
        )

    def _ended(self, answer: str) -> str:
        """Cut behind the first token that ends a turn, or put one behind the answer."""
        answer = answer.rstrip()
        ends = [answer.find(stop) + len(stop) for stop in self._stops if stop in answer]
        return answer[: min(ends)] if ends else answer + self._stops[0]

    def _question(self, example: Example) -> Mapping[str, Any]:
        if self.text_only:
            return {"role": "user", "content": example.question}
        images = [{"type": "image"} for _ in example.images]
        return {"role": "user", "content": [*images, {"type": "text", "text": example.question}]}

    def _reply(self, example: Example) -> Mapping[str, Any]:
        answer = example.answers[0]
        content = answer if self.text_only else [{"type": "text", "text": answer}]
        return {"role": "assistant", "content": content}


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


def text_only(processor: Any) -> bool:
    """Tell whether this is a tokenizer, that of a text-only model, instead of a processor."""
    return not hasattr(processor, "tokenizer")


def tokenizer_of(processor: Any) -> Any:
    """Return a processor's tokenizer; a tokenizer is its own."""
    return processor if text_only(processor) else processor.tokenizer
