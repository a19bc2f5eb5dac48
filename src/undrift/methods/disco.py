"""DISCO in one place: an expert a task, all mixed by how much the text looks like each task's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from undrift.methods import base
from undrift.methods.shared import task_matcher

MODALITIES = {"text": {"text": 1.0}, "image": {"image": 1.0}, "both": {"image": 0.5, "text": 0.5}}


@dataclass(frozen=True, kw_only=True)
class Config(task_matcher.Config):
    """The options of a matched pool, and how prompts are matched.

    Attributes:
        tau: The temperature of the softmax over cosines.
        modality: What is compared: "text", as published, "image", or "both".
        choice: "softmax", or "argmax", which gives the best task's expert everything.
        centred: Compare features from the mean of the prototypes, see `Matching` [OURS]; False
            compares them from zero, as published for CLIP's.
        oracle: At test, use the expert of the task that is asked.
    """

    tau: float = base.option(0.05, base.POSITIVE)
    modality: Literal["text", "image", "both"] = "text"
    choice: Literal["softmax", "argmax"] = "softmax"
    centred: bool = True
    oracle: bool = False


class Disco(task_matcher.MatchedPool):
    """An expert a task, trained alone; at test all are weighed by the likeness of the text.

    y = W0 x + s sum_i a_i B_i A_i x in every linear, a = softmax(cos(f, mu_i) / tau) over the
    learned tasks, f the prompt's text and mu_i the mean of task i's. The published method is
    federated; with one client its other half (averaging the experts of clients with like tasks)
    has nothing to do, and is left out. Features are the model's own [OURS; published: CLIP's].
    """

    name: ClassVar[str] = "disco"
    paper: ClassVar[str] = "DISCO, Guo et al., ICCV 2025, arXiv:2503.12897"
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    def matching(self) -> task_matcher.Matching:
        """Say how prompts are matched with tasks."""
        c = self.config
        return task_matcher.Matching(MODALITIES[c.modality], c.tau, c.choice, c.centred, c.oracle)


METHOD = Disco
