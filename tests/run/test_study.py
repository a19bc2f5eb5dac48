from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.run.studying import STUDY, Starter, tiny_plan
from undrift.cli.stopping import stop, stoppable
from undrift.errors import UnknownName
from undrift.report.study_table import study_markdown
from undrift.run import processes
from undrift.run import study as study_module
from undrift.run.progress import Progress, StudyBar
from undrift.run.stopping import Stopped
from undrift.run.study import Study
from undrift.rundir import read_json

TUNING = """
benchmark: tiny
seeds: [100, 101]
rows: [moelora, finetune]
rates: {moelora: [1e-3, 2e-3]}
widen: true
results: results/tuning
"""


class Said(Progress):
    def __init__(self):
        self.events, self.done = [], []

    def cells(self, done, total, now, rest):
        self.done.append((done, total))

    def event(self, kind, text, **values):
        self.events.append((kind, text, values))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a study in an empty folder whose processes only write files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_module, "_TICK", 0.0)

    def made(text=STUDY, last=lambda cell: 50.0, only=(), **options):
        plan = tiny_plan(tmp_path, text)
        starter = Starter(plan, last)
        monkeypatch.setattr(study_module, "begin", starter)
        found = Study(
            plan, "undrift study small.yaml", Path("work"), study_markdown, only, **options
        )
        return found, starter

    return made


def test_results_come_as_the_cells_do(make):
    seen = []

    def last(cell):
        file = Path("results/small.json")
        seen.append(len(read_json(file)["runs"]) if file.is_file() else 0)
        return 50.0 + cell.seed

    study, starter = make(STUDY + "against: moelora\n", last)
    said = Said()
    study.go(2, said)
    assert len(starter.started) == 5 and seen == [0, 0, 2, 2, 4]
    assert said.done[-1] == (5, 5) and [kind for kind, *_ in said.events] == ["cell"] * 5
    assert said.events[1][1].startswith("moelora, seed 0: last 50.0 (0:00)")
    written = read_json(Path("results/small.json"))
    assert {**written, "runs": None} == {
        "command": "undrift study small.yaml",
        "commit": "abc1234",
        "hardware": "A CPU, Linux x86_64, one thread a run",
        "versions": {"torch": "2", "transformers": "5", "peft": "0", "undrift": "0.1.0"},
        "benchmark": {"name": "tiny", "version": "1", "fingerprint": "tiny-1"},
        "backbone": {"name": "pocket", "fingerprint": "w"},
        "against": "moelora",
        "runs": None,
    }
    assert [(run["label"], run["seed"]) for run in written["runs"]] == [
        ("zeroshot", 0),
        ("moelora", 0),
        ("moelora", 1),
        ("no router", 0),
        ("no router", 1),
    ]
    assert written["runs"][-1] == {
        "label": "no router",
        "method": "same",
        "setting": "undrift",
        "seed": 1,
        "order": "default",
        "last": 51.0,
        "mft": 56.0,
        "bwt": -10.0,
        "forgetting": 10.0,
        "learning_rate": 2e-4,
        "options": {"method.router": False},
        "tasks": ["lower", "upper"],
        "matrix": [[61.0, None], [51.0, 51.0]],
        "zero_shot": [None, 0.3333],
        "seconds": {"train": 1.2},
        "cost": {
            "trainable": 5,
            "active": 8,
            "stored": 30,
            "state_bytes": 400,
            "step_cpu_ms": 150.0,
            "tokens_per_second": None,
            "peak_bytes": None,
        },
        "command": "undrift run tiny --method same --seed 1 --set method.router=false",
        "commit": "abc1234",
    }
    assert written["runs"][0]["learning_rate"] is None
    assert "| no router | 50.5 [50.0, 51.0] |" in Path("results/small.md").read_text()


