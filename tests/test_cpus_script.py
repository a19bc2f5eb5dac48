"""The rounds of `make test-cpus`: never beyond what a CPU has, none left out after a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import test_cpus as script


@pytest.mark.parametrize(
    ("own", "machine", "names", "lacking"),
    [
        ("avx512", "x86_64", ["default", "avx2", "avx512", "avx512, 2 threads"], []),
        ("avx2", "AMD64", ["default", "avx2", "avx2, 2 threads"], ["avx512"]),
        ("default", "x86_64", ["default", "default, 2 threads"], ["avx2", "avx512"]),
        ("sve256", "aarch64", ["sve256", "sve256, 2 threads"], ["default", "avx2", "avx512"]),
        ("default", "arm64", ["default", "default, 2 threads"], ["default", "avx2", "avx512"]),
    ],
)
def test_a_cpu_is_asked_for_what_it_has(own, machine, names, lacking):
    rounds, left = script.rounds(own, machine)
    assert [each.name for each in rounds] == names and left == lacking
    assert [each.threads for each in rounds] == [1] * (len(rounds) - 1) + [2]
    x86 = machine in ("x86_64", "AMD64")
    assert [bool(each.forced) for each in rounds] == [x86] * (len(rounds) - 1) + [False]


@pytest.mark.slow
def test_what_is_forced_outside_is_not_taken_for_the_cpus_own(monkeypatch):
    own = script.capability()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert script.capability() == own


def test_every_round_runs_after_a_failure_which_is_told(monkeypatch, capsys):
    ran, broken = [], set()

    def run(each, arguments):
        ran.append((each.name, arguments))
        failed = int(each.name in broken)
        return script.Outcome(9, failed, 1, 2.5, failed)

    monkeypatch.setattr(script, "capability", lambda: "avx2")
    monkeypatch.setattr(script.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(script.sys, "argv", ["test_cpus.py"])
    monkeypatch.setattr(script, "run", run)
    for wrong in ({"default"}, {"avx2, 2 threads"}, set()):
        ran.clear()
        broken.clear()
        broken |= wrong
        assert script.main() == len(wrong)
        assert [name for name, _ in ran] == ["default", "avx2", "avx2, 2 threads"]
        files = ran[0][1]
        assert {"tests/core/test_moment.py", "tests/run/test_task_loop.py"} < set(files)
        assert "tests/run/test_presets.py" not in files  # it looks at no tensor
        assert capsys.readouterr().out.count("FAILED") == len(wrong)


@pytest.mark.slow
def test_the_rounds_differ_in_what_is_forced_and_in_threads(monkeypatch, capfd, tmp_path):
    """Two tests of which one fails under the oldest instruction set, none under the others."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        "from os import environ\n"
        "def test_set():\n"
        "    assert environ.get('MKL_CBWR') != 'COMPATIBLE'\n"
        "def test_threads():\n"
        "    assert environ['OMP_NUM_THREADS'] == environ['UNDRIFT_TEST_THREADS']\n"
        "    assert (environ['OMP_NUM_THREADS'] == '2') == ('MKL_CBWR' not in environ)\n"
    )
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "capability", lambda: "avx2")
    monkeypatch.setattr(script.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(script.sys, "argv", ["test_cpus.py", str(tmp_path)])
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")  # a user's own is not handed on
    assert script.main() == 1
    lines = [line.split() for line in capfd.readouterr().out.rpartition("\n\n")[2].splitlines()]
    counts = [" ".join(line).partition(" skipped")[0] for line in lines[1:]]
    assert counts == [
        "default 1 passed, 1 failed, 0",
        "avx2 2 passed, 0 failed, 0",
        "avx2, 2 threads 2 passed, 0 failed, 0",
        "avx512 not run: this CPU lacks it",
    ]


def test_the_makefile_and_ci_call_it():
    root = Path(__file__).parents[1]
    assert "$(BIN)/python scripts/test_cpus.py" in (root / "Makefile").read_text()
    assert " test-cpus " in (root / ".ci/run").read_text()
