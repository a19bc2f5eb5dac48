"""The model card of an adapter: its lines load the adapter, and a user's own card stays."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys

import peft
import pytest
import torch

from tests.methods.training import SMALL, learn, logits
from tests.tuner.llava import tiny_llava
from undrift.methods.disco import Disco
from undrift.methods.finetune import Finetune
from undrift.methods.same import Same
from undrift.methods.steadylora import SteadyLora
from undrift.tuner import MoeLoraConfig

pytestmark = [
    pytest.mark.foreign("7.7"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]
MAKE = {
    "same": lambda: Same(**SMALL, columns=8),
    "steadylora": lambda: SteadyLora(**SMALL, columns=8),
    "disco": lambda: Disco(**SMALL),
    "finetune": lambda: Finetune(**SMALL),
}
EACH = [n if n == "same" else pytest.param(n, marks=pytest.mark.slow) for n in MAKE]


def blocks(folder):
    """The two programs in a card, with the place of the base, which it does not name."""
    text = (folder / "README.md").read_text()
    assert str(folder.parent) not in text
    text = text.replace("base = 'base'", f"base = {str(folder.parent / 'base')!r}")
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    return found


def saved(name, tmp_path):
    """A method's adapter on a model that lies in a folder, without its processor."""
    tiny_llava().save_pretrained(tmp_path / "base")
    base = type(tiny_llava()).from_pretrained(tmp_path / "base")
    method = MAKE[name]()
    torch.manual_seed(0)
    model = method.attach(base)
    learn(method, model, 1, steps=2)
    model.save_pretrained(tmp_path / "adapter")
    return method, model


@pytest.mark.parametrize("name", EACH)
def test_its_lines_load_the_adapter_as_they_stand(name, tmp_path, monkeypatch):
    method, model = saved(name, tmp_path)
    monkeypatch.chdir(tmp_path / "adapter")
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda base: base)
    for number, block in enumerate(blocks(tmp_path / "adapter")):
        (tmp_path / "block.py").write_text(block)
        made = runpy.run_path(str(tmp_path / "block.py"))
        if number == 1:
            assert type(made["method"]) is type(method)
            assert made["method"].config == method.config
            learn(made["method"], made["model"], 2, steps=1)
            assert made["method"].task_index == 3
        elif name == "disco":
            with method.predicting(model), made["method"].predicting(made["model"]):
                assert torch.equal(logits(made["model"]), logits(model))
        else:
            assert torch.equal(logits(made["model"]), logits(model))


@pytest.mark.slow
def test_its_lines_load_the_adapter_in_a_new_program(tmp_path):
    saved("same", tmp_path)
    block = blocks(tmp_path / "adapter")[0].replace("processor = ", "# ")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path / "adapter", capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_it_says_what_the_adapter_is(tmp_path):
    saved("same", tmp_path)
    text = (tmp_path / "adapter" / "README.md").read_text()
    for part in (
        "MOE_LORA",
        "`same`",
        "columns 8",
        "Tasks learned: 1",
        "Licence",
        "import undrift",
    ):
        assert part in text
    assert "More Information Needed" not in text


def test_it_is_made_anew_while_nobody_has_changed_it(tmp_path):
    method, model = saved("same", tmp_path)
    learn(method, model, 2, steps=1)
    model.save_pretrained(tmp_path / "adapter")
    assert "Tasks learned: 2" in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize("how", ["written", "ours changed", "PEFT's changed", "damaged"])
def test_a_users_own_card_is_never_overwritten(how, tmp_path):
    _, model = saved("steadylora", tmp_path)
    card = tmp_path / "adapter" / "README.md"
    if how == "written":
        card.write_text("# My adapter\n\nIt reads invoices.\n")
    elif how == "ours changed":
        card.write_text(
            card.read_text().replace("# An adapter", "It reads invoices.\n\n# An adapter")
        )
    elif how == "damaged":
        card.write_text("---\n: [\n---\nIt reads invoices.\n")
    else:
        plain = peft.get_peft_model(tiny_llava(), peft.LoraConfig(target_modules=["q_proj"]))
        card.unlink()
        plain.save_pretrained(tmp_path / "plain")
        text = (tmp_path / "plain" / "README.md").read_text()
        card.write_text(text.replace("[More Information Needed]", "It reads invoices.", 1))
    if how == "damaged":  # PEFT itself reads it, and says so
        with pytest.raises(Exception, match=r"YAML|yaml|expected"):
            model.save_pretrained(tmp_path / "adapter")
    else:
        model.save_pretrained(tmp_path / "adapter")
    assert "It reads invoices." in card.read_text()


def test_pefts_empty_template_is_replaced(tmp_path):
    plain = peft.get_peft_model(tiny_llava(), peft.LoraConfig(target_modules=["q_proj"]))
    plain.save_pretrained(tmp_path / "adapter")
    assert "More Information Needed" in (tmp_path / "adapter" / "README.md").read_text()
    saved("same", tmp_path)
    assert "More Information Needed" not in (tmp_path / "adapter" / "README.md").read_text()


def test_a_method_of_ones_own_that_has_no_name_here_still_saves(tmp_path):
    class Mine(Finetune):
        name = "mine"

    method = Mine(**SMALL)
    torch.manual_seed(0)
    method.save_state(method.attach(tiny_llava()), tmp_path)
    assert "`mine`" in (tmp_path / "README.md").read_text()


def test_experts_without_a_method_have_one_too(tmp_path):
    model = peft.get_peft_model(tiny_llava(), MoeLoraConfig(num_experts=2, r=2), "b")
    model.save_pretrained(tmp_path)
    assert "import undrift" in (tmp_path / "b" / "README.md").read_text()