def test_what_is_finished_is_not_run_again(make):
    study, starter = make()
    study.go(2, Progress())
    first = Path("results/small.json").read_bytes()
    again, second = make()
    again.go(2, Progress())
    assert len(starter.started) == 5 and second.started == []
    assert Path("results/small.json").read_bytes() == first
    cell = again.cells[1]
    (again.folder(cell) / "matrix.json").unlink()
    third, starter = make()
    assert third.todo == [cell]
    third.go(2, Progress())
    assert starter.started == [cell.name]


def test_rows_that_ask_for_the_same_share_a_run(make):
    study, starter = make(STUDY.replace("zeroshot", "{label: parent, method: moelora}"))
    study.go(1, Progress())
    assert len(starter.started) == 4
    labels = [run["label"] for run in read_json(Path("results/small.json"))["runs"]]
    assert labels == ["parent"] * 2 + ["moelora"] * 2 + ["no router"] * 2


def test_all_rows_of_a_seed_come_before_the_next(make):
    study, starter = make()
    study.go(1, Progress())
    assert [name.split("-default-")[1][:2] for name in starter.started] == [
        *["s0"] * 3,
        *["s1"] * 2,
    ]


def test_a_failing_cell_does_not_lose_the_others(make):
    study, _ = make(last=lambda cell: None if cell.row.label == "moelora" else 50.0)
    said = Said()
    study.go(2, said)
    assert sorted(kind for kind, *_ in said.events) == ["cell"] * 3 + ["failed"] * 2
    failures = list(study.failures.values())
    assert [failure.cell.seed for failure in failures] == [0, 1]
    assert failures[0].error == "Traceback\nerror: the loss is nan"
    assert failures[0].command.startswith("undrift run tiny --method moelora --seed 0 --out work/")
    written = read_json(Path("results/small.json"))
    assert [run["label"] for run in written["runs"]] == ["zeroshot", "no router", "no router"]
    assert written["failed"][1]["label"] == "moelora" and written["failed"][1]["seed"] == 1
    assert (
        "Failed: moelora (seed 0, order default); moelora" in Path("results/small.md").read_text()
    )
    study, starter = make()
    study.go(2, Progress())
    assert len(starter.started) == 2 and "failed" not in read_json(Path("results/small.json"))


@pytest.mark.parametrize(
    "manifest", [{"data": {"version": "2", "fingerprint": "tiny-2"}}, {"settings": {"experts": 1}}]
)
def test_a_run_on_other_data_or_defaults_is_no_result(make, manifest):
    study, starter = make()
    starter.manifest = manifest
    study.go(2, Progress())
    assert len(study.failures) == 5 and not Path("results").exists()
    assert "with other data or defaults" in next(iter(study.failures.values())).error


def test_a_cell_that_another_study_runs_is_waited_for(make):
    study, starter = make()
    starter.busy = {cell.name for cell in study.cells}
    study.go(2, Progress())
    assert len(starter.started) == 5 and not study.failures


def test_only_some_rows(make):
    study, starter = make(only=["moelora"])
    assert [cell.row.label for cell in study.cells] == ["moelora"] * 2
    study.go(2, Progress())
    assert len(starter.started) == 2
    study, _ = make()
    study.go(2, Progress())
    full = Path("results/small.json").read_bytes()
    Path("work").rename("elsewhere")  # the other rows' runs are gone, their results stay
    study, starter = make(only=["no router"])
    study.go(2, Progress())
    assert len(starter.started) == 2 and Path("results/small.json").read_bytes() == full
    with pytest.raises(UnknownName, match="did you mean 'moelora'"):
        make(only=["moelroa"])


