"""A scorer of one's own, as CONTRIBUTING.md shows it: from the data to the report, in both ways."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.run.own import write_rows, write_task
from tests.run.tiny import save_tiny
from undrift.data.types import Example, Task
from undrift.errors import ConfigError, DataError, UnknownName
from undrift.run.load_tasks import check_answers
from undrift.run.progress import Progress
from undrift.rundir import read_json, read_lines
from undrift.scoring import SCORERS, check_scorer, find_scorer, rules_of, score, scores_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.foreign("5.scorer"),
]
GUIDE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
GROUP = "undrift.scorers"


def block(language, holds):
    blocks = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    (text,) = [text for text in blocks if holds in text]
    return text


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package made of modules' texts, with entry points, as pip would."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def made(name, scorers, **modules):
        (site / name).mkdir(parents=True)
        for module, text in {"__init__": "", **modules}.items():
            (site / name / f"{module}.py").write_text(text)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        points = "".join(f"{scorer} = {place}\n" for scorer, place in scorers.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")

    yield made
    for module in set(sys.modules) - before:
        if (getattr(sys.modules[module], "__file__", None) or "").startswith(str(site)):
            del sys.modules[module]


@pytest.fixture
def guide(package):
    """The guide's package: its Python block is the module that its TOML block names."""
    name, place = re.findall(r'(\w+) = "(.*)"', block("toml", GROUP))[0]
    module = place.partition(":")[0]
    folder, _, file = module.partition(".")
    package(folder, {name: place}, **{file: block("python", "def starts")})
    return name


@pytest.fixture
def undrift(monkeypatch, command_line, tmp_path):
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*words, status=0):
        ended, out, err = command_line(*words)
        assert ended == status, (out, err)
        return out + err

    return run


@pytest.fixture
def data(tmp_path):
    save_tiny(tmp_path / "model")
    lines = ""
    for name in ("colours", "capitals"):
        write_task(tmp_path, name)
        lines += (
            f"- {{name: {name}, train: {name}.jsonl, test: {name}-test.jsonl, scorer: starts}}\n"
        )
    (tmp_path / "tasks.yaml").write_text(lines)
    return tmp_path / "tasks.yaml"


SMALL = ("--set", "train.max_steps=2", "--set", "train.batch_size=4", "--quiet")


@pytest.fixture
def learned(guide, undrift, data, tmp_path):
    """A run of both tasks, looked through by the doctor before."""
    undrift("doctor", "folder", "--data", data)
    words = ("run", "folder", "--data", data, "--backbone", "model", "--method", "moelora")
    options = ("method.experts=2", "method.rank=2", "train.learning_rate=0.01")
    undrift(*words, "--out", "run", *SMALL, *(w for o in options for w in ("--set", o)))
    (tmp_path / "run/report.html").unlink()  # it is written anew below
    return tmp_path / "run"


@pytest.mark.slow
def test_the_guides_package_works_from_training_to_report(learned, guide, undrift):
    assert guide in undrift("list", "scorers")
    assert read_json(learned / "matrix.json")["metrics"]["last"] is not None
    line = read_lines(learned / "eval/after-02/on-01.jsonl")[0]
    assert (line["strict"], line["caseless"]) == score(guide, line["prediction"], line["answers"])
    undrift("report", "run", "--no-figures")
    assert (learned / "report.html").is_file()
    said = [{"question_id": n, "text": "red sky"} for n in range(8, 12)]
    write_rows(learned.parent / "said.jsonl", said)
    words = ("score", guide, "said.jsonl", "--answers", "colours-test.jsonl")
    found = json.loads(undrift(*words, "--json"))["files"]["said.jsonl"]
    assert found["percent"] == {"strict": 25.0, "lenient": 25.0, "form": 100.0}
    assert re.search(r"strict +│ +25.00", undrift(*words))


@pytest.mark.slow
def test_and_in_every_other_command(learned, guide, undrift, data):
    shutil.copytree(learned, learned.parent / "again")
    undrift("compare", "run", "again", "--out", "compared")
    undrift("diagnose", "run", "--data", data, "--quiet")
    undrift("report", "run")
    undrift("eval", "run", "--out", "asked", "--quiet")
    words = ("learn", "model", "--data", "colours.jsonl", "--test", "colours-test.jsonl")
    undrift(*words, "--scorer", guide, "--out", "v1", "--max-new-tokens", 6, *SMALL)
    undrift("eval", "v1", "--quiet")


def test_a_report_stands_where_the_package_is_gone():
    """What is kept of a prediction is enough."""
    kept = {"answers": ["Red"], "strict": 0.0, "caseless": 1.0}
    assert rules_of("gone", kept | {"prediction": "red sky"}) == (0.0, 1.0, 0.0, "case")
    assert rules_of("gone", kept | {"prediction": "x", "caseless": 0.0}) == (0, 0, 1, None)
    assert rules_of("gone", kept | {"prediction": " ", "caseless": 0.0}) == (0, 0, 0, "empty")
    assert rules_of("gone", kept | {"prediction": "", "strict": 1.0}) == (1, 1, 1, None)


