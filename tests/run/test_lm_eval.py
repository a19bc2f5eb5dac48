"""Tasks of lm-eval, asked of a model in memory by `undrift eval --lm-eval`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.needed import needed
from undrift.run.evaluators.lm_eval_scores import LmEval
from undrift.run.predict import open_several

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
needed("lm_eval")

ROOT = Path(__file__).parents[2]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {root}/{name}.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" red", " green"]
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A task of twelve questions, half of whose answers are the first."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"question": f"which is {number}?", "answer": number % 2} for number in range(12)]
    (folder / "pick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pick.yaml").write_text(TASK.format(name="pick", root=folder))
    return folder


def undrift(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "undrift", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )


def by_hand(opened, tasks) -> float:
    """The share of questions whose right answer is the likelier, computed without lm-eval."""
    tokenizer, right = opened.backbone.tokenizer, 0
    rows = [json.loads(line) for line in (tasks / "pick.jsonl").read_text().splitlines()]
    for row in rows:
        worth = []
        for choice in (" red", " green"):
            context = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
            whole = tokenizer(row["question"] + choice, add_special_tokens=False)["input_ids"]
            with torch.inference_mode(), opened.method.predicting(opened.model):
                logits = opened.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            places = range(len(context), len(whole))
            worth.append(float(sum(logits[place - 1, whole[place]] for place in places)))
        right += int(worth[row["answer"]] > worth[1 - row["answer"]])
    return right / len(rows)


def test_the_command_scores_the_adapter_beside_its_base(make_run, tasks, tmp_path, backbone_folder):
    make_run("same", out="run", train={"learning_rate": 0.3, "max_steps": 6}).go()
    words = ("eval", tmp_path / "run", "--lm-eval", "pick", "--include-path", tasks)
    done = undrift(*words, "--with-base", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    adapter, base = open_several([str(tmp_path / "run"), "base"])
    assert found["scores"]["pick"]["acc,none"] == pytest.approx(by_hand(adapter, tasks))
    assert found["base"]["pick"]["acc,none"] == pytest.approx(by_hand(base, tasks))
    assert found["scores"]["pick"]["acc_stderr,none"] > 0
    done = undrift(*words, "--limit", 4)
    assert done.returncode == 0 and "pick" in done.stdout and "acc" in done.stdout


@pytest.mark.parametrize("method", ["modalprompt", "disco"])
def test_methods_that_decide_by_the_prompt(make_run, tasks, tmp_path, method):
    make_run(method, out="run").go()
    (adapter,) = open_several([str(tmp_path / "run")])
    found = LmEval(["pick"], tasks, None, 4).scores(adapter)
    assert 0 <= found["pick"]["acc,none"] <= 1


def test_mistakes_are_one_line(tasks, backbone_folder):
    words = ("eval", backbone_folder, "--include-path", tasks, "--lm-eval")
    for more, message in (
        (("pikc",), "unknown task of lm-eval 'pikc'; did you mean 'pick'"),
        (("pick", "--benchmark", "pocket"), "leave the others out"),
    ):
        done = undrift(*words, *more)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
