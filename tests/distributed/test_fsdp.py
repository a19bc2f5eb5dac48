"""FSDP2 in a plain `Trainer`: a sharded model learns, saves and resumes as a whole one.

accelerate turns FSDP on for accelerators only, and on CPUs trains under DDP without a word. So the
processes here are told that they are several GPUs, and the tests look at the parameters.
"""

from __future__ import annotations

import os
from pathlib import Path

import accelerate.state
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, set_seed

from tests.distributed.forked import Failed, forked
from tests.distributed.runs import pairs
from tests.distributed.test_trainers import (
    EXAMPLES,
    LEARNING,
    OPTIONS,
    arguments,
    collate,
    examples,
)
from tests.precision import float32_means_float64
from tests.tuner.llava import tiny_llava
from undrift.data.types import Example
from undrift.registry import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
SAVED, STOPPED = 5, 8  # steps of twelve
SHARDED = [name for name in LEARNING if not METHODS.load(name).why_not_sharded]


class Stop(TrainerCallback):
    """Ends the process in the middle of a task."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == STOPPED:
            os._exit(0)


def pretend_gpus() -> None:
    """Let accelerate take several processes on a CPU for several GPUs."""
    made = accelerate.state.PartialState.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    accelerate.state.PartialState.__init__ = init


def learn(
    folder: Path, name: str, processes: int, task: int, *, stop: bool = False, **fsdp: object
) -> None:
    """Learn a task in processes of its own, from where the one before or a checkpoint has left."""

    def work() -> None:
        rank = os.environ["RANK"]
        pretend_gpus()
        with float32_means_float64():
            set_seed(0)
            method = METHODS.load(name)(experts=4, rank=2, **OPTIONS.get(name, {}))
            model = method.attach(tiny_llava().double())
            if task > 1:
                method.load_state(model, folder / f"task{task - 1}")
            method.task_index = task
            named = [Example(str(i), "what is it?", ("it",)) for i in range(EXAMPLES)]
            method.examples(named, task)
            set_seed(task)
            checkpoints = folder / f"checkpoints{task}"
            last = checkpoints / f"checkpoint-{SAVED}"
            options = {"version": 2, "cpu_ram_efficient_loading": False} | fsdp
            options["auto_wrap_policy"] = "TRANSFORMER_BASED_WRAP"
            options["transformer_layer_cls_to_wrap"] = ["LlamaDecoderLayer"]
            sharded = {"fsdp": True, "fsdp_config": options} if fsdp else {}
            saves = {"save_strategy": "steps", "save_steps": SAVED}
            args = arguments(checkpoints, processes, task, **saves, **sharded)
            trainer = Trainer(
                model,
                args,
                data_collator=collate,
                train_dataset=examples(task),
                callbacks=[method, *([Stop()] if stop else [])],
            )
            trainer.train(resume_from_checkpoint=str(last) if last.is_dir() else None)
            cut = [n for n, p in model.named_parameters() if isinstance(p, DTensor)]
            assert len(cut) == (len(dict(model.named_parameters())) if fsdp else 0)
            if processes > 1:
                trainer.save_model(str(folder / f"trainers{task}"))  # one process writes
            out = folder / f"task{task}"
            method.save_state(model, out if rank == "0" else folder / f"others{task}-{rank}")

    forked(processes, folder, work)


def saved(folder: Path) -> dict[str, Tensor]:
    files = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    assert files
    return {f"{stem}:{key}": v for stem, file in files.items() for key, v in file.items()}


def learn_all(folder: Path, name: str, processes: int, **fsdp: object) -> dict[str, Tensor]:
    """Learn one task, stop inside the next, resume it; return what is known in the end."""
    learn(folder, name, processes, 1, **fsdp)
    if METHODS.load(name).schedule == "sequential":
        learn(folder, name, processes, 2, stop=True, **fsdp)
        assert (folder / f"checkpoints2/checkpoint-{SAVED}").is_dir()
        learn(folder, name, processes, 2, **fsdp)
        return saved(folder / "task2")
    return saved(folder / "task1")


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_model_learns_and_resumes_as_a_whole_one(name, tmp_path):
    one = learn_all(tmp_path / "one", name, 1)
    two = learn_all(tmp_path / "two", name, 2, state_dict_type="FULL_STATE_DICT")
    for key, a, b in pairs(two, one):
        error, scale = float((a - b).abs().max()), max(float(b.abs().max()), 1e-2)
        assert error <= 1e-9 * scale, f"{key}: {error:.2e} of {scale:.2e}"
    for task in (tmp_path / "two").glob("task?"):
        trainers = saved(tmp_path / "two" / f"trainers{task.name[-1]}")
        assert all(torch.equal(value, trainers[key]) for key, value in saved(task).items())
    assert_base_is_nowhere(tmp_path / "two")


def assert_base_is_nowhere(folder: Path) -> None:
    """No adapter and no checkpoint holds a weight of the base."""
    base = {name for name, _ in tiny_llava().named_parameters()}
    adapters = [*folder.rglob("adapter_model.safetensors")]
    weights = [*folder.rglob("pytorch_model_fsdp.bin")]
    assert len(adapters) >= 2 and weights
    held = [load_file(file) for file in adapters]
    held += [torch.load(file, weights_only=True) for file in weights]
    for names in held:
        assert not base & {name.removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize("name", [name for name in LEARNING if METHODS.load(name).why_not_sharded])
def test_what_cannot_learn_there_is_refused(name, tmp_path, capfd):
    with pytest.raises(Failed):
        learn(tmp_path, name, 2, 1, state_dict_type="FULL_STATE_DICT")
    assert f"ConfigError: {name} cannot learn under FSDP2" in capfd.readouterr().err


def test_a_setting_that_loses_buffers_is_refused_in_one_line(tmp_path, capfd):
    with pytest.raises(Failed):
        learn(tmp_path, "same", 2, 1, cpu_ram_efficient_loading=True)
    assert "set it to false in fsdp_config" in capfd.readouterr().err