def test_in_another_folder_the_results_of_cells_that_wait_stay(make):
    study, _ = make(STUDY + "against: moelora\n")
    study.go(2, Progress())
    file = Path("results/small.json")
    old = read_json(file)["runs"]
    Path("work").rename("elsewhere")

    def last(cell):  # asked as each cell ends; the file never has fewer runs than before
        assert len(read_json(file)["runs"]) == 5
        return 70.0 + cell.seed

    study, _ = make(STUDY + "against: moelora\n", last)
    study.go(1, Progress())
    assert [run["last"] for run in read_json(file)["runs"]] == [70, 70, 71, 70, 71]
    # what was run at another rate does not stay
    Path("work").rename("elsewhere2")
    text = file.read_text()
    file.write_text(text.replace('"learning_rate": 0.0002', '"learning_rate": 0.5', 1))
    study, _ = make(STUDY + "against: moelora\n", only=["moelora"])
    study.write()
    left = read_json(file)["runs"]
    assert [(run["label"], run["seed"]) for run in left] == [
        (run["label"], run["seed"]) for run in (old[0], old[2], old[3], old[4])
    ]


def test_comparisons_with_runs_that_are_not_at_hand_stay(make):
    def paired(cells, against):  # says of how many runs it is, where it has some to compare with
        labels = [run["label"] for run, _ in cells]
        return [
            {"label": label, "learning_rate": 2e-4, "detectable": float(labels.count(label))}
            for label in ("no router",)
            if label in labels and against in labels
        ]

    def written():
        lines = read_json(Path("results/small.json")).get("paired", ())
        return {line["label"]: line["detectable"] for line in lines}

    study, _ = make(STUDY + "against: moelora\n", paired=paired)
    study.go(2, Progress())
    assert written() == {"no router": 2.0}
    Path("work").rename("elsewhere")
    seen = []
    study, _ = make(STUDY + "against: moelora\n", lambda _: seen.append(written()) or 60.0,
                    paired=paired)  # fmt: skip
    study.go(1, Progress())
    assert seen == [{"no router": 2.0}] * 5 and written() == {"no router": 2.0}


def test_rows_that_stay_keep_the_machine_and_the_commit_that_made_them(make):
    study, _ = make()
    study.go(2, Progress())
    file = Path("results/small.json")
    old = file.read_text().replace("A CPU", "Another CPU").replace("abc1234", "0ld1234, abc1234")
    file.write_text(old.replace('"torch": "2"', '"torch": "22"'))
    Path("work").rename("elsewhere")
    study, _ = make(only=["no router"])
    study.go(2, Progress())
    written = read_json(file)
    assert written["commit"] == "0ld1234, abc1234"
    assert written["hardware"] == (
        "Another CPU, Linux x86_64, one thread a run, A CPU, Linux x86_64, one thread a run"
    )
    assert written["versions"] == {"torch": "22, 2", "transformers": "5", "peft": "0",
                                   "undrift": "0.1.0"}  # fmt: skip
    assert written["benchmark"]["name"] == "tiny"


def test_a_stop_while_a_cell_is_started_ends_it(make, monkeypatch):
    started = []

    def begin(name, argv, log):
        sleeping = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
        started.append(processes.begin(name, sleeping, log))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the handler runs here
        return started[-1]

    study, _ = make()
    monkeypatch.setattr(study_module, "begin", begin)
    monkeypatch.setattr(stop, "number", None)  # and again afterwards
    with pytest.raises(Stopped), stoppable():
        study.go(2, Progress())
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    stop.end()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0  # else it ends this process, later
    assert [process.status for process in started] == [-signal.SIGTERM]
    started[0].log.close()


def test_prune(make):
    study, _ = make()
    study.go(1, Progress())
    folder = study.folder(study.cells[1])
    assert (folder / "tasks/01-lower/adapter").is_dir()
    study, starter = make(prune=True)
    study.go(1, Progress())
    assert starter.started == [] and not list(Path("work").glob("*/tasks/*/adapter"))
    assert (folder / "matrix.json").is_file()


