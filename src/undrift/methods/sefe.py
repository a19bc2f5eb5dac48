"""SEFE: answers asked for in many styles, and new updates kept off where past ones were largest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core.step_hook import StepTransform
from undrift.data.types import Example
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared.added_loss import loss_scale
from undrift.methods.shared.pool import Gate, PoolMethod
from undrift.methods.shared.state import State
from undrift.tuner.distributed import full_tensor
from undrift.tuner.pool_lora import PoolLoraConfig

_SHARE = ("one in (0, 1]", lambda v: 0 < v <= 1)


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and those of SEFE's two parts.

    Attributes:
        asd: Rewrite a share of every task's training examples into other answer styles, see
            `diversified`; without it this is RegLoRA alone.
        asd_share: X, the share that is rewritten.
        strength: lambda of RegLoRA's penalty.
        key_share: M, the share of each linear's entries that a task counts as key elements.
        union: Count an entry that is key to several tasks once; the public code counts it as often
            as there are tasks.
        sampled: On how many key elements a linear the penalty is computed in a step, drawn anew
            each time; on all if there are no more.
        seed: What the rewritten examples and the sampled elements are drawn from.
    """

    asd: bool = True
    asd_share: float = base.option(0.2, _SHARE)
    strength: float = base.option(2500.0, base.POSITIVE)
    key_share: float = base.option(0.02, _SHARE)
    union: bool = False
    sampled: int = base.option(16384, base.POSITIVE)
    seed: int = 0


class Sefe(PoolMethod[Gate]):
    """Answer-style diversification and RegLoRA.

    Every task begins with a fresh LoRA of rank `experts * rank` on the weights that the tasks
    before have left, and the mean of |B A| over the key elements of past tasks, averaged over the
    linears, is kept small: lambda times its gradient is added to the loss's once per optimiser
    step, after clipping; it is not part of the reported loss. At first B is zero and so is the
    gradient of |0|: the penalty acts from the second step on.

    The paper merges each LoRA into the weight. Here the past ones stay beside it as frozen
    factors, summed in one product: the same function, with the base as it is (quantised or
    shared), at a cost that grows by one rank a task. Of |B A| the scale alpha / r is left out.
    Key elements are 32-bit positions: 4 bytes for `key_share` of the adapted weights a task.

    Answers in other styles are written by rules, see `diversified`, where the paper asked a large
    model. In a trainer of your own, give it `method.examples(train, task_index)` as its dataset.
    """

    name: ClassVar[str] = "sefe"
    paper: ClassVar[str] = "SEFE, Chen et al., ICML 2025, arXiv:2505.02486"
    parts: ClassVar[base.Parts] = "experts"
    reads_prompts: ClassVar[bool] = False
    alone: ClassVar[bool] = True
    state_name: ClassVar[str] = "sefe_state"
    cut_off: ClassVar[base.CutOff] = "end"
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self.keys: dict[str, Tensor] = {}  # by linear, (K,) int32

    def peft_config(self, model: nn.Module | None = None) -> PoolLoraConfig:
        """Make the configuration of the adapter: for each task a LoRA as large as `finetune`'s."""
        rank = self.config.experts * self.config.rank
        return replace(super().peft_config(), r=rank, lora_alpha=self.config.alpha_over_rank * rank)

    def examples(self, train: Sequence[Example], index: int) -> Sequence[Example]:
        """Rewrite some of the task's own examples into other answer styles."""
        if not self.config.asd:
            return train
        random = Random(f"{self.config.seed} styles {index}")
        return diversified(train, self.config.asd_share, random)

    # ------------------------------------------------------------ the moments of a task

    @torch.no_grad()
    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Add the gradient of the penalty on past key elements."""
        if not self.keys:
            return {}
        adapter, found = self._adapter, self._layers
        size = self.config.sampled
        seed = (self.config.seed * 1000 + self.task_index) * 1_000_000 + self._step
        u = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weight = self.config.strength / len(found) * loss_scale(self._optimizer)
        turns: dict[Parameter, StepTransform] = {}
        for name, layer in found.items():
            A, B = layer.pool_lora_A[adapter], layer.pool_lora_B[adapter]
            keys = drawn(self.keys[name], size, u).to(A.device)
            gradients = penalty_gradient(full_tensor(A)[0], full_tensor(B)[0], keys)
            for p, gradient in zip((A, B), gradients, strict=True):
                turns[p] = partial(torch.add, gradient[None] * weight)
        return turns

    @torch.no_grad()
    def task_end(self, model: nn.Module) -> None:
        """Find where the task's own update was largest."""
        adapter, past, made = self._adapter, self.keys, dict[str, Tensor]()
        for name, layer in self._layers.items():
            A, B = (full_tensor(p[adapter])[0] for p in (layer.pool_lora_A, layer.pool_lora_B))
            found = key_elements(A, B, self.config.key_share)
            keys = torch.cat([past[name].to(found.device), found]) if past else found
            made[name] = keys.unique() if self.config.union else keys
        self.keys = made  # all at once: a task whose end is cut off may begin anew
        super().task_end(model)

    # ------------------------------------------------------------ state

    def state(self, model: nn.Module) -> State:
        """Name the key elements."""
        return State(self.keys, whole=True)

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back the key elements."""
        self.keys = dict(saved.tensors or {})

    def forget(self, model: nn.Module) -> None:
        """Begin without key elements."""
        super().forget(model)
        self.keys = {}

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Make room for the LoRAs and the key elements of so many tasks, with `union` at most."""
        super().make_room(model, tasks)
        for name, each in self._layers.items():
            count = key_count(each.in_features * each.out_features, self.config.key_share)
            self.keys[name] = torch.zeros(tasks * count, dtype=torch.int32)


