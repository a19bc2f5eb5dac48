"""The forward context of a model: which tokens it reads, what their prompt is, which gates follow.

Layers, matchers, statistics and recorders of routes ask it; nothing else looks at the calls of a
model. A prompt is seen once, when the model reads it; while an answer is decoded, token by token,
what was decided stays. Answers that are being taught are left out, so training and test see the
same. A model that decodes without a cache reads everything anew at every token, and all that it
reads is its prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedConfig

from undrift.errors import ConfigError, unknown
from undrift.tuner.token_mask import IGNORED, Tokens, packed_examples, without_padding

Gates = Tensor | Literal["all", "newest"] | Callable[[Tensor], Tensor]
"""What each expert of a pool counts for, oldest first:

- a tensor (E,), the same for every token; (B, E), a row for every sample; (B, L, E), for every
  token. It may be in a graph: the layers hand its gradient back;
- "all": 1 for every expert;
- "newest": 1 for those that are trained, and the past ones are not even computed;
- a function of the layer's input x (..., d_in) that gives (..., E): a router.
"""

_PLACE = "undrift_forward"  # the attribute of the transformers model that holds its context
_OF_TOKENS = ("input_ids", "inputs_embeds", "attention_mask")
_PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "image_patches")
_KEPT = {
    *(*_OF_TOKENS, *_PIXELS),
    *(f"decoder_{name}" for name in _OF_TOKENS),
    *("labels", "position_ids", "seq_idx", "cu_seq_lens_q"),
}


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


class _Call:
    """One call of a model: what it is given, and the tokens in it."""

    def __init__(
        self, module: nn.Module | None, given: Mapping[str, Any], known: Mapping[str, Any]
    ) -> None:
        self.given = {name: value for name, value in given.items() if name in _KEPT}
        self.known = known  # what `ForwardContext.given` says
        self.shown = module is None  # whether its prompt was shown
        self._model = type(module).__name__
        self._encodes = _has_encoder(module)
        self._teaches = module is not None and module.training and torch.is_grad_enabled()

    @cached_property
    def tokens(self) -> Tokens:
        """The tokens that the language model's linears read."""
        given, mask, content = self.given, self.given.get("attention_mask"), _content(self.given)
        if self._encodes:  # the linears are the decoder's
            labels, mask = given.get("labels"), given.get("decoder_attention_mask")
            content = _content(given, "decoder_")
            content = labels if content is None else content
            if mask is None and isinstance(labels, Tensor):
                mask = labels != IGNORED
            if mask is None and self._teaches:
                raise ConfigError(
                    f"{self._model} has an encoder, whose attention_mask does not tell "
                    "the decoder's padding: call it with labels or decoder_attention_mask"
                )
            given = {}
        elif mask is None:
            mask = without_padding(given)
        if not isinstance(mask, Tensor | None):
            raise ConfigError(
                "undrift cannot read the padding from a prepared attention mask; call the model "
                "with a mask of shape (batch, length), or with none"
            )
        predicts = self._predicts(content if mask is None else mask)
        found = (self.given.get(name) for name in _PIXELS)
        pixels = next((each for each in found if isinstance(each, Tensor)), None)
        return Tokens(mask, self.known.get("example_ids"), content, given, predicts, pixels)

    def _predicts(self, like: Tensor | None) -> Tensor | None:
        """Which tokens predict a labelled one, (B, L); None where that is not known."""
        labels = self.given.get("labels")
        if like is None or not isinstance(labels, Tensor) or labels.dim() != 2:
            return None
        told = labels.to(like.device) != IGNORED
        told = told if self._encodes else functional.pad(told[:, 1:], (0, 1))
        return functional.pad(told, (like.shape[1] - labels.shape[1], 0))


