"""A task taught to a method: transformers' Trainer with the method's loss, the method a callback.

Examples are tokenised beforehand, or step by step where they are many, and image features are
kept, so a step costs the model and little else; what a Trainer adds to a bare loop is measured in
docs/decisions.md. Precision, accumulation, clipping, schedule and data order are the Trainer's.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from undrift.data.collate import Encoded, fitting
from undrift.data.processor import REFUSALS
from undrift.data.types import Example, Task
from undrift.errors import DataError, TrainingDiverged, first_line
from undrift.methods.base import Method
from undrift.methods.shared.projector import trained_modules
from undrift.run.batches import Batches, Dealer, Dealt, Encodings, Share, share_of
from undrift.run.checkpoint import (
    latest,
    load_optimizer,
    load_random,
    load_schedule,
    save_snapshot,
)
from undrift.run.config import RunConfig, TrainConfig
from undrift.run.plan import FirstSteps
from undrift.run.progress import Progress
from undrift.run.ranks import of_all, totals
from undrift.run.refused_examples import blame_example
from undrift.run.session import Session, rate_of
from undrift.run.stopping import Stopped, request
from undrift.run.watch_routes import ROUTES, RouteWatch
from undrift.tuner.distributed import left_out, processes, rank
from undrift.tuner.peft_internals import one_device

JOINT = "joint"  # the name of the one task of a method that trains on all tasks at once
_TRAINING = 3.5  # what training on an example costs, in answers to an example
_FIELDS = {field.name for field in fields(TrainingArguments)}
_CHECKPOINTING = "activation_checkpointing"  # older transformers: gradient_checkpointing
if _CHECKPOINTING not in _FIELDS:
    _CHECKPOINTING = "gradient_checkpointing"
_LOGGED = ("step", "epoch", "loss", "learning_rate", "grad_norm")
_LOOK_EVERY = 10  # steps between two looks at the losses on an accelerator, where looking waits


class _Fault(NamedTuple):
    """What is not finite any more; the first of several by its rank is told."""

    rank: int
    what: str
    ids: Sequence[str]


class StepWatch(TrainerCallback):
    """Stops the training where a loss, a gradient, a weight or a statistic is not finite any more.

    The batch is named. On a CPU the step is not made; elsewhere looking waits for the accelerator,
    so it looks every few steps and before whatever is saved. It asks for snapshots and logs, too.

    Args:
        every: Steps between two looks.
        checkpoint_steps: Steps between two snapshots; 0 for none.
        statistics: Names what the method adds up.

    Attributes:
        stops: Whether the training is to stop behind this step.
    """

    def __init__(
        self,
        every: int,
        checkpoint_steps: int = 0,
        statistics: Callable[[], Mapping[str, Tensor]] = dict,
    ) -> None:
        self.every, self.checkpoint_steps = every, checkpoint_steps
        self.stops = False
        self._statistics = statistics
        self._step = 1
        self._last = False
        self._losses: list[tuple[int, Tensor, list[str]]] = []
        self._norms: list[tuple[int, Tensor]] = []
        self._seen: list[str] = []  # of the last step that was looked at

    def see(self, loss: Tensor, ids: list[str]) -> None:
        """Take note of a batch's loss."""
        self._losses.append((self._step, loss.detach(), ids))

    def see_gradients(self, norm: Tensor | None, model: nn.Module) -> None:
        """Look, before the step and before its gradients are clipped, which would spread a nan.

        Args:
            norm: The norm of all gradients; None where they need not be finite (a scaler's).
            model: Whose gradients they are.
        """
        if norm is not None:
            self._norms.append((self._step, norm.detach()))
        if self._step % self.every == 0 or self._last:
            self.look(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of which step the next losses belong to."""
        self._step = state.global_step + 1
        self._last = self._step >= state.max_steps

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Have the loss logged before a snapshot and after the last step, however short the task.

        A resumed mean of losses begins after the snapshot.
        """
        last = state.global_step >= state.max_steps
        control.should_save = self.stops and not last
        if self.checkpoint_steps and state.global_step % self.checkpoint_steps == 0:
            control.should_save = not last
        control.should_log |= control.should_save or last
        if control.should_save or last:
            self.look(model)
            self._tell(self._spoilt(model))

    def look(self, model: nn.Module) -> None:
        """Check the losses and gradients noted since the last look; all processes call it.

        Args:
            model: What is trained.

        Raises:
            TrainingDiverged: If one of them, in any process, is not finite.
        """
        losses, self._losses = self._losses, []
        norms, self._norms = self._norms, []
        self._tell(self._bad_loss(losses, model) or self._bad_gradient(losses, norms, model))
        if losses:
            self._seen = _ids_of(losses, losses[-1][0])

    def _bad_loss(
        self, losses: Sequence[tuple[int, Tensor, list[str]]], model: nn.Module
    ) -> _Fault | None:
        for step, loss, ids in losses:
            value = float(loss)
            if not math.isfinite(value):
                if self.every == 1 and (spoilt := self._spoilt(model)):  # by the step before
                    return spoilt
                return _Fault(0, f"the loss is {value} at step {step}", ids)
        return None

    def _bad_gradient(
        self,
        losses: Sequence[tuple[int, Tensor, list[str]]],
        norms: Sequence[tuple[int, Tensor]],
        model: nn.Module,
    ) -> _Fault | None:
        for step, norm in norms:
            value = float(norm)
            if not math.isfinite(value):
                grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
                name = _not_finite(grads) if step == self._step else None
                which = f" of {_parameter(name)}" if name else "s' norm"
                what = f"the gradient{which} is {value} at step {step}"
                return _Fault(2, what, _ids_of(losses, step))
        return None

    def _spoilt(self, model: nn.Module) -> _Fault | None:
        """Find a weight or a statistic that is not finite, most often nothing, in one pass."""
        weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        for kind, tensors in (("weight", weights), ("statistic", self._statistics())):
            floats = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel()}
            if floats and not torch.isfinite(get_total_norm(floats.values(), math.inf)):
                name = _parameter(_not_finite(floats) or "?")
                return _Fault(1, f"the {kind} {name} is not finite any more", self._seen)
        return None

    @staticmethod
    def _tell(fault: _Fault | None) -> None:
        """Stop all processes where one has a fault."""
        if not totals(int(fault is not None))[0]:
            return
        faults = [_Fault(*each) for (each,) in of_all([fault and tuple(fault)]) if each]
        first = min(faults, key=lambda each: each.rank)
        ids = dict.fromkeys(i for each in faults if each.rank == first.rank for i in each.ids)
        raise TrainingDiverged(
            f"{first.what}, on the batch of examples {', '.join(ids)}; lower train.learning_rate, "
            "or look at these examples"
        )