# --------------------------------------------- answer-style diversification
#
# A model that learns a task in which every answer is a letter forgets how to answer in words, but
# not what it knows. So a share of every task is rewritten into the styles that are not its own.
# Test data are never rewritten.
#
# The published method had a large model write distractors and explanations. Here rules do it, from
# what the task's data hold: distractors are answers of other examples of the same kind, and only
# an example that comes with a rationale can be explained. Other writers can be given.

STYLES: Mapping[str, str] = {
    "yes_no": "Answer the question with yes or no.",
    "choice": "Answer with the option's letter from the given choices directly.",
    "brief": "Answer the question using a single word or phrase.",
    "explanation": "Answer the question and explain why in about 20 words.",
    "detail": "Answer the question and explain in detail in about 50 words.",
}
"""Each style with the line that asks for it."""

RATIONALES = ("rationale", "solution", "explanation")  # where data keep one, in `Example.extra`
FORM_LINE = 0.05  # a last line that this share of a task's questions end with asks for a form
SHORT = 35  # words; a longer rationale is a detailed one
OPTIONS = 4
_OPTION = re.compile(r"\(?([A-Z])[.):]\s+(\S.*)")


@dataclass(frozen=True)
class Asked:
    """An example taken apart, for a writer to put together in another style.

    Attributes:
        question: Without options and without the line that asks for a form.
        answer: In words: of a multiple choice the option, not its letter.
        distractors: Wrong answers of the same kind, without repetitions.
        rationale: Why, where the data say so.
    """

    question: str
    answer: str
    distractors: tuple[str, ...]
    rationale: str | None


Writer = Callable[[Asked, Random], tuple[str, str] | None]
"""A question without its form line, and an answer; None if the style cannot be written."""


def yes_no(asked: Asked, random: Random) -> tuple[str, str] | None:
    """Ask whether the answer, or a distractor, is right: each half of the time."""
    if not asked.distractors:
        return None
    right = random.random() < 0.5
    shown = asked.answer if right else random.choice(asked.distractors)
    return f"{asked.question}\nIs the answer {shown}?", "yes" if right else "no"