class ForwardContext:
    """What one model reads: made by `attach`, found by `of`, one for all adapters of a model.

    Under gradient checkpointing a forward pass must be followed by its backward pass before the
    next forward pass, as every trainer does.

    Attributes:
        on_prompt: Called with every prompt before the language model reads it, in the grad mode of
            the call.
        layers: The names of the linears that ask for their gates here.
    """

    def __init__(self) -> None:
        self.on_prompt: Callable[[Prompt], None] | None = None
        self.layers: set[str] = set()
        self._call = _Call(None, {}, {})
        self._known: Mapping[str, Any] = {}
        self._gates: Mapping[str, Gates] = {}
        self._paused = False

    # ------------------------------------------------------------ where it is

    @classmethod
    def attach(
        cls, model: nn.Module, on_prompt: Callable[[Prompt], None] | None = None
    ) -> ForwardContext:
        """Watch the calls of a model from now on; one that is watched already keeps its context.

        Args:
            model: A transformers model, with or without a PeftModel around it.
            on_prompt: See the attribute; what was there stays where not given.

        Returns:
            Its context.

        Raises:
            ConfigError: If prompts are asked for, and the model does not say which part of it is
                the language model.
        """
        base = _base(model)
        if on_prompt is not None and _decoder(base) is None:
            raise ConfigError(
                f"{type(base).__name__} has no get_decoder, so its prompts cannot be seen; use a "
                "transformers model"
            )
        context = cls.of(base)
        if context is None:
            context = cls()
            context._watch(base)
        context.on_prompt = on_prompt or context.on_prompt
        return context

    @classmethod
    @contextmanager
    def attached(cls, model: nn.Module) -> Iterator[ForwardContext]:
        """Within this context a model has a context: its own, or one that is taken off again."""
        base = _base(model)
        context, handles = cls.of(base), []
        if context is None:
            context = cls()
            handles = context._watch(base)
        try:
            yield context
        finally:
            for handle in handles:
                handle.remove()
            if handles:
                delattr(base, _PLACE)

    @classmethod
    def of(cls, model: nn.Module) -> ForwardContext | None:
        """Find a model's context; None where it is not watched."""
        return getattr(_base(model), _PLACE, None)

    def _watch(self, base: Any) -> list[RemovableHandle]:
        setattr(base, _PLACE, self)
        handles = [base.register_forward_pre_hook(self._begin, with_kwargs=True)]
        decoder, show = _decoder(base), partial(self._show, base)
        if decoder is not None:
            handles.append(decoder.register_forward_pre_hook(show, with_kwargs=True))
        return handles

    # ------------------------------------------------------------ what layers and methods ask

    @property
    def tokens(self) -> Tokens:
        """The tokens of the current, or last, forward pass; the same object all through it."""
        return self._call.tokens

    def set_gates(self, gates: Gates | Mapping[str, Gates]) -> None:
        """Set the gates that count from now on; what was set before is forgotten.

        Args:
            gates: Of every layer; or by the layer's name, with those of all other layers, if there
                are any, under "".

        Raises:
            UnknownName: If no layer of that name has a pool.
        """
        if not isinstance(gates, Mapping):
            gates = {"": gates}
        for name in gates.keys() - {""}:
            if name not in self.layers:
                raise unknown("layer with a pool", name, self.layers)
        self._gates = gates

    def gates_of(self, layer: str) -> Gates | None:
        """Return a layer's own gates, or else those of all layers; None where none are set."""
        return self._gates[layer] if layer in self._gates else self._gates.get("")

    # ------------------------------------------------------------ what a call does not show

    @contextmanager
    def given(
        self,
        *,
        input_ids: Tensor | None = None,
        encoded: Mapping[str, Tensor] | None = None,
        example_ids: Tensor | None = None,
    ) -> Iterator[None]:
        """Say what the model's calls within this context do not show.

        Args:
            input_ids: Which tokens the `inputs_embeds` of the calls stand for, (B, L).
            encoded: What another model makes of the prompts, by modality, (B, width).
            example_ids: What tells examples apart, instead of their content, (B,) int64.
        """
        before = self._known
        self._known = {"input_ids": input_ids, "encoded": encoded, "example_ids": example_ids}
        try:
            yield
        finally:
            self._known = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context no prompts are shown, so `on_prompt` may call the model itself."""
        before, call, self._paused = self._paused, self._call, True
        try:
            yield
        finally:
            self._paused, self._call = before, call

    # ------------------------------------------------------------ the hooks

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what the whole model is called with."""
        self._call = _Call(module, named(module, args, kwargs), self._known)

    def _show(
        self, base: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Show the prompt, if this call of the language model is one that reads it."""
        if self._paused or self.on_prompt is None:
            return
        call, called = self._call, named(module, args, kwargs)
        if continues(args, kwargs):
            _check_one_token(called)
            return
        if call.shown:
            raise ConfigError(
                f"{type(module).__name__} was called by itself, so its prompts cannot be told from "
                "answers; call the whole model"
            )
        if packed_examples(call.given) is not None:
            raise ConfigError(
                "this method decides by the prompt of a row, and a packed row holds several: train "
                "without packing and without padding-free batches"
            )
        call.shown = True
        embeds = called.get("inputs_embeds")
        if embeds is None:
            embeds = base.get_input_embeddings()(called["input_ids"])
        self.on_prompt(_prompt(base, embeds.detach(), call))


def _prompt(base: Any, embeds: Tensor, call: _Call) -> Prompt:
    """The prompts that a call of the language model reads."""
    shape, mask, ids = embeds.shape[:2], call.tokens.mask, call.given.get("input_ids")
    if mask is not None and mask.shape != shape:
        raise ConfigError(
            f"the prompts are {tuple(shape)} tokens, and the attention mask is not; call the "
            "model with a mask of shape (batch, length), or with none"
        )
    attended = torch.ones(shape, dtype=torch.bool, device=embeds.device)
    if mask is not None:
        attended = mask.to(embeds.device) != 0
    ids = call.known.get("input_ids") if ids is None else ids
    image = _images(base, ids, embeds) & attended
    answer = _answer(call.given.get("labels"), attended)
    text = attended & ~image & ~answer
    prompt = Prompt(embeds, text, image, ids, call.known.get("encoded"))
    if not bool(prompt.mask.any(1).all()):
        raise ConfigError(
            "a sample has no prompt: every token of it carries a label, so all of it counts as "
            f"answer; give the prompt's tokens the label {IGNORED}"
        )
    return prompt


def _images(base: Any, ids: Tensor | None, embeds: Tensor) -> Tensor:
    """The positions of image features, (B, L)."""
    config = base.config
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if ids is not None and ids.shape != embeds.shape[:2]:
        raise ConfigError(
            f"the ids {tuple(ids.shape)} are not those of the embeddings "
            f"{tuple(embeds.shape[:2])}; give the input_ids of this batch to ForwardContext.given"
        )
    if token is None and hasattr(config, "vision_config"):
        raise ConfigError(
            f"the configuration of {type(base).__name__} does not say which token "
            "stands for a picture (image_token_id); use another backbone with this method"
        )
    if token is None:
        return torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    if ids is None:
        raise ConfigError(
            "the model is given inputs_embeds, which do not show where the pictures are; call it "
            "within ForwardContext.of(model).given(input_ids=...), or with input_ids"
        )
    return ids.to(embeds.device) == token


def _answer(labels: Tensor | None, attended: Tensor) -> Tensor:
    """The positions from a sample's first labelled token on; labels may be the last only."""
    if labels is None:
        return torch.zeros_like(attended)
    missing = attended.shape[1] - labels.shape[1]
    whole = functional.pad(labels.to(attended.device), (missing, 0), value=IGNORED)
    return (whole != IGNORED).cumsum(1) > 0


def _check_one_token(called: Mapping[str, Any]) -> None:
    """Refuse what is neither a whole prompt nor the next token of an answer."""
    read = called.get("inputs_embeds")
    read = called.get("input_ids") if read is None else read
    if isinstance(read, Tensor) and read.shape[1] > 1:
        raise ConfigError(
            f"{read.shape[1]} tokens at once go on behind a filled cache, and this method decides "
            "by the prompt as a whole: generate without prefill_chunk_size, without guesses ahead "
            "(assistant_model, prompt_lookup_num_tokens), and from an empty cache"
        )


def _content(given: Mapping[str, Any], of: str = "") -> Tensor | None:
    """Something of every token, (batch, length); `of` is the prefix of the decoder's arguments."""
    ids, embedded = given.get(f"{of}input_ids"), given.get(f"{of}inputs_embeds")
    return embedded.detach()[..., 0] if ids is None and isinstance(embedded, Tensor) else ids


def _base(model: nn.Module) -> Any:
    """Take off what stands around a transformers model: trainers' modules, then a PeftModel."""
    inner: Any = model
    while not hasattr(inner, "get_base_model") and isinstance(
        getattr(inner, "module", None), nn.Module
    ):
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _decoder(base: Any) -> nn.Module | None:
    """The language model in a transformers model."""
    known = hasattr(base, "get_decoder") and hasattr(base, "get_input_embeddings")
    return base.get_decoder() if known else None


def _has_encoder(module: nn.Module | None) -> bool:
    """Whether a model reads in an encoder and writes in a decoder, also one behind a tower."""
    config = getattr(module, "config", None)
    text = config.get_text_config() if isinstance(config, PreTrainedConfig) else None
    return any(getattr(each, "is_encoder_decoder", False) for each in (config, text))


# ---------------------------------------------------------------- calls that go on behind a cache
# Told by what a call is given, not by the argument's name: transformers has called its cache
# `past_key_values`, `cache_params` and `cache`, and models of other people have names of their own.


def continues(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call goes on behind tokens that were read before.

    A cache that is there and empty, or preallocated, has read nothing: the call reads a prompt. So
    does every call without a cache, whatever it was given before.
    """
    return any(_holds_tokens(value) for value in (*args, *kwargs.values()))


def cache_of(output: Mapping[str, Any]) -> dict[str, Any]:
    """Find the cache in a model's output, by its name, which is its name in the next call too."""
    return {name: value for name, value in output.items() if _holds_tokens(value)}


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments of a module's call their names."""
    if not args:
        return kwargs
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs


def _holds_tokens(value: Any) -> bool:
    """Whether this is a cache with something in it."""
    if value is None or isinstance(value, Tensor):
        return False
    if isinstance(value, tuple | list):
        return _is_past(value)
    if isinstance(value, Cache) or hasattr(value, "get_seq_length"):
        try:
            return bool(value.get_seq_length())
        except ValueError:  # of linear attention alone, which keeps a state and counts nothing
            return bool(value.has_previous_state())
    state = getattr(value, "has_previous_state", False)  # caches of state space models' own
    return bool(state() if callable(state) else state) or bool(getattr(value, "seqlen_offset", 0))


def _is_past(value: tuple[Any, ...] | list[Any]) -> bool:
    """Whether this is a cache in the old form, keys and values for each layer, with tokens in it.

    Lists of pictures and pairs of position embeddings are no caches: their parts are not pairs of
    four dimensions (batch, heads, length, size of a head).
    """
    layers = [layer for layer in value if layer is not None]
    return bool(layers) and all(
        isinstance(layer, tuple | list)
        and len(layer) > 1
        and all(isinstance(part, Tensor) and part.dim() == 4 for part in layer[:2])
        and layer[0].shape[:2] == layer[1].shape[:2]
        and layer[0].shape[-2] > 0
        for layer in layers
    )
