"""The model that learns (any vision-language or language model), frozen, and its fingerprint.

`pocket` is the small one that ships with undrift; everything else is a folder or a Hub name, read
by `run.load_model`. Methods add adapters.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig

from undrift.data.collate import FeatureCollator, PixelCollator, TextCollator
from undrift.data.picture_decoding import open_picture
from undrift.data.picture_folder import cache_folder
from undrift.data.processor import PLAIN, Alone, naming, text_only, tokenizer_of
from undrift.data.prompts import Renderer
from undrift.errors import ConfigError, DataError, UndriftError, first_line
from undrift.methods.shared.projector import changes_pictures
from undrift.run.config import RunConfig
from undrift.run.encoder import Encoder, EncodingCollator
from undrift.run.image_features import FeatureStore, ProgressCall
from undrift.run.load_model import (
    Quantize,
    find_device,
    outline,
    read_model,
    read_processor,
    source,
)
from undrift.tuner import ForwardContext

CACHEABLE = {"llava"}  # families in which a picture's features are one (n_tokens, d) block
CACHE_LIMIT = 4 * 2**30  # bytes of image features that may be kept in memory
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_DECISIVE = ("model_type", "hidden_act", "num_attention_heads", "num_key_value_heads")
_PICTURES = ("size", "crop_size", "resample", "do_resize", "do_center_crop", "do_normalize",
             "image_mean", "image_std", "rescale_factor")  # fmt: skip
_SAMPLE = 4096  # values of each tensor that enter the fingerprint

Collator = FeatureCollator | PixelCollator | TextCollator | EncodingCollator


@dataclass
class Backbone:
    """A frozen model, its processor, and what is known about it.

    Args:
        name: As given by the user.
        model: The model, in evaluation mode, without gradients.
        processor: Its processor, padding on the left; of a text-only model its tokenizer.
        fingerprint: A digest of configuration, weights, tokenizer and image processor.
        stop_ids: Tokens that end an answer.
        store: Kept image features, once `prepare` has decided for them.
        encoder: Another model whose features batches are to hold, see `encode_with`.
    """

    name: str
    model: Any
    processor: Any
    fingerprint: str
    stop_ids: tuple[int, ...]
    store: FeatureStore | None = field(default=None, repr=False)
    encoder: Encoder | None = field(default=None, repr=False)

    @classmethod
    def load(
        cls, name: str, dtype: str = "auto", device: str = "auto", quantize: Quantize = "none"
    ) -> Backbone:
        """Load a backbone.

        Args:
            name: "pocket", a folder, or a Hub name such as "llava-hf/llava-1.5-7b-hf".
            dtype: "auto" (float32 on a CPU, else as saved), or a torch dtype's name.
            device: "auto" (an accelerator if there is one), or a torch device.
            quantize: "8bit" or "4bit" for frozen weights kept by bitsandbytes.

        Returns:
            The backbone.

        Raises:
            ConfigError: If there is no such backbone or it cannot be loaded.
        """
        place, origin = find_device(device), source(name)
        with _loading(name, origin):
            model = read_model(origin, _dtype(dtype, place), place, quantize)
            processor = read_processor(origin)
        return cls.of(name, model, processor)

    @classmethod
    def load_for(cls, config: RunConfig) -> Backbone:
        """Load the backbone of a run, see `load`."""
        return cls.load(config.base, config.dtype, config.device, config.quantize)

    @classmethod
    def of(cls, name: str, model: Any, processor: Any) -> Backbone:
        """Make a backbone of a model and a processor that are already in memory.

        Args:
            name: What to call it.
            model: A vision-language model, or a causal language model; it is frozen.
            processor: Its processor, or the language model's tokenizer.

        Returns:
            The backbone.

        Raises:
            ConfigError: If the model does not say which part of it is the language model.
        """
        if model.get_decoder() in (model, None if text_only(processor) else model.base_model):
            raise ConfigError(
                f"{type(model).__name__} has no decoder of its own (get_decoder gives the whole "
                "model), so adapters cannot be kept to the language model; use another backbone"
            )
        model.requires_grad_(False).eval()
        tokenizer = tokenizer_of(processor)
        tokenizer.padding_side = "left"
        stops = model.generation_config.eos_token_id
        stops = [stops] if isinstance(stops, int) else list(stops or ())
        if tokenizer.eos_token_id is not None:
            stops.append(tokenizer.eos_token_id)
        # Greedy is greedy: temperatures and penalties that a model brings along are left out.
        model.generation_config = GenerationConfig(
            **{key: getattr(model.generation_config, key) for key in _ENDS}
        )
        return cls(name, model, processor, fingerprint_of(model, processor), tuple(set(stops)))

    @cached_property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return tokenizer_of(self.processor)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def keeps_features(self) -> bool:
        """Whether image features can be computed once and kept: of this family, the base's own."""
        return self.model.config.model_type in CACHEABLE and not changes_pictures(self.model)

    def prepare(self, pictures: Sequence[Path], progress: ProgressCall | None = None) -> None:
        """Compute and keep the features of pictures, if this family allows it and they fit.

        Args:
            pictures: Every picture that will be seen.
            progress: Called with (pictures done, pictures to compute, pictures just done).

        Raises:
            DataError: If there are pictures and the model reads text only.
        """
        distinct = list(dict.fromkeys(pictures))
        refuse_pictures(self.name, self.processor, distinct)
        if not distinct or not self.keeps_features:
            return
        if self.store is None:
            probe = self.encode(distinct[:1])
            if probe.numel() * 2 * len(distinct) > CACHE_LIMIT:
                return
            place = (
                f"cpu-{torch.get_num_threads()}" if self.device.type == "cpu" else self.device.type
            )
            folder = cache_folder() / "features" / self.fingerprint[:16] / place
            self.store = FeatureStore(folder, self.encode)
        self.store.prepare(distinct, progress)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Path]) -> Tensor:
        """Run the vision tower and the projector.

        Args:
            pictures: Picture files.

        Returns:
            Features (B, n_tokens, d) in the model's dtype.
        """
        pixels = self._pixels(pictures)
        made = self.model.get_image_features(pixel_values=pixels.to(self.device, self.model.dtype))
        blocks = made if isinstance(made, Tensor | list | tuple) else made.pooler_output
        return torch.stack(list(blocks))

    def _pixels(self, pictures: Sequence[Path]) -> Tensor:
        """Open pictures, and make pixels of them; the one that cannot be is named."""
        make: Any = partial(self.processor.image_processor, return_tensors="pt")
        images = [open_picture(path) for path in pictures]
        with naming(
            type(self.processor.image_processor).__name__,
            [Alone((path,)) for path in pictures],
            lambda one: make([open_picture(one.images[0])]),
            lambda: make([Image.new("RGB", PLAIN)]),
        ):
            return make(images)["pixel_values"]

    def encode_with(self, name: str | None) -> None:
        """Let batches hold the features of another model as well, or of none.

        Args:
            name: A method's option `encoder`.

        Raises:
            ConfigError: If there is no such model or it cannot be used.
        """
        if name != (self.encoder.name if self.encoder else None):
            self.encoder = Encoder.load(name, self.device) if name is not None else None

    def collator(self) -> Collator:
        """Return the collator that fits: text, kept features after `prepare`, else pixels."""
        fitting = self._collator()
        return EncodingCollator(fitting, self.encoder) if self.encoder is not None else fitting

    def _collator(self) -> FeatureCollator | PixelCollator | TextCollator:
        renderer = Renderer(self.processor, self.stop_ids, self.model.config)
        takes = inspect.signature(self.model.forward).parameters
        if text_only(self.processor):
            return TextCollator(
                renderer, positions="position_ids" in takes, cut="logits_to_keep" in takes
            )
        if self.store is None or not self.keeps_features:
            return PixelCollator(renderer, cut="logits_to_keep" in takes)
        token_id = self.model.config.image_token_id
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        return FeatureCollator(renderer, self.store, token, token_id)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a collated batch into what the model's forward takes, on the model's device.

        Args:
            batch: From the collator; `image_features` are put in the place of image tokens.

        Returns:
            Keyword arguments.
        """
        moved = {
            key: value.to(self.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
            if key != "encoded"
        }
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(self.model.dtype)
        features: Any = moved.pop("image_features", None)
        if features is None:
            return moved
        ids = moved.pop("input_ids")
        with torch.no_grad():
            embedded = self.embed(ids)
            places = ids == self.model.config.image_token_id
            embedded[places] = features.flatten(0, 1).to(embedded.dtype)
        moved["inputs_embeds"] = embedded
        return moved

    @contextmanager
    def reading(
        self, batch: Mapping[str, Any], example_ids: Tensor | None = None
    ) -> Iterator[dict[str, Any]]:
        """Within this context the model is called with a batch, and its method knows the prompts.

        Args:
            batch: From the collator.
            example_ids: See `ForwardContext.given`.

        Yields:
            What `inputs` makes of it.
        """
        context, encoded = ForwardContext.of(self.model), batch.get("encoded")
        ids = batch["input_ids"].to(self.device) if "image_features" in batch else None
        known = {"input_ids": ids, "encoded": encoded, "example_ids": example_ids}
        with context.given(**known) if context else nullcontext():
            yield self.inputs(batch)

    def embed(self, ids: Tensor) -> Tensor:
        """Look token ids up in the model's embedding."""
        table: nn.Module = self.model.get_input_embeddings()
        return table(ids)


