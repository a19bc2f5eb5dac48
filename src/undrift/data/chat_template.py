"""A model's chat template, in whichever form it takes turns; what it cannot write is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from undrift.data.processor import text_only
from undrift.data.types import Example
from undrift.errors import ConfigError, DataError

PROBE = "undrift?"  # a question, and an answer, that no template holds
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
