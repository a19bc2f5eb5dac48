"""What is not finite any more stops the training and is never saved."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from tests.run.test_task_loop import assert_same_numbers
from undrift.errors import TrainingDiverged
from undrift.run import trainer

SETTINGS = {"train": {"max_steps": 6, "checkpoint_steps": 2}}


def hooked(model: torch.nn.Module, value: float) -> None:
    """Make the next gradient of one matrix hold a bad number."""
    name, weight = next((n, p) for n, p in model.named_parameters() if "lora_B" in n)
    assert weight.requires_grad, name

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient.index_fill(0, torch.tensor([0]), value)

    handle = weight.register_hook(spoil)


def spoil_weight(model: torch.nn.Module) -> None:
    next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] = math.nan


def spoil_sums(watch: trainer.StepWatch) -> None:
    known = watch._statistics()
    sums = next(t for n, t in known.items() if n.startswith("sum ") and t.is_floating_point())
    sums.view(-1)[0] = math.inf


def in_second_task(when: str, step: int, spoil, monkeypatch) -> None:
    real = getattr(trainer.StepWatch, when)

    def patched(self, args, state, control, model=None, **rest):
        if "upper" in str(args.output_dir) and state.global_step == step:
            spoil(self if spoil is spoil_sums else model)
        return real(self, args, state, control, model=model, **rest)

    monkeypatch.setattr(trainer.StepWatch, when, patched)


nan_gradient, inf_gradient = partial(hooked, value=math.nan), partial(hooked, value=math.inf)
LINEAR = r"lora_B\S* of the linear \S+_proj"
SPOILT = [
    ("on_step_begin", 3, nan_gradient, rf"gradient of \S*{LINEAR} is nan at step 4", 2),
    ("on_step_end", 3, spoil_weight, rf"weight \S*{LINEAR} is not finite", 2),
    ("on_step_end", 6, spoil_sums, r"statistic .+ is not finite", 4),
]
SPOILT_AS_WELL = [
    ("on_step_begin", 3, inf_gradient, rf"gradient of \S*{LINEAR} is inf at step 4", 2),
    ("on_step_end", 4, spoil_weight, rf"weight \S*{LINEAR} is not finite", 2),
    ("on_step_end", 6, spoil_weight, rf"weight \S*{LINEAR} is not finite", 4),
    ("on_step_end", 3, spoil_sums, r"statistic .+ is not finite", 2),
]


@pytest.mark.parametrize(
    ("when", "step", "spoil", "said", "kept"),
    [*SPOILT, *(pytest.param(*each, marks=pytest.mark.slow) for each in SPOILT_AS_WELL)],
)
def test_what_is_not_finite_names_the_batch_and_is_not_saved(
    make_run, tmp_path, monkeypatch, when, step, spoil, said, kept
):
    clip = 0.0 if spoil is inf_gradient else 1.0
    settings = {"train": {**SETTINGS["train"], "max_grad_norm": clip}}
    with monkeypatch.context() as patch:
        in_second_task(when, step, spoil, patch)
        with pytest.raises(TrainingDiverged, match=rf"task 2 of 2 \(upper\): the {said}") as caught:
            make_run("same", **settings).go()
    named = [word for word in str(caught.value).replace(",", ";").split() if "upper-" in word]
    assert len(named) == 4 and "\n" not in str(caught.value)
    task = tmp_path / "run/tasks/02-upper"
    assert [path.name for path in (task / "training").iterdir()] == [f"checkpoint-{kept}"]
    assert not (task / "adapter").exists() and (tmp_path / "run/tasks/01-lower/DONE").exists()
    for file in task.rglob("*.safetensors"):
        assert all(each.float().isfinite().all() for each in load_file(file).values())


def test_after_a_bad_gradient_the_same_command_goes_on(make_run, tmp_path, monkeypatch):
    make_run("same", "straight", **SETTINGS).go()
    with monkeypatch.context() as patch:
        in_second_task("on_step_begin", 3, nan_gradient, patch)
        with pytest.raises(TrainingDiverged):
            make_run("same", **SETTINGS).go()
    make_run("same", **SETTINGS).go()
    assert_same_numbers(tmp_path / "straight", tmp_path / "run")


def test_a_scaler_may_leave_a_step_out():
    watch, model = trainer.StepWatch(1), torch.nn.Linear(1, 1)
    watch.see(torch.tensor(1.0), ["a"])
    watch.see_gradients(None, model)
    watch.see(torch.tensor(1.0), ["a"])
    with pytest.raises(TrainingDiverged, match="gradients' norm is inf at step 1, on the batch"):
        watch.see_gradients(torch.tensor(math.inf), model)


def test_a_decomposition_that_fails_is_told_with_its_task(tmp_path):
    with (
        pytest.raises(TrainingDiverged, match=r"task 1: linalg\.eigh: "),
        trainer.diverging("task 1", tmp_path),
    ):
        torch.linalg.eigh(torch.full((3, 3), math.nan))
