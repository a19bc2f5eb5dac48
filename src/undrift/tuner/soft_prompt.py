"""SOFT_PROMPT: soft prompts in the language model's input, one a task, as an adapter type of PEFT.

PEFT's prompt tuning has one prompt for every sample and puts it in front of everything; here each
sample of a batch gets its own choice, behind the first token, whatever the padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.nn import functional

from undrift.errors import ConfigError, UndriftError
from undrift.tuner.adapted_linear import KnownFields, OneAdapter
from undrift.tuner.forward import ForwardContext, continues, named
from undrift.tuner.frozen import Frozen
from undrift.tuner.peft_internals import (
    DUMMY_TARGET_MODULES,
    BaseTuner,
    BaseTunerLayer,
    add_type,
    register_type,
)

NAME = "soft_prompt"
SOFT_PROMPT = add_type(NAME)
_PLACE = "soft_prompts"  # the decoder's attribute


@dataclass
class SoftPromptConfig(KnownFields, PeftConfig):
    """A prompt for each task, and a map F that says where the newest one belongs.

    Args:
        length: m, the tokens of a prompt.
        width: The hidden width of F; the model's own where not given.
        tasks: How many tasks were begun; all but the newest are frozen.
        modules_to_save: Modules to train in full and save with the adapter, such as
            "multi_modal_projector".
        target_modules: Not to be changed: no module is replaced.
    """

    length: int = field(default=10)
    width: int | None = field(default=None)
    tasks: int = field(default=0)
    modules_to_save: list[str] | None = field(default=None)
    target_modules: str = field(default=DUMMY_TARGET_MODULES)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: A value cannot be used; the message names it.
        """
        super().__post_init__()
        self.peft_type = SOFT_PROMPT
        self.check_positive("length", "width")
        if self.tasks < 0:
            raise ConfigError(f"tasks must be at least 0, not {self.tasks}")


