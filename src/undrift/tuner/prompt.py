"""The prompt of a forward pass: what gates, matchers and routers of whole samples may look at.

Seen once, when the model reads it; while an answer is decoded, token by token, what was decided
stays. Answers that are being taught are left out, so training and test see the same. A model that
decodes without a cache reads everything anew at every token, and all that it reads is its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.tuner.decoding import goes_on, named
from undrift.tuner.packing import packed_examples

_IGNORED = -100  # the label that cross entropy leaves out


@dataclass(frozen=True, eq=False)
class Prompt:
    """The prompts of a batch; B samples of L positions, padding and answers included.

    Attributes:
        embeds: What the language model reads, image features in their places, without graph,
            (B, L, d).
        text_mask: The positions of text: no padding, no image, nothing from the first answer token
            on, (B, L) bool.
        image_mask: The positions of image features, (B, L) bool.
        ids: The token ids, (B, L); None where they are not known.
        encoded: What another model makes of the prompts, by modality, (B, width); None where
            there is none.
    """

    embeds: Tensor
    text_mask: Tensor
    image_mask: Tensor
    ids: Tensor | None = None
    encoded: Mapping[str, Tensor] | None = None

    @property
    def mask(self) -> Tensor:
        """The positions of text and image, (B, L) bool; in every row at least one."""
        return self.text_mask | self.image_mask


class PromptContext:
    """Watches the calls of one model, and shows every prompt once; made by `attach`.

    Args:
        model: The transformers model.

    Attributes:
        on_prompt: Called with the prompt before the language model reads it, in the grad mode of
            the call.
        ids: Set it before a forward pass that is given `inputs_embeds` to say which tokens they
            stand for, (B, L); used once.
        encoded: Set it before a forward pass to what another model makes of the prompts, by
            modality, (B, width); used once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.on_prompt: Callable[[Prompt], None] | None = None
        self.ids: Tensor | None = None
        self.encoded: Mapping[str, Tensor] | None = None
        self._model = model
        self._given: dict[str, Any] | None = None
        self._paused = False

    @classmethod
    def attach(cls, model: nn.Module) -> PromptContext:
        """Watch a model from now on; one that is watched already keeps its context.

        Args:
            model: A transformers model, with or without a PeftModel around it.

        Returns:
            Its context.

        Raises:
            ConfigError: If the model does not say which part of it is the language model.
        """
        found = cls.of(model)
        if found is not None:
            return found
        base = _base(model)
        if not hasattr(base, "get_decoder") or not hasattr(base, "get_input_embeddings"):
            raise ConfigError(
                f"{type(base).__name__} has no get_decoder, so its prompts cannot be seen; use a "
                "transformers model"
            )
        context = cls(base)
        base.register_forward_pre_hook(context._note, with_kwargs=True)
        base.get_decoder().register_forward_pre_hook(context._see, with_kwargs=True)  # pyright: ignore
        return context

    @classmethod
    def of(cls, model: nn.Module) -> PromptContext | None:
        """Find a model's context.

        Args:
            model: As for `attach`.

        Returns:
            It, or None where the model is not watched.
        """
        for hook in _base(model)._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, cls):
                return owner
        return None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context calls of the model are not watched, so `on_prompt` may call it."""
        before, given, self._paused = self._paused, self._given, True
        try:
            yield
        finally:
            self._paused, self._given = before, given

    # ------------------------------------------------------------ the hooks

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what the whole model is called with."""
        if self._paused:
            return
        ids, self.ids = self.ids, None
        given = named(module, args, kwargs)
        if self.on_prompt is not None and packed_examples(given) is not None:
            raise ConfigError(
                "this method decides by the prompt of a row, and a packed row holds several: train "
                "without packing and without padding-free batches"
            )
        self._given = {key: given.get(key) for key in ("input_ids", "attention_mask", "labels")}
        if self._given["input_ids"] is None:
            self._given["input_ids"] = ids

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Show the prompt, if this call of the language model is one that reads it."""
        given, called = self._given, named(module, args, kwargs)
        if self._paused or self.on_prompt is None:
            return
        if goes_on(args, kwargs):
            _check_one_token(called)
            return
        if given is None:
            raise ConfigError(
                f"{type(module).__name__} was called by itself, so its prompts cannot be told from "
                "answers; call the whole model"
            )
        self._given = None
        embeds = called.get("inputs_embeds")
        if embeds is None:
            embed: Any = self._model.get_input_embeddings()  # pyright: ignore
            embeds = embed(called["input_ids"])
        self.on_prompt(self._prompt(embeds.detach(), given))

    def _prompt(self, embeds: Tensor, given: dict[str, Any]) -> Prompt:
        shape, ids, mask = embeds.shape[:2], given["input_ids"], given["attention_mask"]
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != shape):
            raise ConfigError(
                f"the prompts are {tuple(shape)} tokens, and the attention mask is not; call the "
                "model with a mask of shape (batch, length), or with none"
            )
        attended = torch.ones(shape, dtype=torch.bool, device=embeds.device)
        if mask is not None:
            attended = mask.to(embeds.device) != 0
        image = self._images(ids, embeds) & attended
        answer = _answer(given["labels"], attended)
        encoded, self.encoded = self.encoded, None
        prompt = Prompt(embeds, attended & ~image & ~answer, image, ids, encoded)
        if not bool(prompt.mask.any(1).all()):
            raise ConfigError(
                "a sample has no prompt: every token of it carries a label, so all of it counts as "
                "answer; give the prompt's tokens the label -100"
            )
        return prompt

    def _images(self, ids: Tensor | None, embeds: Tensor) -> Tensor:
        """Tell the positions of image features, (B, L)."""
        config = self._model.config
        token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        if ids is not None and ids.shape != embeds.shape[:2]:
            raise ConfigError(
                f"the ids {tuple(ids.shape)} are not those of the embeddings "
                f"{tuple(embeds.shape[:2])}; set PromptContext.ids right before the call"
            )
        if token is None and hasattr(config, "vision_config"):
            raise ConfigError(
                f"the configuration of {type(self._model).__name__} does not say which token "
                "stands for a picture (image_token_id); use another backbone with this method"
            )
        if token is None:
            return torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        if ids is None:
            raise ConfigError(
                "the model is given inputs_embeds, which do not show where the pictures are; set "
                "PromptContext.of(model).ids before the call, or call it with input_ids"
            )
        return ids.to(embeds.device) == token


def _answer(labels: Tensor | None, attended: Tensor) -> Tensor:
    """Tell the positions from a sample's first labelled token on; labels may be the last only."""
    if labels is None:
        return torch.zeros_like(attended)
    missing = attended.shape[1] - labels.shape[1]
    whole = F.pad(labels.to(attended.device), (missing, 0), value=_IGNORED)
    return (whole != _IGNORED).cumsum(1) > 0


def _check_one_token(called: dict[str, Any]) -> None:
    """Refuse what is neither a whole prompt nor the next token of an answer."""
    read = called.get("inputs_embeds")
    read = called.get("input_ids") if read is None else read
    if isinstance(read, Tensor) and read.shape[1] > 1:
        raise ConfigError(
            f"{read.shape[1]} tokens at once go on behind a filled cache, and this method decides "
            "by the prompt as a whole: generate without prefill_chunk_size, without guesses ahead "
            "(assistant_model, prompt_lookup_num_tokens), and from an empty cache"
        )


def _base(model: nn.Module) -> Any:
    """Take off what stands around a transformers model: trainers' modules, then a PeftModel."""
    inner: Any = model
    while not hasattr(inner, "get_base_model") and isinstance(
        getattr(inner, "module", None), nn.Module
    ):
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
