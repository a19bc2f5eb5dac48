"""Soft prompts inside the language model's input, one a task: a PEFT tuner of its own, SOFT_PROMPT.

PEFT's prompt tuning has one prompt for every sample and puts it in front of everything; here each
sample of a batch gets its own choice, behind the first token, whatever the padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.nn import functional

from undrift.errors import ConfigError, UndriftError
from undrift.tuner.config import KnownFields
from undrift.tuner.insertion import Insertion
from undrift.tuner.linear import OneAdapter
from undrift.tuner.prompt import PromptContext
from undrift.tuner.upstream import (
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
        for name, least in (("length", 1), ("width", 1), ("tasks", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")


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
        soft_prompt_tasks: Per adapter, T.
        insertion: Puts what is chosen into the decoder's input.
    """

    adapter_layer_names = ("soft_prompt_P", "soft_prompt_down", "soft_prompt_up")
    other_param_names = ("soft_prompt_past_P", "soft_prompt_past", "soft_prompt_tasks")

    def __init__(self, size: int, first: Tensor | None) -> None:
        super().__init__()
        self.size = size
        self.soft_prompt_P = nn.ParameterDict()
        self.soft_prompt_down = nn.ModuleDict()
        self.soft_prompt_up = nn.ModuleDict()
        self.soft_prompt_past_P = nn.ParameterDict()
        self.soft_prompt_past = nn.ParameterDict()
        self.soft_prompt_tasks: dict[str, int] = {}
        self.insertion = Insertion(first, self._is_due)

    def update_layer(self, adapter_name: str, config: SoftPromptConfig, device: Any) -> None:
        """Add an adapter, with room for the frozen prompts that its configuration speaks of.

        Args:
            adapter_name: Its name.
            config: Its configuration.
            device: Where it lives.
        """
        width = config.width or self.size
        self.soft_prompt_P[adapter_name] = nn.Parameter(torch.zeros(config.length, self.size))
        self.soft_prompt_down[adapter_name] = nn.Linear(self.size, width)
        self.soft_prompt_up[adapter_name] = nn.Linear(width, 2 * self.size)
        self.make_room(adapter_name, config.tasks)
        self.to(device)

    def make_room(self, adapter_name: str, tasks: int) -> None:
        """Make room for the prompts of so many tasks, whose values are then loaded.

        Args:
            adapter_name: The adapter.
            tasks: T.
        """
        P, past = self.soft_prompt_P[adapter_name], max(0, tasks - 1)
        self._set_past(adapter_name, P.new_zeros(past, *P.shape), P.new_zeros(past, 2, self.size))
        self.soft_prompt_tasks[adapter_name] = tasks

    @torch.no_grad()
    def begin_task(self, adapter_name: str, rows: Tensor) -> None:
        """Freeze the newest prompt, if there is one, and put fresh values in its place and in F.

        The parameters that are trained stay the same objects, so an optimiser may hold them. F is
        drawn from torch's seed and the number of the task alone, so that a task begins alike on all
        ranks.

        Args:
            adapter_name: The adapter.
            rows: What the fresh prompt begins as, (m, d).
        """
        P, tasks = self.soft_prompt_P[adapter_name], self.soft_prompt_tasks[adapter_name]
        if tasks:
            frozen = torch.cat([self.soft_prompt_past_P[adapter_name], P[None]])
            here = torch.stack([*self.prototype(adapter_name).values()])[None]
            self._set_past(
                adapter_name, frozen, torch.cat([self.soft_prompt_past[adapter_name], here])
            )
        P.copy_(rows)
        generator = torch.Generator().manual_seed(torch.initial_seed() + tasks)
        for half in (self.soft_prompt_down[adapter_name], self.soft_prompt_up[adapter_name]):
            weight, bias = half.parameters()
            bound = weight.shape[1] ** -0.5  # as torch draws a linear
            for part in (weight, bias):
                drawn = torch.empty(part.shape).uniform_(-bound, bound, generator=generator)
                part.copy_(drawn)
        self.soft_prompt_tasks[adapter_name] = tasks + 1

    def _set_past(self, adapter_name: str, prompts: Tensor, prototypes: Tensor) -> None:
        self.soft_prompt_past_P[adapter_name] = nn.Parameter(prompts, requires_grad=False)
        self.soft_prompt_past[adapter_name] = nn.Parameter(prototypes, requires_grad=False)

    def prototype(self, adapter_name: str) -> dict[str, Tensor]:
        """Map the newest prompt: the mean over its tokens of F.

        Args:
            adapter_name: The adapter.

        Returns:
            By modality, (d,).
        """
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
        tasks = self.soft_prompt_tasks
        return not self.disable_adapters and any(tasks.get(name) for name in self.active_adapters)


class SoftPromptModel(OneAdapter, BaseTuner):
    """Puts `SoftPrompts` on a model's decoder; its linears stay as they are."""

    prefix = f"{NAME}_"
    tuner_layer_cls = SoftPrompts

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **options: Any
    ) -> None:
        """Freeze the model, and put prompts beside it.

        Args:
            model: The model.
            adapter_name: The adapter's name; its configuration is known.
            *args: As for PEFT's tuners.
            **options: As for PEFT's tuners.

        Raises:
            ConfigError: If the configuration is of another type.
        """
        super().inject_adapter(model, adapter_name, *args, **options)
        config = self.peft_config[adapter_name]
        if not isinstance(config, SoftPromptConfig):
            raise ConfigError(f"expected a SoftPromptConfig, not a {type(config).__name__}")
        decoder: Any = model.get_decoder()  # pyright: ignore[reportCallIssue]
        if not hasattr(decoder, _PLACE):
            PromptContext.attach(model)  # its hook comes first: prompts are chosen, then inserted
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
    """Find the soft prompts of a model.

    Args:
        model: A model with a `SoftPromptConfig` on it.

    Returns:
        They.

    Raises:
        ConfigError: If it has none.
    """
    for module in model.modules():
        if isinstance(module, SoftPrompts):
            return module
    raise ConfigError(
        "the model has no soft prompts: use the model that Method.attach returns, or give your "
        "trainer a SoftPromptConfig"
    )


def register() -> None:
    """Make PEFT know the type SOFT_PROMPT; a second call does nothing."""
    register_type(SOFT_PROMPT, SoftPromptConfig, SoftPromptModel)


register()
