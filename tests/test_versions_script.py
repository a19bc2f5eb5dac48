"""`make test-versions`: what it runs, what it says, and that it leaves nothing behind."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "test_versions.py"
# Stands for an environment's Python: tells versions, and runs "tests" as $TESTS says.
PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then echo '["3.11.7", "2.11.0", "5.18.0", "0.21.0", "2.3.5"]'; exit 0; fi
echo "$$" > "$STARTED"
for last; do :; done
case "$TESTS" in
  pass) counts='tests="5" failures="0" errors="0" skipped="1"'; status=0;;
  fail) counts='tests="5" failures="2" errors="1" skipped="0"'; status=1;;
  none) exit 4;;
  hang) exec sleep 60;;
esac
echo "<testsuites><testsuite $counts/></testsuites>" > "${last#--junitxml=}"
exit "$status"
"""
UV = f"""#!/bin/sh
echo "$@" >> "$CALLS"
mkdir -p "$UV_CACHE_DIR"
if [ "$1" = venv ]; then
  for place; do :; done
  mkdir -p "$place/bin"
  cat > "$place/bin/python" <<'END'
{PYTHON}
END
  chmod +x "$place/bin/python"
elif [ "$TESTS" = uninstallable ]; then exit 1
fi
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def here(tmp_path):
    """A checkout with the script, one Python (3.11 of pyenv), and a uv that only pretends."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    executable(tmp_path / "bin" / "uv", UV)
    for version in ("3.11", "3.12", "3.13"):  # shims that lead nowhere
        executable(tmp_path / "bin" / f"python{version}", "#!/bin/sh\nexit 127\n")
    for version in ("3.11.2", "3.11.10"):
        said = f"#!/bin/sh\necho {version.rpartition('.')[0]}\n"
        executable(tmp_path / "pyenv" / "versions" / version / "bin" / "python", said)
    return tmp_path


def begun(here, tests, *wanted):
    told = {
        "PATH": f"{here / 'bin'}:/usr/bin:/bin", "PYENV_ROOT": str(here / "pyenv"), "TESTS": tests,
        "CALLS": str(here / "calls"), "STARTED": str(here / "started"),
    }  # fmt: skip
    script = here / "scripts" / "test_versions.py"
    own = here / "own" / "python"  # no uv lies beside it
    start = (
        f"import sys, runpy; sys.executable = {str(own)!r}; del sys.argv[:2]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", start, "", str(script), *wanted]
    return subprocess.Popen(command, env=os.environ | told, stdout=subprocess.PIPE, text=True)


def ran(here, tests, *wanted):
    process = begun(here, tests, *wanted)
    out = process.communicate(timeout=60)[0]
    return process.returncode, out


def left(here):
    folder = here / "build" / "versions"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_python_that_is_not_here_is_left_out_and_said_so(here):
    status, out = ran(here, "pass")
    assert status == 0 and not left(here)
    end = out.splitlines()[-3:]
    assert re.fullmatch(
        r"Python 3.11, lowest: passed: 4 passed, 0 failed; \d+ s to install, \d+ s of tests; "
        r"python 3.11.7 torch 2.11.0 transformers 5.18.0 peft 0.21.0 numpy 2.3.5",
        end[0],
    )
    assert end[1:] == [f"not run: Python {version} is not here" for version in ("3.12", "3.13")]
    venv, install, *_ = (here / "calls").read_text().splitlines()
    assert "pyenv/versions/3.11.10/bin/python" in venv  # the newest of them
    assert "--resolution lowest-direct" in install and "[pocket,trl,parquet,dev]" in install


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("fail", "FAILED: 2 passed, 3 failed"),
        ("none", "FAILED"),
        ("uninstallable", "FAILED (Command"),
    ],
)
def test_one_that_fails_fails_the_whole_and_is_deleted_too(here, tests, said):
    status, out = ran(here, tests, "3.11")
    assert status == 1 and said in out.splitlines()[-1] and not left(here)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(here, number):
    process = begun(here, "hang", "3.11")
    deadline = time.monotonic() + 30
    while not (here / "started").exists() or not (here / "started").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert left(here) == ["3.11"]
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode not in (0, None) and not left(here)


def test_an_unknown_python_is_refused(here):
    status, out = ran(here, "pass", "3.9")
    assert status == 2 and "there are 3.11, 3.12, 3.13" in out


def test_it_runs_every_python_that_pyproject_names():
    spec = importlib.util.spec_from_file_location("test_versions_script_itself", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if "3." in line]
    assert sorted(named) == sorted(script.ENVIRONMENTS)
    assert project["requires-python"] == f">={min(script.ENVIRONMENTS)}"