@contextmanager
def _loading(name: str, origin: str) -> Iterator[None]:
    """Say in one way of a model that cannot be loaded what is wrong with it."""
    try:
        yield
    except UndriftError:
        raise
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ConfigError(
            f"cannot load the backbone {name!r} ({origin}): {first_line(error)}; expected a "
            "model in safetensors with its processor, or a language model with its tokenizer"
        ) from error


def outline_for(config: RunConfig) -> tuple[Any, Any, int]:
    """Look at the backbone of a run without its weights.

    Args:
        config: The run.

    Returns:
        The model, with shapes and no numbers; its processor; the bytes that a weight takes, where
        all are kept alike.
    """
    origin = source(config.base)
    with _loading(config.base, origin):
        model, processor = outline(origin), read_processor(origin)
        dtype = _dtype(config.dtype, find_device(config.device))
    kept: Any = (model.config.dtype or torch.float32) if dtype == "auto" else dtype
    return model, processor, kept.itemsize


def refuse_pictures(name: str, processor: Any, pictures: Sequence[Path]) -> None:
    """Refuse pictures where a model reads text only.

    Args:
        name: The model's.
        processor: Its processor, or its tokenizer.
        pictures: Every picture that will be seen.

    Raises:
        DataError: If there are any.
    """
    if pictures and text_only(processor):
        raise DataError(
            f"the backbone {name!r} reads text only, and there are pictures among the "
            f"examples, such as {pictures[0]}; choose a vision-language model"
        )


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"no dtype is called {name!r}; try auto, float32, bfloat16 or float16")
    return dtype


def fingerprint_of(model: Any, processor: Any) -> str:
    """Digest what decides a model's answers, sampling the values of large tensors.

    Only fields that are part of every saved model enter, so that another version of transformers,
    which may know more fields, finds the same.
    """
    config = model.config.to_dict()
    pictures = None if text_only(processor) else processor.image_processor
    facts = {
        "config": {
            part: {key: fields.get(key) for key in _DECISIVE}
            for part, fields in [("", config), *config.items()]
            if isinstance(fields, dict)
        },
        "pictures": {key: getattr(pictures, key, None) for key in _PICTURES},
        "template": processor.chat_template,
        "vocabulary": sorted(tokenizer_of(processor).get_vocab().items()),
    }
    made = hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode())
    for name, tensor in sorted(model.state_dict().items()):
        step = max(1, tensor.numel() // _SAMPLE)
        values = tensor.detach().flatten()[::step].to("cpu", torch.float32)
        made.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return made.hexdigest()


def _plain(value: Any) -> Any:
    """Write what JSON does not know: a size as the sides that are given, an enum as its value."""
    if hasattr(value, "items"):
        return {key: side for key, side in value.items() if side is not None}
    return str(getattr(value, "value", value))