def choice(asked: Asked, random: Random) -> tuple[str, str] | None:
    """Offer the answer among distractors, in random order, with letters."""
    if not asked.distractors:
        return None
    wrong = random.sample(asked.distractors, min(OPTIONS - 1, len(asked.distractors)))
    offered = [asked.answer, *wrong]
    random.shuffle(offered)
    lines = [f"{chr(ord('A') + place)}. {text}" for place, text in enumerate(offered)]
    letter = chr(ord("A") + offered.index(asked.answer))
    return "\n".join([asked.question, *lines]), letter


def brief(asked: Asked, random: Random) -> tuple[str, str]:
    """Ask for the answer itself."""
    return asked.question, asked.answer


def explained(asked: Asked, random: Random, *, short: bool) -> tuple[str, str] | None:
    """Answer with a short or a long rationale, if the data hold one."""
    why = asked.rationale
    if why is None or (len(why.split()) <= SHORT) != short:
        return None
    return asked.question, f"{asked.answer}. {why}"


RULES: Mapping[str, Writer] = {
    "yes_no": yes_no,
    "choice": choice,
    "brief": brief,
    "explanation": partial(explained, short=True),
    "detail": partial(explained, short=False),
}


def diversified(
    examples: Sequence[Example],
    share: float,
    random: Random,
    writers: Mapping[str, Writer] = RULES,
) -> Sequence[Example]:
    """Rewrite a share of a task's training examples, evenly into the styles not its own.

    Args:
        examples: The task's training examples.
        share: How many of them, in [0, 1].
        random: Decides which, and whatever the writers leave open.
        writers: By style; what a style's cannot write goes to the others.

    Returns:
        As many examples in the same order; a rewritten one has the same id and pictures, and its
        style in `extra["style"]`.
    """
    wanted = round(share * len(examples))
    if not wanted:
        return examples
    own = task_style(examples)
    forms, answers = form_lines(examples), answers_by_kind(examples)
    made: Counter[str] = Counter({style: 0 for style in writers if style != own})
    out = list(examples)
    for place in random.sample(range(len(out)), len(out)):
        if made.total() == wanted:
            break
        asked = taken_apart(out[place], forms, answers)
        for style in sorted(made, key=lambda style: made[style]):
            written = writers[style](asked, random)
            if written is not None:
                made[style] += 1
                extra = {**out[place].extra, "style": style}
                question = f"{written[0]}\n{STYLES[style]}"
                out[place] = replace(
                    out[place], question=question, answers=(written[1],), extra=extra
                )
                break
    return out


def task_style(examples: Sequence[Example]) -> str:
    """Tell a task's own style: that of most of its answers."""
    return Counter(style_of(example) for example in examples).most_common(1)[0][0]


def style_of(example: Example) -> str:
    """Tell an example's style from the line that asks for it, or else from its answer."""
    asked = {line: style for style, line in STYLES.items()}.get(example.question.splitlines()[-1])
    if asked is not None:
        return asked
    answer = example.answers[0]
    if kind_of(answer) == "yes_no":
        return "yes_no"
    if _letter(answer) in options(example.question):
        return "choice"
    words = len(answer.split())
    return "brief" if words < 10 else "explanation" if words <= SHORT else "detail"


def options(question: str) -> dict[str, str]:
    """Find the lettered options of a question, by letter."""
    found = (_OPTION.fullmatch(line.strip()) for line in question.splitlines())
    return {match[1]: match[2].strip() for match in found if match}


def form_lines(examples: Sequence[Example]) -> set[str]:
    """Find the lines that ask for a form: last lines which many questions share."""
    ends = Counter(e.question.splitlines()[-1] for e in examples if "\n" in e.question)
    return {line for line, count in ends.items() if count > max(1, FORM_LINE * len(examples))}


def kind_of(answer: str) -> str:
    """Tell what kind of answer a text is; distractors are of the same kind."""
    text = answer.strip().lower()
    if text in ("yes", "no"):
        return "yes_no"
    if text.startswith("["):
        return "box"
    if re.fullmatch(r"[-+$]?[\d.,:/]+%?", text):
        return "number"
    return "word" if len(text.split()) == 1 else "words"


