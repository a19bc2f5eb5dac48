"""ModalPrompt: a soft prompt a task, and what a sample looks like decides which prompts it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from undrift.methods import base
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.added_loss import AddedLoss
from undrift.methods.shared.prompt_features import (
    MODALITIES,
    FeatureConfig,
    Features,
    embedding_centre,
    features,
)
from undrift.methods.shared.task_matcher import Identified, cosines, told
from undrift.tuner.distributed import full_parameters, opened_embedding
from undrift.tuner.forward import ForwardContext, Prompt
from undrift.tuner.frozen import count_parameters
from undrift.tuner.soft_prompt import SoftPromptConfig, SoftPrompts, soft_prompts


@dataclass(frozen=True, kw_only=True)
class Config(FeatureConfig):
    """The options of ModalPrompt. Those of adapters (`experts`, `rank` ...) change nothing here.

    Attributes:
        prompt_length: m, the tokens of a task's prompt.
        top_k: k, how many prompts a sample gets.
        image_share: lambda, what the pictures count for in a score; the text counts for the rest.
        bottleneck: The hidden width of the map F; the model's own where None, as published. 256
            makes it thirteen times smaller [OURS].
        match_weight: What the two cosine losses count for; 0 is one public version, in which F
            gets no gradient and prompts are chosen at random.
        oracle: At test, put the prompt of the task that is asked last, as if it scored best.
    """

    prompt_length: int = base.option(10, ("at least 1", lambda v: v >= 1))
    top_k: int = base.option(3, ("at least 1", lambda v: v >= 1))
    image_share: float = base.option(0.5, base.SHARE)
    bottleneck: int | None = None
    match_weight: float = 1.0
    oracle: bool = False


class ModalPrompt(base.Method):
    """Prompts P_t and maps F_t; p_t = mean of F_t(P_t) is trained towards its task's features.

    In training a sample gets the prompts of the k - 1 past tasks with the best scores and then the
    new one; at test the k best of all, the best last, behind the first token. The features are the
    model's own [OURS; published: CLIP's], so F has a head for pictures and one for texts. Of a
    finished task the prompt and its prototype are kept, not F, which nothing needs any more.

    The cosine losses are added to the loss that the model itself returns, so they reach F in
    anyone's Trainer.
    """

    name: ClassVar[str] = "modalprompt"
    paper: ClassVar[str] = "ModalPrompt, Zeng et al., EMNLP 2025, arXiv:2410.05849"
    parts: ClassVar[base.Parts] = "router"
    alone: ClassVar[bool] = False
    Config: ClassVar[type[base.Config]] = Config
    cut_off: ClassVar[base.CutOff] = "go on"
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._prompts: SoftPrompts | None = None
        self._adapter = "default"
        self._centre = torch.zeros(0)
        self._begun = 0  # the number of the task that has a prompt; 0 of a model just bound
        self._match_loss: Tensor | None = None
        self._added = AddedLoss(self, self._take_match_loss)
        self._identified = Identified()

    def peft_config(self, model: nn.Module | None = None) -> SoftPromptConfig:
        """Make the configuration of the adapter, for `get_peft_model` or a trainer."""
        return SoftPromptConfig(length=self.config.prompt_length, width=self.config.bottleneck)

    def attach(self, model: nn.Module) -> nn.Module:
        """Put the adapter on a model, and choose its prompts from now on."""
        wrapped = super().attach(model)
        self.bind(wrapped)
        return wrapped

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Freeze the last task's prompt and begin a new one, as the embeddings of random tokens.

        A task whose training was cut off, and that begins anew, goes on with its prompt.
        """
        begun = self._begun == task_index
        self._make_ready(model, task_index)
        if begun:
            return
        wrapped, prompts = peft_model(model), soft_prompts(model)
        config = prompts.soft_prompt_config[self._adapter]
        table: Any = wrapped.get_base_model().get_input_embeddings()  # pyright: ignore
        generator = torch.Generator().manual_seed(torch.initial_seed() + config.tasks)
        drawn = torch.randint(table.weight.shape[0], (config.length,), generator=generator)
        with torch.no_grad(), opened_embedding(table) as look_up:
            rows = look_up(drawn.to(table.weight.device))
        with full_parameters(prompts, [self._adapter]):
            prompts.begin_task(self._adapter, rows)

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on with the prompt that the checkpoint brought."""
        self._make_ready(model, task_index)
        soft_prompts(model).soft_prompt_config[self._adapter].tasks = task_index

    def _make_ready(self, model: nn.Module, task_index: int) -> None:
        """Watch the prompts that the task learns, in float32 whatever a trainer cast them to."""
        self.bind(model)
        self._begun, prompts = task_index, soft_prompts(model)
        for held in (*prompts.parameters(), *prompts.buffers()):
            if held.dtype.itemsize < 4:
                held.data = held.data.float()

    def in_adapter(self, model: nn.Module) -> int | None:
        """Count the prompts: they and their prototypes are all that there is to know."""
        wrapped = peft_model(model)
        return soft_prompts(wrapped).soft_prompt_config[active_adapter(wrapped)].tasks

    # ------------------------------------------------------------ what it costs

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring fresh prompts to their size after so many tasks."""
        soft_prompts(model).make_room(self._adapter, tasks)

    def idle_parameters(self, model: nn.Module) -> int:
        """Count F, the prototypes, and the prompts that a sample does not get."""
        prompts = soft_prompts(model)
        inserted = min(self.config.top_k, len(prompts.soft_prompt_past[self._adapter]) + 1)
        read = inserted * prompts.soft_prompt_P[self._adapter].numel()
        return count_parameters(prompts) - read

    def facts(self) -> dict[str, Any]:
        """Tell how often the best prompt was that of the task asked, since the last call."""
        return self._identified.facts()

    # ------------------------------------------------------------ the choice for each sample

    def bind(self, model: nn.Module) -> None:
        """Watch a model's prompts; a model that is watched already stays as it is."""
        wrapped = peft_model(model)
        found, self._begun = soft_prompts(wrapped), 0
        if self._prompts is not found:
            self._prompts, self._adapter = found, active_adapter(wrapped)
            self._centre = embedding_centre(wrapped)
            self._added.watch(wrapped)
        ForwardContext.attach(wrapped, on_prompt=self._choose)

    def _choose(self, prompt: Prompt) -> None:
        """Choose the prompts of every sample, and compare them with the newest prototype."""
        prompts = self._prompts
        self._match_loss = None
        if prompts is None or not prompts.soft_prompt_config[self._adapter].tasks:
            return
        self._centre = self._centre.to(prompt.embeds.device)  # the model may have been moved
        found = features(prompt, self._centre, self.config.encoder)
        P, past = prompts.soft_prompt_P[self._adapter], prompts.soft_prompt_past_P[self._adapter]
        old = prompts.soft_prompt_past[self._adapter]
        with torch.autocast(P.device.type, enabled=False):  # as exact as the past ones
            newest = prompts.prototype(self._adapter)
        if prompts.training:
            best = _top(self._scores(found, old[:, 0], old[:, 1]), self.config.top_k - 1)
            fresh = P.expand(len(best), 1, *P.shape)
            prompts.insertion.chosen = torch.cat([past[best], fresh], 1).flatten(1, 2)
            self._match_loss = self.config.match_weight * match_loss(found, newest)
            return
        image, text = (
            torch.cat([old[:, i], newest[name].detach()[None]]) for i, name in enumerate(MODALITIES)
        )
        scores = self._scores(found, image, text)
        best = self._identified.note(scores, self.asked)
        if self.config.oracle:
            best = told(best, self.asked, len(text))
            scores = scores.scatter(1, best[:, None], torch.inf)
        rows = torch.cat([past, P.detach()[None]])[_top(scores, self.config.top_k)]
        prompts.insertion.chosen = rows.flatten(1, 2)

    def _scores(self, found: Features, image: Tensor, text: Tensor) -> Tensor:
        """Compare samples with prototypes (T, d) of two kinds, (B, T)."""
        share = self.config.image_share
        return cosines(found, {"image": image, "text": text}, {"image": share, "text": 1 - share})

    def _take_match_loss(self) -> Tensor | None:
        extra, self._match_loss = self._match_loss, None
        return extra


def _top(scores: Tensor, count: int) -> Tensor:
    """The best of (B, T), the very best last, (B, count or T)."""
    return scores.topk(min(count, scores.shape[1]), dim=1).indices.flip(1)


def match_loss(found: Features, prototype: dict[str, Tensor]) -> Tensor:
    """Sum, over the modalities, 1 - the mean cosine between samples and a prototype.

    Args:
        found: Of B samples; those that lack a modality do not count in its mean.
        prototype: By modality, (d,).

    Returns:
        ().
    """
    total = torch.zeros((), device=prototype["text"].device)
    for name, there in found.present.items():
        near = functional.cosine_similarity(found.of[name], prototype[name][None], dim=1)
        total = total + ((1 - near) * there).sum() / there.sum().clamp_min(1)
    return total


METHOD = ModalPrompt
