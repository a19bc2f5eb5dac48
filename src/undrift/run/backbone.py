"""The model that learns: any vision-language model of transformers with its processor.

`pocket` is the small one that ships with undrift; everything else is a folder or a Hub name that
`AutoModelForImageTextToText` can load. The weights are frozen: methods add adapters.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from undrift.data.collate import FeatureCollator, PixelCollator
from undrift.data.pictures import open_picture
from undrift.data.prompts import Renderer
from undrift.errors import ConfigError, unknown
from undrift.run.features import FeatureStore, Progress, cache_dir

BUILT_IN = {"pocket": "undrift.run.pocket"}  # package with a `tower` module and a `weights` folder
CACHEABLE = {"llava"}  # families in which a picture's features are one (n_tokens, d) block
CACHE_LIMIT = 4 * 2**30  # bytes of image features that may be kept in memory
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_DECISIVE = ("model_type", "hidden_act", "num_attention_heads", "num_key_value_heads")
_PICTURES = ("size", "crop_size", "resample", "do_resize", "do_center_crop", "do_normalize",
             "image_mean", "image_std", "rescale_factor")  # fmt: skip
_SAMPLE = 4096  # values of each tensor that enter the fingerprint

Collator = FeatureCollator | PixelCollator


@dataclass
class Backbone:
    """A frozen vision-language model, its processor, and what is known about it.

    Args:
        name: As given by the user.
        model: The model, in evaluation mode, without gradients.
        processor: Its processor, padding on the left.
        fingerprint: A digest of configuration, weights, tokenizer and image processor.
        stop_ids: Tokens that end an answer.
        store: Kept image features, once `prepare` has decided for them.
    """

    name: str
    model: Any
    processor: Any
    fingerprint: str
    stop_ids: tuple[int, ...]
    store: FeatureStore | None = field(default=None, repr=False)

    @classmethod
    def load(cls, name: str, dtype: str = "auto", device: str = "auto") -> Backbone:
        """Load a backbone.

        Args:
            name: "pocket", a folder, or a Hub name such as "llava-hf/llava-1.5-7b-hf".
            dtype: "auto" (float32 on a CPU, else as saved), or a torch dtype's name.
            device: "auto" (an accelerator if there is one), or a torch device.

        Returns:
            The backbone.

        Raises:
            ConfigError: If there is no such backbone or it cannot be loaded.
        """
        place, origin = _device(device), source(name)
        options = {"dtype": _dtype(dtype, place)}
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(origin, **options)
            processor = AutoProcessor.from_pretrained(origin)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ConfigError(
                f"cannot load the backbone {name!r} ({origin}): {first}; expected "
                "a model and a processor that AutoModelForImageTextToText and AutoProcessor load"
            ) from error
        return cls.of(name, model.to(place), processor)

    @classmethod
    def of(cls, name: str, model: Any, processor: Any) -> Backbone:
        """Make a backbone of a model and a processor that are already in memory.

        Args:
            name: What to call it.
            model: A vision-language model; it is frozen.
            processor: Its processor.

        Returns:
            The backbone.
        """
        model.requires_grad_(False).eval()
        processor.tokenizer.padding_side = "left"
        stops = model.generation_config.eos_token_id
        stops = [stops] if isinstance(stops, int) else list(stops or ())
        if processor.tokenizer.eos_token_id is not None:
            stops.append(processor.tokenizer.eos_token_id)
        return cls(name, model, processor, _fingerprint(model, processor), tuple(set(stops)))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def keeps_features(self) -> bool:
        """Whether image features of this family can be computed once and kept."""
        return self.model.config.model_type in CACHEABLE

    def prepare(self, pictures: Sequence[Path], progress: Progress | None = None) -> None:
        """Compute and keep the features of pictures, if this family allows it and they fit.

        Args:
            pictures: Every picture that will be seen.
            progress: Called with (pictures done, pictures to compute, pictures just done).
        """
        distinct = list(dict.fromkeys(pictures))
        if not distinct or not self.keeps_features:
            return
        if self.store is None:
            probe = self.encode(distinct[:1])
            if probe.numel() * 2 * len(distinct) > CACHE_LIMIT:
                return
            folder = cache_dir() / "features" / self.fingerprint[:16]
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
        images = [open_picture(path) for path in pictures]
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        made = self.model.get_image_features(pixel_values=pixels.to(self.device, self.model.dtype))
        blocks = made if isinstance(made, Tensor | list | tuple) else made.pooler_output
        return torch.stack(list(blocks))

    def collator(self) -> Collator:
        """Return the collator that fits: kept features after `prepare`, else pixels."""
        renderer = Renderer(self.processor, self.stop_ids)
        if self.store is None:
            return PixelCollator(renderer)
        token_id = self.model.config.image_token_id
        token = self.processor.tokenizer.convert_ids_to_tokens(token_id)
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
        }
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(self.model.dtype)
        features = moved.pop("image_features", None)
        if features is None:
            return moved
        ids = moved.pop("input_ids")
        with torch.no_grad():
            embedded = self.embed(ids)
            places = ids == self.model.config.image_token_id
            embedded[places] = features.flatten(0, 1).to(embedded.dtype)
        moved["inputs_embeds"] = embedded
        return moved

    def embed(self, ids: Tensor) -> Tensor:
        """Look token ids up in the model's embedding."""
        table: nn.Module = self.model.get_input_embeddings()
        return table(ids)


def source(name: str) -> str:
    """Find a backbone without loading it.

    Args:
        name: See `Backbone.load`.

    Returns:
        The folder or the Hub name behind it.

    Raises:
        ConfigError: If it can be none.
        UnknownName: If there is no such name; the nearest is offered.
    """
    if name in BUILT_IN:
        importlib.import_module(f"{BUILT_IN[name]}.tower")
        spec = importlib.util.find_spec(BUILT_IN[name])
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"the backbone {name!r} is not part of this installation")
        return str(Path(spec.submodule_search_locations[0]) / "weights")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"the backbone folder {folder} holds no config.json")
        if "undrift" in (folder / "config.json").read_text():  # a relative of a built-in one
            for package in BUILT_IN.values():
                importlib.import_module(f"{package}.tower")
        return str(folder)
    if _HUB_NAME.fullmatch(name):
        return name
    raise unknown("backbone", name, [*BUILT_IN, "a folder", "a Hub name such as org/model"])


def _device(name: str) -> torch.device:
    if name == "auto":
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return found or torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"no device is called {name!r}; try auto, cpu or cuda") from error


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"no dtype is called {name!r}; try auto, float32, bfloat16 or float16")
    return dtype


def _fingerprint(model: Any, processor: Any) -> str:
    """Digest what decides the model's answers, sampling the values of large tensors.

    Only fields that are part of every saved model enter, so that another version of transformers,
    which may know more fields, finds the same.
    """
    config = model.config.to_dict()
    facts = {
        "config": {
            part: {key: fields.get(key) for key in _DECISIVE}
            for part, fields in [("", config), *config.items()]
            if isinstance(fields, dict)
        },
        "pictures": {key: getattr(processor.image_processor, key, None) for key in _PICTURES},
        "template": processor.chat_template,
        "vocabulary": sorted(processor.tokenizer.get_vocab().items()),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode())
    for name, tensor in sorted(model.state_dict().items()):
        step = max(1, tensor.numel() // _SAMPLE)
        values = tensor.detach().flatten()[::step].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Write what JSON does not know: a size as the sides that are given, an enum as its value."""
    if hasattr(value, "items"):
        return {key: side for key, side in value.items() if side is not None}
    return str(getattr(value, "value", value))
