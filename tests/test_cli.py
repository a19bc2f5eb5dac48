"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.run.tiny import save_tiny, tiny_benchmark, tiny_llava
from undrift import cli
from undrift.errors import missing_extra
from undrift.registry import BENCHMARKS
from undrift.rundir import read_json, read_lines

SMALL = [
    *("--set", "method.experts=2", "--set", "method.rank=2"),
    *("--set", "train.max_steps=2", "--set", "train.learning_rate=1e-2"),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def undrift(tmp_path, monkeypatch, command_line):
    """Run a command in an empty folder, on the tiny benchmark; return status, output, errors."""
    made = tiny_benchmark(tmp_path / "data", tasks=2)
    monkeypatch.setattr(type(BENCHMARKS), "load", _load(made))
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    return command_line


def _load(made):
    load = type(BENCHMARKS).load
    return lambda self, name: (
        (lambda root, progress=True: made) if self is BENCHMARKS else load(self, name)
    )


@pytest.fixture(scope="module")
def run_of_the_module(tmp_path_factory):
    return tmp_path_factory.mktemp("learned") / "one"


@pytest.fixture
def learned(undrift, backbone, tmp_path, run_of_the_module):
    """A finished run, made once, whose page could not be drawn, which is no error of the run."""
    if run_of_the_module.is_dir():
        return shutil.copytree(run_of_the_module, tmp_path / "one")
    words = ("run", "pocket", "--method", "moelora", "--backbone", backbone, "--out", "one")

    def no_page(*_):
        raise ValueError("no font")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undrift.report.page.page", no_page)
        status, _, err = undrift(*words, *SMALL, "--quiet")
    assert status == 0 and "one/report.html: no font" in err
    shutil.copytree(tmp_path / "one", run_of_the_module)
    return tmp_path / "one"


def test_help_and_list_are_light():
    code = """
import sys
from undrift.cli import app, main
commands = [command.name for command in app.registered_commands]
for words in (["--help"], ["list"], *([command, "--help"] for command in commands)):
    sys.argv = ["undrift", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
    heavy = {"torch", "transformers", "peft", "numpy", "matplotlib"} & {*sys.modules}
    assert not heavy, (words, heavy)
print(len(commands), "COMMANDS")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "16 COMMANDS" in done.stdout, done.stderr
    for command in (
        "run",
        "study",
        "eval",
        "predict",
        "score",
        "compare",
        "diagnose",
        "report",
        "list",
    ):
        assert command in done.stdout


def test_list(undrift):
    status, out, _ = undrift("list")
    assert status == 0
    for name in ("same", "moelora", "pocket", "finetune"):
        assert f"  {name}\n" in out
    methods = json.loads(undrift("list", "methods", "--json")[1])["methods"]
    known = {row["name"]: row for row in methods}
    assert known["same"]["paper"] == "SAME, arXiv:2602.01990"
    lines = undrift("list", "methods")[1].splitlines()
    assert [line.split()[0] for line in lines] == list(known)
    for line, row in zip(lines, methods, strict=True):
        assert line.endswith(f"{row['summary']} [{row['paper']}]")
    status, _, err = undrift("list", "method")
    assert status == 2 and "did you mean 'methods'" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "pokcet"), "unknown benchmark 'pokcet'; did you mean 'pocket'"),
        (("run", "pocket", "--method", "smae"), "did you mean 'same'"),
        (("run", "pocket", "--method", "same-papre"), "did you mean 'paper'"),
        (("run", "pocket", "--set", "method.raech=1"), "did you mean 'method.reach'"),
        (("run", "pocket", "--set", "train.epoch=1"), "did you mean 'train.epochs'"),
        (("run", "pocket", "--profile", "ligt"), "did you mean 'lite'"),
        (("run", "pocket", "--order", "revresed"), "did you mean 'reversed'"),
        (("run", "pocket", "--backbone", "pokcet"), "did you mean 'pocket'"),
        (("run", "none.yaml"), "unknown file or preset 'none.yaml'"),
        (("run", "llava-1.5-7b/coin-papre.yaml"), "did you mean 'llava-1.5-7b/coin-paper.yaml'"),
        (("run", "pocket", "--set", "seed"), "expected KEY=VALUE"),
        (("run", "pocket", "--report-to", "tensorbord"), "did you mean 'tensorboard'"),
        (("run", "pocket", "--report-to", "none,wandbb"), "did you mean 'wandb'"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_name(undrift, words, message):
    status, out, err = undrift(*words)
    assert status == 2 and message in err and "Traceback" not in err
    assert out == "" and err.count("\n") == 1


def test_version(undrift):
    assert undrift("--version") == (0, f"undrift {version('undrift')}\n", "")
    assert "--install-completion" in undrift("--help")[1]


@pytest.mark.parametrize(
    ("typed", "completed"), [("undrift le", "learn"), ("undrift learn --max-d", "--max-drop")]
)
def test_the_shell_completes(typed, completed):
    code = "import sys; sys.argv = ['undrift']; from undrift.cli import main; main()"
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **words, "_UNDRIFT_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [completed]


def test_an_untested_system_is_told_once(undrift, monkeypatch):
    assert cli.untested("linux") is None
    assert "not on darwin" in cli.untested("darwin")
    monkeypatch.setattr(cli, "_TESTED", "another")
    assert undrift("list", "benchmarks")[2].count("tested on Linux only") == 1


def test_a_device_that_is_not_there(undrift, monkeypatch):
    monkeypatch.setattr("undrift.run.load_model.devices", lambda: ["cpu"])
    status, out, err = undrift("run", "pocket", "--device", "cuda")
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "no device is called 'cuda' on this machine (" in err and "auto, cpu" in err


def test_run_prints_a_table_and_goes_on_by_itself(undrift, backbone, tmp_path):
    words = ("run", "pocket", "--method", "same", "--backbone", backbone, *SMALL)
    status, out, err = undrift(*words, "--watch-routes", 1)
    assert status == 0 and "same" in out and "lower" in out and "router drift" in out
    assert "task 1 of 2: learned lower (2 steps, loss" in err
    folder = tmp_path / "runs" / "pocket-same-s0"
    assert read_json(folder / "matrix.json")["metrics"]["last"] is not None
    assert "routes/overlap/lower" in read_lines(folder / "tasks/02-upper/train.jsonl")[-1]
    assert undrift(*words)[0] == 0
    status, _, err = undrift(*words, "--seed", 1, "--out", folder)
    assert status == 1 and "holds another run" in err
    assert undrift(*words, "--seed", 1, "--out", folder, "--overwrite", "--quiet") == (0, "", "")
    assert undrift("run", folder / "run.yaml", "--out", folder, "--quiet")[0] == 0


def test_json_is_one_object_a_line(undrift, backbone):
    words = ("run", "pocket", "--method", "zeroshot", "--backbone", backbone, "--json")
    status, out, err = undrift(*words)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and err == ""
    assert [line.get("event") for line in lines] == ["plan", "measured", "finished", None]
    assert lines[-1]["tasks"] == ["lower", "upper"] and len(lines[-1]["matrix"]) == 1


def test_yaml_with_flags_on_top(undrift, backbone, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"benchmark: pocket\nbackbone: {backbone}\nmethod: finetune\nseed: 5\n"
    )
    assert undrift("run", "c.yaml", "--quiet", "--seed", 6, "--out", "x", *SMALL)[0] == 0
    manifest = read_json(tmp_path / "x" / "manifest.json")
    assert (manifest["seed"], manifest["method"]) == (6, "finetune")


def test_predict(undrift, learned, tmp_path):
    picture = tmp_path / "data" / "lower" / "12.png"
    row = read_lines(learned / "eval/after-02/on-01.jsonl")[0]
    words = ("predict", learned, "--image", picture, "--question", row["question"])
    status, out, _ = undrift(*words, "--max-new-tokens", 6)
    assert status == 0 and out.strip() == row["prediction"]
    found = json.loads(undrift(*words, "--max-new-tokens", 6, "--json")[1])
    assert found["answer"] == row["prediction"] and "02-upper" in found["adapter"]
    first = learned / "tasks" / "01-lower"
    assert undrift("predict", first, "--question", "hello?")[0] == 0
    status, _, err = undrift("predict", tmp_path / "data", "--question", "hello?")
    assert status == 1 and "holds no adapter" in err
    status, _, err = undrift("predict", learned, "--image", "no.png", "--question", "what?")
    assert status == 1 and "no.png" in err


def test_adapter_for_another_base(undrift, learned, tmp_path):
    other = save_tiny(tmp_path / "other", seed=1)
    status, _, err = undrift("predict", learned, "--backbone", other, "--question", "what?")
    assert status == 1 and "was trained on the backbone" in err and "give its own" in err


def test_adapter_of_a_users_own_trainer(undrift, learned, backbone, tmp_path):
    picture = tmp_path / "data" / "lower" / "12.png"
    row = read_lines(learned / "eval/after-02/on-01.jsonl")[0]
    adapter = tmp_path / "foreign"
    shutil.copytree(learned / "tasks" / "02-upper" / "adapter", adapter)
    (adapter / "undrift.json").unlink()
    words = ("predict", adapter, "--image", picture, "--question", row["question"])
    status, _, err = undrift(*words)
    assert status == 2 and "name it with --backbone" in err
    status, out, _ = undrift(*words, "--max-new-tokens", 6, "--backbone", backbone)
    assert status == 0 and out.strip() == row["prediction"]
    model, processor = tiny_llava(layers=1)
    model.save_pretrained(tmp_path / "smaller")
    processor.save_pretrained(tmp_path / "smaller")
    status, _, err = undrift(*words, "--backbone", tmp_path / "smaller")
    assert status == 1 and "does not fit: it has an unknown" in err and err.count("\n") == 1


def test_missing_extra_says_which_command_mends_it(undrift, monkeypatch):
    def absent(root, progress=True):
        raise missing_extra("rdkit", "pocket", "the pocket")

    monkeypatch.setattr(type(BENCHMARKS), "load", lambda self, name: absent)
    status, _, err = undrift("eval", ".", "--benchmark", "pocket")
    assert status == 1 and "pip install 'undrift[pocket]'" in err


def test_eval_repeats_the_last_row(undrift, learned):
    status, out, _ = undrift("eval", learned, "--json")
    scores = json.loads(out)["scores"]
    matrix = read_json(learned / "matrix.json")["matrix"]
    assert status == 0 and [scores[t]["strict"] for t in ("lower", "upper")] == matrix[-1]
    status, out, _ = undrift("eval", learned, "--task", "upper", "--out", "kept", "--quiet")
    assert status == 0 and "upper" in out and "lower" not in out
    assert len(read_lines(Path("kept/upper.jsonl"))) == 6
    assert undrift("eval", learned, "--task", "uper")[0] == 2


def test_diagnose_and_report(undrift, learned):
    status, out, err = undrift("diagnose", learned, "--probe", 4)
    assert status == 0, err
    assert "drifted" in out and "overlap" in out and "lower" in out
    status, out, _ = undrift("diagnose", learned, "--probe", 4, "--json")
    found = json.loads(out)
    assert status == 0 and found["causes"] == read_json(learned / "diagnose" / "causes.json")
    lines = undrift("report", learned, "--out", "page.html", "--no-figures")[1].splitlines()
    assert lines[0].startswith("moelora ") and lines[-1] == "written: page.html"
    assert "Router drift" in Path("page.html").read_text()
    status, _, err = undrift("diagnose", learned, "--adapters", "lower", "green")
    assert status == 2 and "no task 'green'; it has learned 1 lower, 2 upper" in err
    status, _, err = undrift("diagnose", learned.parent / "data")
    assert status == 1 and "is not a run" in err


def test_compare_and_report(undrift, learned, backbone, tmp_path):
    words = ("run", "pocket", "--method", "finetune", "--backbone", backbone, "--out", "two")
    assert undrift(*words, *SMALL, "--quiet")[0] == 0
    assert "<html" in (tmp_path / "two" / "report.html").read_text()
    status, out, _ = undrift("compare", learned, "two", "--out", "both")
    assert status == 0 and "moelora" in out and "finetune" in out
    summary = read_json(tmp_path / "both" / "summary.json")["methods"]
    assert set(summary) == {"moelora", "finetune"}
    assert summary["moelora"]["matrix"] == read_json(learned / "matrix.json")["matrix"]
    assert "<html" in (tmp_path / "both" / "report.html").read_text()
    assert json.loads(undrift("compare", learned, "two", "--json")[1])["methods"] == summary
    assert undrift("compare", learned, "two", "--markdown")[1].startswith("| task |")
    out = undrift("compare", learned, "two", "--all")[1]
    assert "MAA = (1/T)" in out and "not measurable: one seed" in out
    for flag, name, start in (
        ("--markdown", "comparison.md", "| task |"),
        ("--latex", "comparison.tex", "% needs"),
        ("--csv", "comparison.csv", "source,method,"),
    ):
        out = undrift("compare", learned, "two", flag, "--published", "coin", "--out", "both")[1]
        assert out.startswith(start) and (tmp_path / "both" / name).read_text() == out
        assert "HiDe-LLaVA" in out
    out = undrift("compare", learned, "--published", "coin")[1]
    assert "NOT directly comparable" in out and "moelora is left out" in out
    assert "did you mean 'coin'" in undrift("compare", learned, "--published", "coni")[2]
    assert undrift("compare", learned, "--csv", "--json")[0] == 2
    more = ("--seed", 1, "--set", "train.accumulation=2", "--out", "three")
    assert undrift(*words[:-2], *SMALL, *more, "--quiet")[0] == 0
    out = undrift("compare", "two", "three")[1]
    assert "protocol differences (finetune (two) | finetune (three)):" in out
    assert "  training.accumulation: 1 | 2\n" in out and "Margins" not in out
    assert undrift("report", learned, "two", "--out", "page.html")[0] == 0
    assert (tmp_path / "page.html").is_file()
    status, _, err = undrift("compare", tmp_path / "data")
    assert status == 1 and "is not a run" in err


def test_study_lists_its_cells_and_runs_none(undrift, tmp_path):
    (tmp_path / "s.yaml").write_text(
        "benchmark: pocket\nseeds: [0, 1]\norders: [reversed]\nresults: out/s\n"
        "rows: [zeroshot, {label: mine, method: same, set: {method.delta: 0.9}}]\n"
    )
    status, out, err = undrift("study", "s.yaml", "--list")
    assert status == 0 and err == "" and "3 cells, 0 of them done" in out
    command = "undrift run pocket --method same --seed 1 --order reversed --set method.delta=0.9"
    assert f"mine, seed 1, order reversed\n  {command} --out runs/study-s/same-reversed-s1-" in out
    cells = json.loads(undrift("study", "s.yaml", "--list", "--json", "--only", "mine")[1])
    assert [cell["seed"] for cell in cells] == [0, 1] and not cells[0]["done"]
    assert {path.name for path in tmp_path.iterdir()} == {"s.yaml", "data"}
    bare = undrift("study", "s.yaml", "--commands")[1].splitlines()
    assert [*map(str.strip, out.splitlines()[1:-1:2])] == bare
    assert undrift("study", "s.yaml", "--list", "--gather")[0] == 2
    assert undrift("study", "s.yaml", "--commands", "--prune")[0] == 2
    assert undrift("study", "s.yaml", "--only", "mien")[0] == 2
    more = "run: {reading: {qestions: own}}\n"
    (tmp_path / "t.yaml").write_text((tmp_path / "s.yaml").read_text() + more)
    status, _, err = undrift("study", "t.yaml", "--list")
    assert status == 2 and "'pocket' has no options; leave out reading.qestions" in err
    (tmp_path / "s.yaml").write_text("benchmark: pocket\nsead: [0]\n")
    status, _, err = undrift("study", "s.yaml")
    assert status == 2 and "did you mean 'seeds'" in err


def test_study_help_shows_a_file(undrift):
    status, out, _ = undrift("study", "--help")
    assert status == 0
    for line in ("seeds: [0, 1, 2]", "- {label: no router, method: same, set:", "--only"):
        assert line in out


def test_a_stopped_command_says_how_to_go_on(undrift, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("undrift.run.task_loop.Run.go", stopped)
    words = ("run", "pocket", "--method", "zeroshot", "--quiet")
    assert undrift(*words) == (130, "", "stopped; the same command goes on where it was\n")