class Insertion:
    """Puts tokens into the input of a decoder behind the first one, a choice for each sample.

    While the prompt is read they are inserted, whatever the padding; while an answer is decoded
    they lie in the cache, and masks and positions are lengthened to match it. What comes out has
    the length of what went in: the first token's place has the hidden state of the last inserted
    one, so that labels and logits fit as if nothing had been inserted.

    Args:
        first: The embedding of the token that stands first where it is there, (d,).
        due: Asked at every prefill whether anything is to be inserted.

    Attributes:
        chosen: What the next prefill inserts, (B, n, d); set it before the decoder is called.
    """

    def __init__(self, first: Tensor | None, due: Callable[[], bool]) -> None:
        self.chosen: Tensor | None = None
        self._first, self._due = first, due
        self._starts = torch.zeros(0, dtype=torch.long)  # of the tokens in each row, (B,)
        self._count = 0
        self._cut = False

    def attach(self, decoder: nn.Module) -> None:
        """Insert into the calls of a decoder from now on."""
        decoder.register_forward_pre_hook(self.before, with_kwargs=True)
        decoder.register_forward_hook(self.after, with_kwargs=True)

    def before(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lengthen what the decoder is called with; its forward pre-hook."""
        decoding, self._cut = continues(args, kwargs), False
        args, kwargs = (), named(decoder, args, kwargs)
        if decoding:
            return (args, self._while_decoding(kwargs)) if self._count else None
        chosen, self.chosen, self._count = self.chosen, None, 0
        if not self._due():
            return None
        if chosen is None:
            raise ConfigError(
                "no tokens were chosen for this batch: an adapter of soft prompts needs its "
                "method; open it with undrift, or attach modalprompt to the model and load it there"
            )
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            embeds = decoder.get_input_embeddings()(kwargs["input_ids"])  # pyright: ignore
            kwargs = kwargs | {"input_ids": None}
        self._count, self._cut = chosen.shape[1], True
        self._starts = self._places(embeds, kwargs.get("attention_mask"))
        made = dict(kwargs)
        order = self._order(embeds.shape[1])[..., None].expand(-1, -1, embeds.shape[2])
        made["inputs_embeds"] = torch.cat([embeds, chosen.to(embeds.dtype)], 1).gather(1, order)
        for name, value in kwargs.items():
            if name == "position_ids" and value is not None:
                made[name] = self._positions(value)
            elif name == "attention_mask" and _is_plain(value):
                made[name] = self._filled(value, 1)
            elif isinstance(value, Tensor) and value.shape == embeds.shape[:2]:
                made[name] = self._filled(value, 0)  # such as marks of the pictures' places
        return args, made

    def after(self, decoder: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Shorten the last hidden state to the length that the caller expects; a forward hook."""
        if self._cut:
            hidden = output.last_hidden_state
            place = torch.arange(hidden.shape[1] - self._count, device=hidden.device)
            kept = place + self._count * (place >= self._starts[:, None] - 1)
            index = kept[..., None].expand(-1, -1, hidden.shape[-1])
            output.last_hidden_state = hidden.gather(1, index)
        return output

    def _places(self, embeds: Tensor, mask: Tensor | None) -> Tensor:
        """Where each row gets its tokens: behind its first one if that is BOS, else before it."""
        rows = torch.arange(len(embeds), device=embeds.device)
        start = mask.long().argmax(1) if _is_plain(mask) and mask is not None else rows * 0
        if self._first is None:
            return start
        return start + (embeds[rows, start] == self._first.to(embeds)).all(1)

    def _while_decoding(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Count the inserted tokens in the mask and in the positions of later tokens."""
        made, mask = dict(kwargs), kwargs.get("attention_mask")
        if _is_plain(mask):
            made["attention_mask"] = self._filled(mask, 1)
        if kwargs.get("position_ids") is not None:
            made["position_ids"] = kwargs["position_ids"] + self._count
        return made

    def _filled(self, marks: Any, value: int) -> Tensor:
        """Lengthen one mark a token, (B, L), by a value; B may be a search's copies of samples."""
        more = marks.new_full((len(marks), self._count), value)
        order = self._order(marks.shape[1])
        copies = len(marks) // len(order)
        return torch.cat([marks, more], 1).gather(1, order.repeat_interleave(copies, 0))

    def _positions(self, positions: Tensor) -> Tensor:
        """Lengthen positions (..., B or 1, L) by those of the inserted tokens; later ones shift."""
        starts = self._starts
        positions = positions.expand(*positions.shape[:-2], len(starts), -1)
        at = starts.expand(positions.shape[:-1])[..., None]
        inserted = positions.gather(-1, at) + torch.arange(self._count, device=positions.device)
        place = torch.arange(positions.shape[-1], device=positions.device)
        shifted = positions + self._count * (place >= starts[:, None])
        joined = torch.cat([shifted, inserted], -1)
        return joined.gather(-1, self._order(positions.shape[-1]).expand(joined.shape))

    def _order(self, length: int) -> Tensor:
        """Which columns of [rows of this length | inserted tokens] stand where, (B, L + n)."""
        place = torch.arange(length + self._count, device=self._starts.device)
        ends = self._starts[:, None] + self._count
        behind = torch.where(
            place < ends, length + place - self._starts[:, None], place - self._count
        )
        return torch.where(place < self._starts[:, None], place, behind)


def _is_plain(mask: Tensor | None) -> bool:
    """Tell whether there is a mask of one row of marks a sample.

    Raises:
        ConfigError: If it is of another kind, which cannot be lengthened.
    """
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return mask is not None
    raise ConfigError(
        "soft prompts lengthen the input, and this model makes its attention masks (dicts or four "
        "dimensions) before the decoder is called; use a method of adapters with it"
    )


class SoftPrompts(nn.Module, BaseTunerLayer):
    """The prompts of all tasks; once there is one, a prompt that is read needs a choice of them.

    Args:
        size: d, the length of an embedding.
        first: The embedding of the token that prompts are put behind, (d,), where there is one.

    Attributes:
        soft_prompt_P: Per adapter, the newest task's prompt, (m, d).
        soft_prompt_down: Per adapter, the first half of F, d to the width.
        soft_prompt_up: Per adapter, the second half of F, to an image and a text vector of d each.
        soft_prompt_past_P: Per adapter, the frozen prompts, (T - 1, m, d).
        soft_prompt_past: Per adapter, the prototypes F gave of them, (T - 1, 2, d).
        soft_prompt_config: Per adapter, its configuration, which counts the tasks, T.
        insertion: Puts what is chosen into the decoder's input.
    """

    adapter_layer_names = ("soft_prompt_P", "soft_prompt_down", "soft_prompt_up")
    other_param_names = ("soft_prompt_past_P", "soft_prompt_past", "soft_prompt_config")

    def __init__(self, size: int, first: Tensor | None) -> None:
        super().__init__()
        self.size = size
        self.soft_prompt_P = nn.ParameterDict()
        self.soft_prompt_down = nn.ModuleDict()
        self.soft_prompt_up = nn.ModuleDict()
        self.soft_prompt_past_P = Frozen()
        self.soft_prompt_past = Frozen()
        self.soft_prompt_config: dict[str, SoftPromptConfig] = {}
        self.insertion = Insertion(first, self._is_due)

    def update_layer(self, adapter_name: str, config: SoftPromptConfig, device: Any) -> None:
        """Add an adapter, with room for the frozen prompts that its configuration speaks of."""
        width = config.width or self.size
        self.soft_prompt_config[adapter_name] = config
        self.soft_prompt_P[adapter_name] = nn.Parameter(torch.zeros(config.length, self.size))
        self.soft_prompt_down[adapter_name] = nn.Linear(self.size, width)
        self.soft_prompt_up[adapter_name] = nn.Linear(width, 2 * self.size)
        self.make_room(adapter_name, config.tasks)
        self.to(device)

    def make_room(self, adapter_name: str, tasks: int) -> None:
        """Make room for the prompts of so many tasks, whose values are then loaded."""
        P, past = self.soft_prompt_P[adapter_name], max(0, tasks - 1)
        like = {"dtype": P.dtype, "device": P.device}
        self.soft_prompt_past_P[adapter_name] = torch.zeros(past, *P.shape, **like)
        self.soft_prompt_past[adapter_name] = torch.zeros(past, 2, self.size, **like)
        self.soft_prompt_config[adapter_name].tasks = tasks

    @torch.no_grad()
    def begin_task(self, adapter_name: str, rows: Tensor) -> None:
        """Freeze the newest prompt, if there is one, and put fresh values in its place and in F.

        The parameters that are trained stay the same objects, so an optimiser may hold them. F is
        drawn from torch's seed and the number of the task alone, so that a task begins alike on all
        ranks.
        """
        P, config = self.soft_prompt_P[adapter_name], self.soft_prompt_config[adapter_name]
        if config.tasks:
            here = torch.stack([*self.prototype(adapter_name).values()])
            for past, new in ((self.soft_prompt_past_P, P), (self.soft_prompt_past, here)):
                past[adapter_name] = torch.cat([past[adapter_name], new[None]])
        P.copy_(rows)
        generator = torch.Generator().manual_seed(torch.initial_seed() + config.tasks)
        for half in (self.soft_prompt_down[adapter_name], self.soft_prompt_up[adapter_name]):
            weight, bias = half.parameters()
            bound = weight.shape[1] ** -0.5  # as torch draws a linear
            for part in (weight, bias):
                drawn = torch.empty(part.shape).uniform_(-bound, bound, generator=generator)
                part.copy_(drawn)
        config.tasks += 1

    def prototype(self, adapter_name: str) -> dict[str, Tensor]:
        """Map the newest prompt: the mean over its tokens of F, (d,) by modality."""
        hidden = functional.silu(
            self.soft_prompt_down[adapter_name](self.soft_prompt_P[adapter_name])
        )
        image, text = self.soft_prompt_up[adapter_name](hidden).mean(0).chunk(2)
        return {"image": image, "text": text}

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: Any, prefix: str, *rest: Any
    ) -> None:
        """Make room for as many frozen prompts as are about to be loaded, in anyone's trainer."""
        for name in self.soft_prompt_past_P:
            saved = state_dict.get(f"{prefix}soft_prompt_past_P.{name}")
            if saved is not None and len(saved) != len(self.soft_prompt_past_P[name]):
                self.make_room(name, len(saved) + 1)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _is_due(self) -> bool:
        have = self.soft_prompt_config
        begun = any(have[name].tasks for name in self.active_adapters if name in have)
        return begun and not self.disable_adapters


class SoftPromptModel(OneAdapter, BaseTuner):
    """Puts `SoftPrompts` on a model's decoder; its linears stay as they are."""

    prefix = f"{NAME}_"
    tuner_layer_cls = SoftPrompts

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **options: Any
    ) -> None:
        """Freeze the model, and put prompts beside it."""
        super().inject_adapter(model, adapter_name, *args, **options)
        config = self.peft_config[adapter_name]
        if not isinstance(config, SoftPromptConfig):
            raise ConfigError(f"expected a SoftPromptConfig, not a {type(config).__name__}")
        decoder: Any = model.get_decoder()  # pyright: ignore[reportCallIssue]
        if not hasattr(decoder, _PLACE):
            ForwardContext.attach(model)  # its hook comes first: prompts are chosen, then inserted
            layer = SoftPrompts(*_embedding_facts(decoder))
            layer.train(decoder.training)
            setattr(decoder, _PLACE, layer)
            layer.insertion.attach(decoder)
        device = decoder.get_input_embeddings().weight.device
        layer = getattr(decoder, _PLACE)
        layer.update_layer(adapter_name, config, device)
        layer.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _create_and_replace(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise UndriftError("soft prompts replace no module; leave target_modules out")

    def _check_merge_allowed(self) -> NoReturn:
        raise UndriftError("soft prompts are inputs and have no merged weight; keep the adapter")


def _embedding_facts(decoder: Any) -> tuple[int, Tensor | None]:
    """The size of an embedding, and that of the token that begins every text, if there is one."""
    table, bos = decoder.get_input_embeddings(), decoder.config.bos_token_id
    size = table.weight.shape[1]
    if bos is None:
        return size, None
    with torch.no_grad():
        return size, table(torch.tensor(bos, device=table.weight.device))


def soft_prompts(model: nn.Module) -> SoftPrompts:
    """Find the soft prompts of a model; a ConfigError if it has none."""
    for module in model.modules():
        if isinstance(module, SoftPrompts):
            return module
    raise ConfigError(
        "the model has no soft prompts: use the model that Method.attach returns, or give your "
        "trainer a SoftPromptConfig"
    )


register_type(SOFT_PROMPT, SoftPromptConfig, SoftPromptModel)