def test_rates_are_widened_until_the_best_has_neighbours(make):
    reach = {5e-4: 40.0, 1e-3: 45.0, 2e-3: 50.0, 4e-3: 60.0, 8e-3: 55.0}
    study, starter = make(TUNING, lambda cell: reach.get(cell.rate or 0, 30.0) + cell.seed / 100)
    study.go(2, Progress())
    assert len(starter.started) == 2 + 2 * 4
    written = read_json(Path("results/tuning.json"))
    assert written["chosen"] == {"moelora": 4e-3}
    rates = [run["learning_rate"] for run in written["runs"] if run["label"] == "moelora"]
    assert rates == [1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 4e-3, 8e-3, 8e-3]
    table = Path("results/tuning.md").read_text()
    assert "| **moelora** | 61.0 [61.0, 61.0] |" in table and "| 0.004 (chosen) |" in table
    again, starter = make(TUNING)  # what was added is found again
    again.go(2, Progress())
    assert starter.started == [] and len(again.cells) == 10


def test_a_rate_that_is_clearly_out_gets_one_seed(make):
    reach = {5e-4: 40.0, 1e-3: 45.0, 2e-3: 59.0, 4e-3: 60.0, 8e-3: 55.0}

    def last(cell):  # with the other seed 0.002 is better
        return reach.get(cell.rate or 0, 30.0) + (cell.seed == 101 and cell.rate == 2e-3) * 9

    study, starter = make(TUNING + "drop: 3\n", last)
    assert len(study.cells) == 2 + 2  # finetune, and two rates with one seed
    study.go(1, Progress())
    written = read_json(Path("results/tuning.json"))
    assert written["chosen"] == {"moelora": 2e-3} and written["drop"] == 3
    runs = [(run["learning_rate"], run["seed"]) for run in written["runs"][:-2]]
    assert runs == [(1e-3, 100), (2e-3, 100), (2e-3, 101), (4e-3, 100), (4e-3, 101), (8e-3, 100)]
    assert "more than 3 points below" in Path("results/tuning.md").read_text()
    again, starter = make(TUNING + "drop: 3\n")
    again.go(2, Progress())
    assert starter.started == [] and len(again.cells) == 8


def test_rates_are_widened_by_all_seeds_too(make):
    reach = {(1e-3, 100): 50.0, (2e-3, 100): 52.0, (4e-3, 100): 51.0, (1e-3, 101): 60.0}
    study, _ = make(TUNING + "drop: 3\n", lambda cell: reach.get((cell.rate, cell.seed), 30.0))
    study.go(1, Progress())
    written = read_json(Path("results/tuning.json"))
    assert written["chosen"] == {"moelora": 1e-3}
    assert (5e-4, 101) not in {(r["learning_rate"], r["seed"]) for r in written["runs"]}
    assert (5e-4, 100) in {(r["learning_rate"], r["seed"]) for r in written["runs"]}


def test_a_rate_that_is_added_late_leaves_the_others_running(make):
    reach = {(1e-3, 100): 50.0, (2e-3, 100): 52.0, (4e-3, 100): 51.0, (1e-3, 101): 60.0}
    study, starter = make(
        TUNING + "drop: 3\n", lambda cell: reach.get((cell.rate, cell.seed), 30.0)
    )
    # this one has its numbers when 0.0005 is added, and still draws its page
    starter.looks = lambda cell: 50 * ((cell.rate, cell.seed) == (1e-3, 101))
    study.go(2, Progress())
    written = read_json(Path("results/tuning.json"))
    assert written["chosen"] == {"moelora": 1e-3}
    assert len(starter.started) == len(set(starter.started)) == len(study.cells)


def test_a_rate_that_fails_is_not_chosen(make):
    reach = {1e-3: 45.0, 2e-3: 50.0, 4e-3: None}
    study, _ = make(TUNING, lambda cell: reach.get(cell.rate, 30.0))
    study.go(2, Progress())
    written = read_json(Path("results/tuning.json"))
    assert written["chosen"] == {"moelora": 2e-3}
    assert {failure["learning_rate"] for failure in written["failed"]} == {4e-3}
    assert "| 0.002 (chosen) |" in Path("results/tuning.md").read_text()