def _statistics(method: Method, model: nn.Module) -> dict[str, Tensor]:
    """Name all that a method keeps beside its weights; sums in the model by their places there."""
    state = method.state(model)
    places = {id(each): name for name, each in model.named_buffers()}
    sums = {places.get(id(each), f"sum {k}"): each for k, each in state.running().items()}
    return {**(state.tensors or {}), **sums}


def _ids_of(losses: Sequence[tuple[int, Tensor, list[str]]], step: int) -> list[str]:
    return [name for at, _, ids in losses if at == step for name in ids]


def _numbers_of(batch: Mapping[str, Any]) -> Tensor | None:
    """Numbers that tell the examples of a batch with pixels apart, (B,); None where tokens do.

    Kept features lie among the tokens.
    """
    examples: Sequence[Encoded] = batch["examples"]
    if "image_features" in batch or not any(each.images for each in examples):
        return None
    return torch.tensor([zlib.crc32(each.id.encode()) for each in examples])


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that is not finite."""
    return next((name for name, each in tensors.items() if not each.isfinite().all()), None)


def _parameter(name: str) -> str:
    """Say which parameter of which linear is meant."""
    linear, _, own = re.sub(r"\.(?=\w*lora_)", "\n", name, count=1).partition("\n")
    return f"{own} of the linear {linear}" if own else name


class StepBar(TrainerCallback):
    """Moves the progress bar by the trainer's steps.

    Args:
        progress: The bars.
        title: What is learned.
        work: The task's share of the planned work.
        device: Where the model is: time and memory are told after the first steps; never if None.
    """

    def __init__(
        self, progress: Progress, title: str, work: float, device: torch.device | None = None
    ) -> None:
        self.progress, self.title, self.work = progress, title, work
        self.device = device
        self._timed: FirstSteps | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the bar, and move it to where a resumed task goes on."""
        self.progress.stage(self.title, state.max_steps, self.work)
        self.progress.resume(state.global_step)
        self._timed = None
        if self.device is not None:
            self._timed = FirstSteps(self.progress, self.device, state.global_step)

    def go_on(self, done: int, steps: int) -> None:
        """Draw the bar anew for what is left, where something else was drawn meanwhile."""
        left = steps - done
        self.progress.stage(f"{self.title}, from step {done}", left, self.work * left / steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Pass on what was logged of a step."""
        known = {key: logs[key] for key in ("loss", "learning_rate") if key in (logs or {})}
        self.progress.figures(**known)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar, and tell after the first steps how long all of them will take."""
        if state.global_step < state.max_steps:
            self.progress.advance()
        if self._timed is not None:
            self._timed.step(state.global_step, state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar to its end, once the last loss is logged."""
        self.progress.advance()


class TaskTrainer(Trainer):
    """A Trainer whose loss is the method's.

    Args:
        method: Gives the loss.
        reading: The context in which a batch is read, which makes the model's inputs of it.
        watch: Sees every loss.
        blame: Called with a batch and what it made the model raise, to name an example at fault.
        modules_rate: Peak rate of modules trained in full beside the adapter, the projector's.
        share: What this process takes of a step.
        order: The order of the examples, see `Dealer`.
        **options: What `Trainer` takes.
    """

    def __init__(
        self,
        *,
        method: Method,
        reading: Callable[[Mapping[str, Any]], AbstractContextManager[Mapping[str, Any]]],
        watch: StepWatch,
        blame: Callable[[Sequence[Encoded], Exception], None],
        modules_rate: float,
        share: Share,
        order: Sequence[int] | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.share, self.order = share, order
        self.modules_rate = modules_rate
        self.method = method
        self.reading = reading
        self.watch = watch
        self.blame = blame
        self.model_accepts_loss_kwargs = False  # the Trainer divides by the accumulation itself

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the method's loss on a collated batch, by its share of the step's labels.

        The means over micro-batches and processes, which the Trainer and DDP take, are then the
        mean over the labelled tokens of the whole step, however it was dealt out.
        """
        examples, weight = inputs["examples"], inputs["weight"]
        try:
            with self.reading(inputs) as made, self.method.sharing(inputs["example_share"]):
                loss = self.method.loss(model, made)
        except REFUSALS as error:
            self.blame(examples, error)
            raise
        self.watch.see(loss, [example.id for example in examples])
        tokens, asked = totals(inputs["tokens"], int(request.asked))
        self.state.num_input_tokens_seen += tokens  # snapshots keep it
        self.watch.stops |= asked > 0  # all processes stop behind the same step
        return loss if weight == 1 else loss * weight

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip as the Trainer does, in two steps: the norm is looked at in between."""
        norm = self._norm()
        clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        return self._norm() if grad_norm is None else grad_norm  # None: nothing is clipped

    def _norm(self) -> Tensor:
        self.accelerator.unscale_gradients()
        trained: Any = self.model
        norm = get_total_norm([p.grad for p in trained.parameters() if p.grad is not None])
        scaled = self.accelerator.scaler is not None  # it leaves such a step out by itself
        self.watch.see_gradients(None if scaled else norm, trained)
        return norm

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Go through a micro-batch; one that is read to keep step leaves no trace."""
        trained: Any = self.model
        with nullcontext() if inputs["weight"] else left_out(self.method.state(trained)):
            return super().training_step(model, inputs, num_items_in_batch)

    def get_train_dataloader(self) -> Batches:
        """Deal the examples out by a plan that is the same on any number of processes."""
        examples: Any = self.train_dataset
        seed = self.args.data_seed or 0
        dealer = Dealer(len(examples), self.share, rank(), processes(), seed, self.order)
        pin = self.args.dataloader_pin_memory
        return Batches(examples, dealer, collate_fn=self.data_collator, pin_memory=pin)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimiser, with the projector, where it is trained, in groups of its own."""
        made: Any = super().create_optimizer(model)
        trained: Any = self.model
        own = {id(parameter) for parameter in trained_modules(trained)}
        for group in list(made.param_groups) if own else []:
            moved = [p for p in group["params"] if id(p) in own]
            if moved and group["lr"] != self.modules_rate:
                group["params"] = [p for p in group["params"] if id(p) not in own]
                made.add_param_group({**group, "params": moved, "lr": self.modules_rate})
        return made

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the Trainer would walk through all parameters at every step to estimate it."""
        return 0

    # Snapshots are undrift's own: what the method saves, and nothing pickled.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        save_snapshot(self, self.method, Path(str(self.args.output_dir)))
        if self.watch.stops:
            raise Stopped

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Leave the weights alone: `Method.load_state` has restored them with the statistics."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self.optimizer, Path(checkpoint))
            load_schedule(self.lr_scheduler, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random(Path(checkpoint))


def teach(
    session: Session,
    task: Task,
    index: int,
    seed: int,
    settings: TrainConfig,
    snapshots: Path,
    callbacks: Sequence[TrainerCallback],
    routes: RouteWatch | None = None,
    order: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Train a method on its next task.

    The seed of a task follows from the run's seed and the task's number alone, so that a task
    learned by itself, later, is the task learned in a run.

    Args:
        session: What learns; its method is in the state after the task before.
        task: What to learn.
        index: Its number, from 1.
        seed: The run's seed.
        settings: How it is trained.
        snapshots: Where snapshots go; the latest one there is gone on from.
        callbacks: Told about every step.
        routes: Watches where inputs of earlier tasks are sent.
        order: Of a stream, the order of its examples.

    Returns:
        What was logged, see `train`.

    Raises:
        DataError: If the method chooses zero examples.
    """
    method = session.method
    examples = list(method.examples(task.train, index))
    if not examples:
        raise DataError(f"task {task.name!r} has zero examples to train on")
    if session.backbone.store is not None:  # examples of earlier tasks may be among them
        session.backbone.prepare([picture for e in examples for picture in e.images])
    own = seed * 1000 + index
    set_seed(own)
    method.task_index = index
    return train(session, examples, settings, snapshots, own, callbacks, routes, order)


def train(
    session: Session,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    seed: int,
    callbacks: Sequence[TrainerCallback] = (),
    routes: RouteWatch | None = None,
    order: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Train one task, going on from the latest snapshot in `folder` if there is one.

    Args:
        session: What learns; its method is one of the trainer's callbacks.
        examples: What is learned; see `Encodings` for when each is encoded.
        config: Rates, sizes and lengths.
        folder: For snapshots.
        seed: Decides the order of the examples.
        callbacks: More callbacks, such as progress; they end the task before the method does.
        routes: Watches where inputs of earlier tasks are sent, after the method's steps.
        order: Of a stream, the order of its examples.

    Returns:
        What the trainer logged: loss, learning rate, gradient norm and drift of routes by step.

    Raises:
        TrainingDiverged: If a loss, gradient, weight or statistic stops being finite.
        DataError: If processor or model refuse an example; it is named.
    """
    backbone, model, method = session.backbone, session.model, session.method
    collator = session.collator

    def collate(dealt: list[Dealt]) -> dict[str, Any]:
        batch = [each.example for each in dealt]
        made = fitting(collator.collate(batch), batch, backbone.model.config)
        labels, examples = dealt[0].labels, dealt[0].examples
        weight = sum(len(example.answer) for example in batch) / labels if labels else 0.0
        beside = {
            "examples": batch,
            "tokens": int(made["attention_mask"].sum()) if labels else 0,
            "weight": weight,
            "example_share": len(batch) / examples / weight if labels else 1.0,
        }
        return {**beside, **made}

    def made(batch: Mapping[str, Any]) -> dict[str, Any]:
        beside = ("examples", "tokens", "weight", "example_share")
        return {key: value for key, value in batch.items() if key not in beside}

    def inputs(batch: Mapping[str, Any]) -> dict[str, Any] | None:
        return backbone.inputs(made(batch)) | {"use_cache": False} if batch["weight"] else None

    @contextmanager
    def reading(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        with backbone.reading(made(batch), _numbers_of(batch)) as read:
            yield read | {"use_cache": False}

    on_cpu = backbone.device.type == "cpu"
    share = share_of(config.examples_a_step, config.batch_size, processes())
    every = 1 if on_cpu else math.gcd(_LOOK_EVERY, config.checkpoint_steps)
    watch = StepWatch(every, config.checkpoint_steps, lambda: _statistics(method, model))
    resumed = latest(folder)
    if resumed is not None:
        method.load_state(model, resumed)
    trainer = TaskTrainer(
        method=method,
        reading=reading,
        watch=watch,
        blame=partial(blame_example, backbone, model, collator),
        modules_rate=config.projector_learning_rate,
        share=share,
        order=order,
        model=model,
        args=_arguments(
            config,
            share,
            folder,
            seed,
            backbone.device,
            backbone.model.dtype,
            config.passes(len(examples)),
        ),
        train_dataset=Encodings(examples, collator),
        data_collator=collate,
        callbacks=[watch, *callbacks, method, *([routes] if routes else [])],
    )
    trainer.remove_callback(PrinterCallback)
    model.train()
    with ExitStack() as stack:
        stack.enter_context(method.preparing(inputs))
        if routes:
            stack.enter_context(routes.telling(trainer.log))
        trainer.train(resume_from_checkpoint=str(resumed) if resumed is not None else None)
    model.eval()
    return _by_step(trainer.state.log_history)


def training_settings(config: RunConfig, method: Method, task: Task, tasks: int = 1) -> TrainConfig:
    """Return the settings of one training: rate and epochs as numbers, the steps of all tasks.

    Args:
        config: The run.
        method: The method.
        task: What is trained.
        tasks: How many tasks the run has.

    Returns:
        The settings.
    """
    epochs = config.train.passes(len(task.train))
    changed: dict[str, object] = {"learning_rate": rate_of(config, method), "epochs": epochs}
    if task.name == JOINT and config.train.max_steps is not None:
        changed["max_steps"] = config.train.max_steps * tasks
    return config.train.model_copy(update=changed)


def training_work(task: Task, config: TrainConfig) -> float:
    """Return what a training costs, in answers to an example."""
    examples = len(task.train) * config.passes(len(task.train))
    if config.max_steps is not None:
        examples = config.max_steps * config.examples_a_step
    return _TRAINING * examples


@contextmanager
def diverging(place: str, root: Path) -> Iterator[None]:
    """Say in the error of a training that diverges which task it was, and what is kept in a run."""
    try:
        yield
    except (TrainingDiverged, LinAlgError) as error:
        raise TrainingDiverged(
            f"{place}: {first_line(error)}. What was good is kept in {root}: the same command "
            "goes on from the last snapshot, or else from the task before"
        ) from error


def _by_step(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gather what was logged of losses and routes, a row a step."""
    rows: dict[int, dict[str, Any]] = {}
    for row in history:
        if "loss" in row or any(key.startswith(ROUTES) for key in row):
            rows.setdefault(row["step"], {}).update(row)
    return [
        {key: row[key] for key in _LOGGED if key in row}
        | {key: row[key] for key in sorted(row) if key.startswith(ROUTES)}
        for row in rows.values()
    ]


def _arguments(
    config: TrainConfig,
    share: Share,
    folder: Path,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    epochs: float,
) -> TrainingArguments:
    on_cpu = device.type == "cpu"
    extra: dict[str, Any] = {_CHECKPOINTING: True} if config.activation_checkpointing else {}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=share.examples,
        gradient_accumulation_steps=share.accumulation,
        num_train_epochs=epochs,
        max_steps=config.max_steps if config.max_steps is not None else -1,
        learning_rate=config.learning_rate or 0.0,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type=config.scheduler,
        max_grad_norm=config.max_grad_norm,
        **extra,
        bf16=dtype == torch.bfloat16 and not on_cpu,  # autocast; adapters stay float32
        fp16=dtype == torch.float16 and not on_cpu,
        seed=seed,
        data_seed=seed,
        use_cpu=on_cpu,
        save_strategy="no",  # StepWatch asks for snapshots; after the last step there is none
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
    )
    one_device(arguments)
    return arguments
