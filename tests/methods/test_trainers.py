"""The same object in other people's training loops: Trainer, SFTTrainer, checkpoints, ranks."""

from __future__ import annotations

import peft
import pytest
import torch
from torch.nn import Parameter
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.methods.training import SMALL, attached, weights
from tests.tuner.llava import tiny_batch
from undrift.errors import ConfigError
from undrift.methods.clmoe import ClMoe
from undrift.methods.disco import Disco
from undrift.methods.eblora import EbLora
from undrift.methods.finetune import Finetune
from undrift.methods.keeplora import KeepLora
from undrift.methods.modalprompt import ModalPrompt
from undrift.methods.moelora import MoeLora
from undrift.methods.octopus import Octopus
from undrift.methods.proglora import ProgLora
from undrift.methods.same import Same
from undrift.methods.steadylora import SteadyLora
from undrift.tuner import MoeLoraConfig, statistics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
MAKE = {
    "same": lambda: Same(**SMALL, tau=0.5, columns=8),
    "same-paper": lambda: Same("paper", **SMALL, columns=8),
    "steadylora": lambda: SteadyLora(**SMALL, columns=8),
    "moelora": lambda: MoeLora(**SMALL),
    "finetune": lambda: Finetune(**SMALL),
    "disco": lambda: Disco(**SMALL, modality="both"),
    "modalprompt": lambda: ModalPrompt(**SMALL, prompt_length=4),
    "proglora": lambda: ProgLora("static", **SMALL),
    "clmoe": lambda: ClMoe(**SMALL),
    "keeplora": lambda: KeepLora(**SMALL),
    "eblora": lambda: EbLora(**SMALL),
    "octopus": lambda: Octopus(**SMALL, free=0.4),  # the kill is in the second stage
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MAKE if name != "same"]


class Task(Dataset):
    """Twelve examples that the task's number decides."""

    def __init__(self, number: int) -> None:
        batch = tiny_batch((9,) * 12, seed=number)
        if number % 2 == 0:
            batch["pixel_values"] = batch["pixel_values"] * 3
        self.rows = [{k: v[i] for k, v in batch.items()} for i in range(12)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


class Stop(TrainerCallback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.after:
            raise KeyboardInterrupt


def train(method, model, number, folder, callbacks=(), resume=None, **options):
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=2, learning_rate=3e-3, weight_decay=0.1,
        num_train_epochs=1, report_to=[], disable_tqdm=True, use_cpu=True, seed=number,
        logging_strategy="no", **({"save_strategy": "no"} | options),
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=Task(number), callbacks=[method, *callbacks])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.foreign("1.1")
@pytest.mark.parametrize("name", ["same", *SLOW])
def test_killed_inside_a_task_and_resumed_equals_uninterrupted(name, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    straight = MAKE[name]()
    model = attached(straight)
    train(straight, model, 1, tmp_path)
    train(straight, model, 2, tmp_path / "straight", **saving)

    killed = MAKE[name]()
    other = attached(killed)
    train(killed, other, 1, tmp_path)
    killed.save_state(other, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        train(killed, other, 2, tmp_path / "killed", callbacks=[Stop(5)], **saving)

    resumed = MAKE[name]()
    third = attached(resumed, seed=0)
    resumed.load_state(third, tmp_path / "one")
    resumed.task_index = 2
    checkpoint = str(tmp_path / "killed" / "checkpoint-3")
    train(resumed, third, 2, tmp_path / "killed", resume=checkpoint, **saving)
    for key, p in weights(model).items():
        assert torch.equal(p, weights(third)[key]), key
    straight.save_state(model, tmp_path / "a")
    resumed.save_state(third, tmp_path / "b")
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_gradient_accumulation_is_one_step_and_counts_every_token(tmp_path):
    method = Same(**SMALL, columns=8, task_weights="tokens")
    model = attached(method)
    train(method, model, 1, tmp_path, gradient_accumulation_steps=3)
    assert {int(each.history.tokens) for each in statistics(model).values()} == {12 * 9}


def test_two_tasks_on_a_users_own_sft_trainer(tmp_path):
    """`peft_config=MoeLoraConfig()` and `callbacks=[Same()]`, nothing else."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset as Table
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    method, config = Same(), MoeLoraConfig(num_experts=4, r=2)
    for number, word in enumerate("xy"):
        table = Table.from_dict({"text": [f"{word} a b {word} c"] * 8})
        args = trl.SFTConfig(
            str(tmp_path), per_device_train_batch_size=2, max_steps=4, report_to=[], bf16=False,
            use_cpu=True, disable_tqdm=True, save_strategy="no", gradient_checkpointing=False,
            max_length=None,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            model, args, train_dataset=table, processing_class=tokenizer, callbacks=[method],
            peft_config=config if number == 0 else None,
        )  # fmt: skip
        trainer.train()
        model = trainer.model
    trainer.save_model(str(tmp_path / "adapter"))
    assert {int(each.tasks) for each in statistics(model).values()} == {2}
    again = peft.PeftModel.from_pretrained(model.unload(), tmp_path / "adapter")
    assert {int(each.tasks) for each in statistics(again).values()} == {2}


def test_what_holds_parameters_that_are_not_the_models_is_refused(tmp_path):
    """As where a wrapper has put others in their place since the method took note of them."""

    class Stale(Same):
        def step_transforms(self, model):
            turns = super().step_transforms(model)
            return {Parameter(p.detach().clone()): turn for p, turn in turns.items()}

    method = Stale(**SMALL)
    model = attached(method)
    train(method, model, 1, tmp_path)  # there is nothing to hold yet
    with pytest.raises(ConfigError, match="no longer the model's"):
        train(method, model, 2, tmp_path)