def test_the_cap_is_visible(make):
    study, _ = make(TUNING, lambda cell: 1000 * (cell.rate or 0))
    study.go(2, Progress())
    assert read_json(Path("results/tuning.json"))["chosen"] == {"moelora": 1.6e-2}
    assert "0.016 (chosen, at the edge)" in Path("results/tuning.md").read_text()


def test_the_bar(capsys):
    with StudyBar(Console(width=100, force_terminal=False)) as bar:
        bar.cells(0, 5, "same, seed 0", None)
        bar.event("cell", "same, seed 0: last 1.0 [ok] (0:01)")
        bar.cells(5, 5, "", 3700.0)
    out = capsys.readouterr().out
    assert "same, seed 0: last 1.0 [ok] (0:01)" in out and "5/5" in out and "about 1:01:40" in out


@pytest.mark.slow
def test_a_study_of_real_runs(tmp_path, backbone_folder):
    """Two cells through the command line, one of which is broken, then the same again."""
    (tmp_path / "s.yaml").write_text(
        "benchmark: pocket\nseeds: [3]\nresults: out/s\n"
        "rows: [moelora, {label: broken, method: finetune, set: {train.learning_rate: 1e30}}]\n"
        f"run: {{backbone: {backbone_folder}, train: {{max_steps: 2}}, method: {{rank: 2}}}}\n"
    )
    program = (
        "import sys, pathlib\n"
        "from undrift import cli\n"
        "from undrift.registry import BENCHMARKS\n"
        "from undrift.run import study\n"
        "from tests.run.tiny import tiny_benchmark\n"
        "load = type(BENCHMARKS).load\n"
        "made = tiny_benchmark(pathlib.Path('data'), tasks=2)\n"
        "type(BENCHMARKS).load = lambda self, name: (\n"
        "    (lambda root, progress=True: made) if self is BENCHMARKS else load(self, name))\n"
        "study.Study.__init__.__kwdefaults__['program'] = (sys.executable, sys.argv[0])\n"
        "cli.main()\n"
    )
    (tmp_path / "undrift_tiny.py").write_text(program)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "UNDRIFT_CACHE": str(tmp_path / "cache")}

    def command(*words):
        return subprocess.run(
            [sys.executable, "undrift_tiny.py", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def run(*words):
        return command("study", "s.yaml", *words)

    done = run("--jobs", "2")
    assert done.returncode == 1
    assert "failed: broken, seed 3" in done.stderr and "error:" in done.stderr
    written = read_json(tmp_path / "out" / "s.json")
    (entry,) = written["runs"]
    assert entry["label"] == "moelora" and len(entry["matrix"]) == 2
    assert written["failed"][0]["label"] == "broken"
    (page,) = tmp_path.glob("runs/study-s/moelora-*/report.html")
    page.unlink()  # as if the run had been killed after its last number
    page.with_name("undrift.lock").touch()
    done = run("--json", "--only", "moelora")
    assert done.returncode == 0, done.stderr
    assert page.is_file() and not page.with_name("undrift.lock").exists()
    assert json.loads(done.stdout.splitlines()[-1])["runs"] == [entry]

    # the same cell, run by somebody else
    (tmp_path / "out" / "s.json").unlink()
    (tmp_path / "out" / "s.md").unlink()
    elsewhere = ("--work", "elsewhere", "--only", "moelora")
    (line,) = run("--commands", *elsewhere).stdout.splitlines()
    done = run("--gather", *elsewhere)
    assert done.returncode == 0 and "not done: 1 of 1 runs" in done.stdout
    program, *words = shlex.split(line)
    assert program == "undrift"
    assert command(*words).returncode == 0
    assert run("--commands", *elsewhere).stdout == ""
    (gathered,) = json.loads(run("--gather", "--json", *elsewhere).stdout)["runs"]
    assert read_json(tmp_path / "out" / "s.json")["runs"] == [gathered]
    measured = {"seconds", "cost"}  # of that machine at that time
    assert {name: gathered[name] for name in gathered if name not in measured} == {
        name: entry[name] for name in entry if name not in measured
    }