def answers_by_kind(examples: Sequence[Example]) -> dict[str, tuple[str, ...]]:
    """Collect a task's answers, each once, by kind."""
    found: dict[str, dict[str, None]] = {}
    for example in examples:
        found.setdefault(kind_of(example.answers[0]), {})[example.answers[0]] = None
    return {kind: tuple(answers) for kind, answers in found.items()}


def taken_apart(example: Example, forms: set[str], answers: Mapping[str, Sequence[str]]) -> Asked:
    """Take an example apart.

    Args:
        example: Of the task.
        forms: The task's `form_lines`.
        answers: The task's `answers_by_kind`.

    Returns:
        Its parts; the distractors of a multiple choice are its own other options.
    """
    lines = example.question.splitlines()
    if len(lines) > 1 and lines[-1] in forms:
        lines.pop()
    answer, lettered = example.answers[0], options(example.question)
    letter = _letter(answer)
    if letter in lettered:
        lines = [line for line in lines if not _OPTION.fullmatch(line.strip())]
        answer = lettered.pop(letter)
        others: Sequence[str] = list(lettered.values())
    else:
        others = answers[kind_of(answer)]
    right = {answer.lower(), *(each.lower() for each in example.answers)}
    wrong = tuple(other for other in dict.fromkeys(others) if other.lower() not in right)
    return Asked("\n".join(lines), answer, wrong, _rationale(example.extra))


def _letter(answer: str) -> str:
    return answer.strip().strip("().").upper()


def _rationale(extra: Mapping[str, Any]) -> str | None:
    found = (extra.get(key) for key in RATIONALES)
    return next((text.strip() for text in found if isinstance(text, str) and text.strip()), None)


# --------------------------------------------- RegLoRA: where past updates were largest
#
# A position (p, q) of a linear's d_out x d_in weight is kept as the number p d_in + q, in 32 bits.


def key_elements(A: Tensor, Bt: Tensor, share: float) -> Tensor:
    """Find the largest entries of |B A|.

    Args:
        A: (r, d_in).
        Bt: B transposed, (r, d_out).
        share: M, the share of the entries that are key elements, in (0, 1].

    Returns:
        Their positions in ascending order, (K,) int32.

    Raises:
        ConfigError: If 32 bits do not suffice to count the entries.
    """
    size = A.shape[1] * Bt.shape[1]
    if size >= 2**31:
        raise ConfigError(f"a linear with {size} weights has more than positions can be kept of")
    change = (Bt.mT @ A).abs_().flatten()
    found = change.topk(key_count(size, share), sorted=False).indices
    return found.int().sort().values


def key_count(size: int, share: float) -> int:
    """Return how many key elements a task has in a linear with so many weights."""
    return max(1, round(share * size))


def penalty_gradient(A: Tensor, Bt: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the mean of |B A| over key elements, without forming B A.

    Args:
        A: (r, d_in).
        Bt: (r, d_out).
        keys: Positions, (K,).

    Returns:
        With respect to A and to Bt; zero where B A is zero.
    """
    wide = keys.long()
    rows, columns = wide // A.shape[1], wide % A.shape[1]
    a, b = A[:, columns], Bt[:, rows]  # (r, K)
    sign = (a * b).sum(0).sign() / len(keys)
    gradient_A = torch.zeros_like(A).index_add_(1, columns, b * sign)
    return gradient_A, torch.zeros_like(Bt).index_add_(1, rows, a * sign)


def drawn(keys: Tensor, at_most: int, u: Tensor) -> Tensor:
    """Draw some of the key elements, with repetition, so that a mean over them is unbiased.

    Args:
        keys: (K,).
        at_most: How many; all of them, each once, if there are no more.
        u: Uniform numbers in [0, 1), (at_most,) float64.

    Returns:
        (min(K, at_most),).
    """
    if len(keys) <= at_most:
        return keys
    return keys[(u * len(keys)).long().to(keys.device)]


METHOD = Sefe
