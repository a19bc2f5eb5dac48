"""What adapted linears have seen, led through tasks, and the metrics that it gives to steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core import steps
from undrift.core.step_hook import StepTransform
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared.state import State
from undrift.tuner import LayerStatistics, summed
from undrift.tuner.distributed import processes
from undrift.tuner.moe_lora import SAME_INPUT

if TYPE_CHECKING:
    from undrift.methods.shared.task_zero import TaskZero

Basis = tuple[Tensor, Tensor]
"""V (d, k) and s (k,) of one linear's input."""


class HistoryMethod(base.Method):
    """A method whose steps go through metrics of what earlier tasks have seen.

    Before a task `begin` is given the statistics of all linears, and `hold` may `turn` the steps of
    any parameter; a parameter without a turn is free. Where the history is merged on the way,
    `hold` is asked again.

    Args:
        setting: See `Method`.
        **options: See `Method`.

    Attributes:
        statistics: Of every linear, by name.
    """

    cut_off: ClassVar[base.CutOff] = (
        "go on"  # the statistics hold what was seen, and are merged when the next task begins
    )
    config: Any

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self.statistics: Mapping[str, LayerStatistics] = {}
        self._turns: dict[Parameter, StepTransform] = {}
        self._zero: TaskZero | None = None

    def remember(self, zero: TaskZero | None) -> None:
        """Let the history begin with the base's own; it has an effect on the first task only.

        Args:
            zero: What the base reads; None for an empty history.
        """
        self._zero = zero

    # ------------------------------------------------------------ the moments of a task

    def begin(self, steps_total: int, *, resumed: bool) -> None:
        """Begin a task, or go on with the running sums that a checkpoint brought.

        An adapter that was saved inside a task and begins another has what it saw merged first.

        Args:
            steps_total: How many steps the task takes.
            resumed: Whether a checkpoint brought sums.
        """
        self._turns = {}
        if not resumed and any(each.interrupted for each in self.statistics.values()):
            self.begin(steps_total, resumed=True)
            self._merge()
        if self._zero is not None and not resumed and self._first:
            self._begin_history(self._zero)
        batches = self._batches(steps_total)
        for each in self.statistics.values():
            each.resume_task(batches) if resumed else each.start_task(batches)

    @property
    def _first(self) -> bool:
        """Whether nothing was merged into the history yet."""
        return all(bool(each.importance_tokens == 0) for each in self.statistics.values())

    def _begin_history(self, zero: TaskZero) -> None:
        """Put the base's history in the place of an empty one."""
        if not zero.measured and self.config.task_weights == "tokens":
            raise ConfigError(
                "what the base's weights read has no tokens to count beside a task's; set "
                "method.task_weights=equal, or remember prompts"
            )
        for name, each in self.statistics.items():
            history = zero.histories.get(name)
            if history is None or history.V.shape[0] != each.dim:
                raise ConfigError(
                    f"what is remembered of the base does not fit {name}; remember it again with "
                    "the same base and targets"
                )
            if each.owner is each:
                each.begin_history(history)

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Turn the sketches once, early in a window, towards what was seen; merge at its end."""
        share = self.config.rebase_share
        now, length = self.window(step, steps_total)
        if share > 0 and now == at_share(share, length):
            with summed(self.statistics.values()):
                for each in self.statistics.values():
                    each.rebase()
        if now == length and step < steps_total:
            batches = self._batches(steps_total)
            with summed(self.statistics.values()):
                self._match_unit()
                for each in self.statistics.values():
                    each.merge_on(self.config.delta, batches)
            self.hold()

    def window(self, step: int, steps_total: int) -> tuple[int, int]:
        """Say which step of its window a step is, and how many the window has.

        A window ends where what was seen is merged into the history: with the task, or after every
        `merge_share` of its steps, where all windows are as long, but for a step.

        Args:
            step: From 1.
            steps_total: How many steps the task takes.

        Returns:
            Both, from 1.
        """
        share: float = getattr(self.config, "merge_share", 0.0)  # a method may know no windows
        parts = min(steps_total, round(1 / share)) if share else 1
        ends = [round(n * steps_total / parts) for n in range(parts + 1)]
        number = bisect_left(ends, step)
        return step - ends[number - 1], ends[number] - ends[number - 1]

    def _batches(self, steps_total: int) -> int:
        """Count the batches of the window that the next step is in, over all processes."""
        _, length = self.window(min(self._step + 1, steps_total), steps_total)
        return length * getattr(self._args, "gradient_accumulation_steps", 1) * processes()

    def hold(self) -> None:
        """Make ready what the history now says of steps; a method says of which parameters."""
        raise NotImplementedError

    def task_end(self, model: nn.Module) -> None:
        """Merge the task into the history."""
        self._merge()
        self._turns = {}

    def _merge(self) -> None:
        with summed(self.statistics.values()):
            self._match_unit()
            self.before_merge()
            for each in self.statistics.values():
                each.end_task(self.config.delta)

    def before_merge(self) -> None:
        """Make use of a task's own statistics, those of all processes; by default nothing is."""

    def _match_unit(self) -> None:
        """Give what the base's weights say the size of the first inputs that are merged into it."""
        if self._zero is not None and not self._zero.measured and self._first:
            factors = [each.task_per_history() for each in self.statistics.values()]
            for each, factor in zip(self.statistics.values(), factors, strict=True):
                each.scale_history(factor)

    def state(self, model: nn.Module) -> State:
        """Name the running sums; a method says where the statistics lie."""
        return State(sums=[s for each in self.statistics.values() for s in each.running().values()])

    def before_save(self, model: nn.Module) -> None:
        """Add up the running sums of all processes, and copy them into the buffers that are saved.

        They are no buffers themselves: DistributedDataParallel would give the first process's to
        all.
        """
        super().before_save(model)
        for each in self.statistics.values():
            each.flush()

    # ------------------------------------------------------------ what becomes of a step

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Turn the steps of every linear that has a history."""
        return self._turns if self.config.space != "gradient" else {}

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Turn the gradients, instead or as well, where the setting says so."""
        return self._turns if self.config.space != "step" else {}

    def turn(self, p: Parameter, transform: StepTransform | None) -> None:
        """Let the steps of a parameter go through a transform from now on; None frees them."""
        self._turns.pop(p, None)
        if transform is not None:
            self._turns[p] = transform

    def bases(self, *, running: bool = False) -> dict[str, Basis]:
        """Return V_par and s of every linear's input [Eq. 5].

        Args:
            running: Of C^t, current task included, instead of C^{t-1}.

        Returns:
            By the linear's name; those that share an input share tensors.
        """
        found: dict[LayerStatistics, Basis] = {}
        with summed(self.statistics.values()):
            for each in self.statistics.values():
                if each.owner not in found:
                    now = each.history_now(self.config.delta) if running else each.history
                    V, s = now.basis()
                    found[each.owner] = V.clone(memory_format=torch.contiguous_format), s
        return {name: found[each.owner] for name, each in self.statistics.items()}

    def turn_a(self, basis: Basis) -> StepTransform | None:
        """What turns a step of A, or None where the history is empty [Eq. 14, 15]."""
        (V, s), c = basis, self.config
        if not c.a_metric or s.numel() == 0:
            return None
        mu = steps.damping(s, c.mu, c.mu_relative)
        inside, outside = steps.a_metric(s, mu, c.normalise)
        return partial(steps.expert_a_step, V=V, inside=inside, outside=outside)

    def turn_b(
        self,
        A: Parameter,
        basis: Basis,
        statistics: LayerStatistics,
        z: Callable[..., Tensor] = steps.expert_b_step_z,
        aca: Callable[..., Tensor] = steps.expert_b_step_aca,
    ) -> StepTransform | None:
        """What turns a step of B, by C_z over the active experts or by A C A^T.

        Args:
            A: Of the same linear; its values when the step is turned count.
            basis: Of its input.
            statistics: Of the linear.
            z: Turns a step by P, (N r, N r).
            aca: Turns a step by A, V, s and mu_b.

        Returns:
            The transform; None where nothing is known yet.
        """
        (V, s), c = basis, self.config
        if c.b_metric == "z" and s.numel() and not bool(statistics.cz_tokens > 0):
            statistics.begin_cz(A.detach().flatten(0, -2))  # of the base, which came without
        if c.b_metric == "z" and bool(statistics.cz_tokens > 0):
            P = steps.z_metric(statistics.cz.double(), c.mu_b, statistics.active).float()
            return partial(z, P=P)
        if c.b_metric == "aca" and s.numel():
            return lambda step: aca(step, A=A.detach(), V=V, s=s, mu_b=c.mu_b)
        return None


def at_share(share: float, steps_total: int) -> int:
    """The step, from 1, after which a share of the task's steps is done."""
    return max(1, round(share * steps_total))


def make_statistics(
    linears: Mapping[str, tuple[int, torch.device]], experts: int, rank: int, **options: Any
) -> dict[str, LayerStatistics]:
    """Make the statistics of linears; those that read one input share one sketch.

    Args:
        linears: By name, d_in and where the adapter lives.
        experts: N.
        rank: r of each expert.
        **options: As for `LayerStatistics`.

    Returns:
        By name.
    """
    made: dict[str, LayerStatistics] = {}
    for name, (dim, device) in linears.items():
        block, _, own = name.rpartition(".")
        siblings = next((group for group in SAME_INPUT if own in group), ())
        same = [made[f"{block}.{other}"] for other in siblings if f"{block}.{other}" in made]
        shared = same[0].owner if same else None
        made[name] = LayerStatistics(name, dim, experts, rank, shared=shared, **options).to(device)
    return made