def test_a_function_entered_in_the_table_is_a_scorer_too(monkeypatch):
    namespace: dict = {}
    exec(block("python", "def starts"), namespace)
    monkeypatch.setitem(SCORERS, "starts", namespace["starts"])
    check_scorer("starts")
    scores = scores_of("starts", "Red sky", ["red"], {}, "coin")
    assert scores == {"strict": 0.0, "caseless": 1.0}
    assert rules_of("starts", {"prediction": "Red sky", "answers": ["red"], **scores}) == (
        0.0, 1.0, 0.0, "case",
    )  # fmt: skip


BROKEN = {
    "gone": ("theirs.nowhere:rule", ConfigError, "cannot be loaded from theirs.nowhere:rule"),
    "lacks": ("theirs.rules:absent", ConfigError, "cannot be loaded from theirs.rules:absent"),
    "raises": ("theirs.bad:rule", ConfigError, "ZeroDivisionError"),
    "number": ("theirs.rules:NUMBER", ConfigError, "expected a function"),
    "fails": ("theirs.rules:fails", DataError, "failed on the prediction 'x'.*IndexError"),
    "nothing": ("theirs.rules:nothing", DataError, "failed on the prediction 'x'.*TypeError"),
    "above": ("theirs.rules:above", DataError, "gave 2.0 .*from 0 to 1"),
    "nan": ("theirs.rules:nan", DataError, "gave nan"),
}
RULES = """
NUMBER = 7
def fails(prediction, answers): return answers[7]
def nothing(prediction, answers): pass
def above(prediction, answers): return 2
def nan(prediction, answers): return float("nan")
def fine(prediction, answers): return prediction in answers
def only_capitals(prediction, answers): return prediction.isupper()
"""


def test_a_broken_one_hurts_only_who_asks_for_it(package, undrift):
    fine = {"fine": "theirs.rules:fine", "only": "theirs.rules:only_capitals"}
    points = fine | {name: place for name, (place, *_) in BROKEN.items()}
    package("theirs", points, rules=RULES, bad="1 / 0")
    assert all(name in undrift("list", "scorers") for name in points)
    check_scorer("fine")
    check_scorer("letter")
    assert score("fine", "red", ["red"]) == (1.0, 1.0)
    assert score("only", "RED", ["red"]) == (1.0, 1.0)  # what is right is right caselessly
    for name, (_, kind, said) in BROKEN.items():
        with pytest.raises(kind, match=said) as caught:
            check_scorer(name)
            score(name, "x", ["y"])
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownName, match="did you mean 'fine'"):
        check_scorer("fined")
    with pytest.raises(UnknownName, match="did you mean 'fine'"):
        find_scorer("fined")


def test_one_name_for_two_is_refused(package):
    package("theirs", {"letter": "theirs.rules:fine", "twice": "theirs.rules:fine"}, rules=RULES)
    package("others", {"twice": "others.rules:above"}, rules=RULES)
    with pytest.raises(ConfigError, match=r"twice, as others\.rules:above and theirs"):
        check_scorer("twice")
    with pytest.raises(ConfigError, match="'letter' is part of undrift"):
        check_scorer("letter")
    check_scorer("exact")


def test_answers_are_scored_before_anything_is_learned(undrift, data, tmp_path):
    data.write_text(data.read_text().replace("starts", "box"))
    run = ("run", "folder", "--method", "moelora", "--data", data, "--backbone", "model")
    said = undrift(*run, "--out", "run", "--quiet", status=1)
    assert "task colours, example 8: the answer 'red' is not a box" in said
    assert not (tmp_path / "run").exists()
    words = ("learn", "model", "--data", "colours.jsonl", "--test", "colours-test.jsonl")
    said = undrift(*words, "--scorer", "box", "--out", "v1", *SMALL, status=1)
    assert "task colours, example 8: the answer 'red' is not a box" in said
    assert not (tmp_path / "v1").exists()


def test_a_run_tells_of_copies_that_are_wrong():
    told = []

    class Told(Progress):
        def event(self, kind, text, **values):
            told.append((kind, text, values))

    fine = Example("1", "?", ("B",))
    task = Task("t", (fine,), (), (fine, Example("2", "?", ("B", "blue"))), "letter", 4)
    check_answers([task], "coin", Told())
    ((kind, text, values),) = told
    assert (kind, values) == ("answers", {"task": "t", "count": 1})
    assert text.startswith("task t: of 1 of 2 answers even a perfect copy is not right")
    assert text.endswith("such as 2: a copy of 'blue' scores 0")
