"""The model `undrift` of lmms-eval: its tasks' questions and pictures, answered by an adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from undrift.data.questions import UNKNOWN
from undrift.data.types import Example
from undrift.errors import ConfigError, DataError, brief
from undrift.run.answer import answers
from undrift.run.predict import answer_length, open_model
from undrift.rundir.files import temporary_folder

_LMMS: Any = import_module("lmms_eval.api.model").lmms
_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes that are kept as they are


class Undrift(_LMMS):
    """An adapter or a model for lmms-eval, as in `--model undrift --model_args adapter=PATH`.

    Answers are greedy, through undrift's own session, so that routed adapters and prompts work;
    which task is asked is not told. A question is one turn, with pictures or without.

    Args:
        adapter: The folder of a run or of an adapter; a model without one is named by `backbone`.
        backbone: Another place of the adapter's model; or the model that is asked without adapter.
        device: auto, cpu, cuda ...
        batch_size: Prompts at a time.
        max_new_tokens: Longest answer where a task does not say; else as `undrift predict` has it.
        **others: Nothing that is known, but for what lmms-eval itself hands to every model.

    Raises:
        ConfigError: If an argument is unknown, or if several processes ask.
    """

    is_simple = False

    def __init__(
        self,
        adapter: str | None = None,
        backbone: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_new_tokens: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = sorted({*others} - {"max_batch_size"})
        if unknown:
            known = "adapter, backbone, device, batch_size, max_new_tokens"
            raise ConfigError(f"--model undrift does not know {', '.join(unknown)}; known: {known}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("--model undrift answers in one process: start lmms-eval without")
        given = adapter or backbone
        if given is None:
            raise ConfigError("say what is asked: --model_args adapter=PATH, or backbone=MODEL")
        place = backbone if adapter else None
        self.session = open_model(str(given), place, device or "auto")
        self.session.batch_size = _whole(batch_size)
        self._longest = int(max_new_tokens or answer_length(self.session))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer questions.

        Args:
            requests: lmms-eval's instances of chats: context, a function that makes the messages
                of a document, generation arguments, number of the document, task and split.

        Returns:
            The answers, in the same order.

        Raises:
            DataError: If a question has several turns, or holds a video or sound.
            ConfigError: If a task asks for samples.
        """
        said: dict[int, str] = {}
        groups: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._length(request.args[2]), []).append(number)
        with (
            temporary_folder() as folder,
            self.session.method.predicting(self.session.model),
        ):
            for longest, numbers in groups.items():
                asked = [self._example(number, requests[number].args, folder) for number in numbers]
                encoded = self.session.collator.encode(asked, answered=False)
                said |= {int(key): text for key, text in answers(self.session, encoded, longest)}
        return [_cut(said[n], request.args[2]) for n, request in enumerate(requests)]

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """Refuse: undrift's adapters answer, see `undrift eval --lm-eval` for likelihoods."""
        raise NotImplementedError(
            "the model `undrift` answers questions (generate_until); for tasks of likelihoods "
            "without pictures use `undrift eval ADAPTER --lm-eval TASK`"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        """Refuse: every question is asked by itself."""
        raise NotImplementedError("the model `undrift` is asked one question at a time")

    def _length(self, given: Mapping[str, Any]) -> int:
        if given.get("do_sample") and given.get("temperature", 1.0):
            raise ConfigError(
                "a task asks for samples (do_sample), and undrift answers greedily; set "
                "--gen_kwargs do_sample=False"
            )
        return int(given.get("max_new_tokens", self._longest))

    def _example(self, number: int, args: Sequence[Any], folder: Path) -> Example:
        """Make a question of what lmms-eval asks, its pictures as files."""
        _, messages_of, _, document, task, split = args
        where = f"question {document} of {task}"
        system, texts, pictures = "", list[str](), list[Path]()
        for place, message in enumerate(messages_of(self.task_dict[task][split][document])):
            role, content = message["role"], message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            words = [part["text"] for part in parts if part["type"] == "text"]
            if role == "system" and not place:
                system = "\n".join(words)
                continue
            if role != "user" or texts or pictures:
                raise DataError(f"{where} has several turns; undrift is asked one at a time")
            texts += words
            for part in parts:
                if part["type"] not in ("text", "image"):
                    raise DataError(f"{where} holds a part of type {part['type']}: not supported")
                if part["type"] == "image":
                    name = folder / f"{number}-{len(pictures)}.png"
                    pictures.append(_file(part["url"], name, where))
        return Example(str(number), "\n".join(texts), (UNKNOWN,), tuple(pictures), system=system)


def _file(picture: Any, name: Path, where: str) -> Path:
    """Return a picture as a file, written without loss if it is in memory."""
    if isinstance(picture, str):
        return Path(picture)
    if not isinstance(picture, Image.Image):
        raise DataError(f"{where} holds no picture but {brief(picture)}")
    (picture if picture.mode in _PNG else picture.convert("RGB")).save(name)
    return name


def _cut(text: str, given: Mapping[str, Any]) -> str:
    """End an answer before the first of the texts at which a task ends it."""
    until = given.get("until") or ()
    for stop in (until,) if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text


def _whole(batch_size: int | str) -> int:
    try:
        return max(1, int(batch_size))
    except ValueError as error:
        raise ConfigError(f"batch_size is {batch_size!r}; expected a whole number") from error
