"""Run the default suite on every Python and at both ends of the releases that pyproject allows.

Three environments, one after another, each made by uv, used and deleted, so that the disk holds one
of them at a time: Python 3.11 with the lowest direct versions, 3.12 with those of constraints.txt,
3.13 with the newest. A Python that this machine lacks is left out, and said so.

    python scripts/test_versions.py           all three
    python scripts/test_versions.py 3.13      one of them
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "versions"
WHAT = "{root}[pocket,trl,parquet,dev]"
ENVIRONMENTS = {
    "3.11": ("lowest", ["--resolution", "lowest-direct"]),
    "3.12": ("pinned", ["--constraint", str(ROOT / "constraints.txt")]),
    "3.13": ("newest", []),
}
PACKAGES = ("torch", "transformers", "peft", "numpy")
ASK = (
    "import json, platform; from importlib.metadata import version as v; "
    f"print(json.dumps([platform.python_version(), *map(v, {PACKAGES!r})]))"
)


@dataclass
class Result:
    """What one environment showed.

    Args:
        title: Such as "Python 3.11, lowest".
        passed: How many tests passed.
        failed: How many failed, errors included.
        install: Seconds that making the environment took.
        tests: Seconds that the tests took.
        versions: Of Python and of PACKAGES.
        broken: What went wrong where no test could tell it.
    """

    title: str
    passed: int = 0
    failed: int = 0
    install: float = 0
    tests: float = 0
    versions: list[str] = field(default_factory=list)
    broken: str = ""

    @property
    def good(self) -> bool:
        """Whether tests ran and all of them passed."""
        return not self.broken and not self.failed and self.passed > 0

    def line(self) -> str:
        """The environment in one line."""
        names = " ".join(map(" ".join, zip(("python", *PACKAGES), self.versions, strict=False)))
        told = f" ({self.broken})" if self.broken else ""
        return (
            f"{self.title}: {'passed' if self.good else 'FAILED'}{told}: {self.passed} passed, "
            f"{self.failed} failed; {self.install:.0f} s to install, {self.tests:.0f} s of tests; "
            f"{names or 'no versions'}"
        )


def interpreter(version: str) -> str | None:
    """Find a Python on PATH or among pyenv's.

    Args:
        version: Such as "3.12".

    Returns:
        Its path; None where there is none that runs.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    kept = sorted(
        pyenv.glob(f"{version}.*/bin/python"),
        key=lambda path: [int(n) if n.isdigit() else -1 for n in path.parts[-3].split(".")],
        reverse=True,
    )
    found = shutil.which(f"python{version}")
    for path in ([found] if found else []) + [str(path) for path in kept]:
        ask = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        said = subprocess.run(ask, capture_output=True, text=True, check=False)
        if (
            said.returncode == 0 and said.stdout.strip() == version
        ):  # pyenv's shims may lead nowhere
            return path
    return None


def run(version: str, python: str, uv: str) -> Result:
    """Make an environment, run the default suite in it, and delete it, whatever happens.

    Args:
        version: A key of ENVIRONMENTS.
        python: The interpreter.
        uv: The installer.

    Returns:
        What it showed.
    """
    kind, options = ENVIRONMENTS[version]
    place, cache = FOLDER / version, FOLDER / f"{version}-cache"
    result = Result(f"Python {version}, {kind}")
    print(f"\n--- {result.title}", flush=True)
    mine = {**os.environ, "UV_CACHE_DIR": str(cache), "UV_LINK_MODE": "hardlink"}
    mine |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "UV_NO_PROGRESS": "1"}
    for inherited in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "UV_PYTHON"):
        mine.pop(inherited, None)
    start = time.monotonic()
    try:
        _clear(place, cache)
        own = str(place / "bin" / "python")
        what = WHAT.format(root=ROOT)
        for command in (
            [uv, "venv", "--quiet", "--python", python, str(place)],
            [uv, "pip", "install", "--quiet", "--python", own, *options, "--editable", what],
        ):
            subprocess.run(command, cwd=ROOT, env=mine, check=True)
        _clear(cache)  # what was linked stays
        result.install = time.monotonic() - start
        asked = subprocess.run([own, "-c", ASK], env=mine, check=True, capture_output=True)
        result.versions = json.loads(asked.stdout)
        start, report = time.monotonic(), place / "tests.xml"
        tests = [own, "-m", "pytest", "-n", "2", "-q", "-p", "no:cacheprovider"]
        ended = subprocess.run([*tests, f"--junitxml={report}"], cwd=ROOT, env=mine, check=False)
        result.tests = time.monotonic() - start
        result.passed, result.failed = _counted(report)
        if ended.returncode and not result.failed:
            result.broken = f"pytest ended with {ended.returncode}"
    except (subprocess.CalledProcessError, OSError, ElementTree.ParseError) as error:
        result.broken = str(error)
    finally:
        _clear(place, cache)
    return result


def main(wanted: Sequence[str]) -> int:
    """Run the environments.

    Args:
        wanted: Keys of ENVIRONMENTS; all of them where none is given.

    Returns:
        The exit status: 1 if one that was run failed, 2 if it is not known what to run.
    """
    unknown = [version for version in wanted if version not in ENVIRONMENTS]
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if unknown or uv is None:
        said = (
            f"no environment {unknown[0]}; there are {', '.join(ENVIRONMENTS)}" if unknown else ""
        )
        print(said or "no uv here; run: make dev")
        return 2
    signal.signal(signal.SIGTERM, _stop)
    lines, good = [], True
    for version in wanted or ENVIRONMENTS:
        python = interpreter(version)
        if python is None:
            lines.append(f"not run: Python {version} is not here")
        else:
            result = run(version, python, uv)
            lines.append(result.line())
            good = good and result.good
        print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    return 0 if good else 1


def _counted(report: Path) -> tuple[int, int]:
    """How many tests passed and how many failed, from pytest's report."""
    passed = failed = 0
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        failed += number["failures"] + number["errors"]
        passed += number["tests"] - number["failures"] - number["errors"] - number["skipped"]
    return passed, failed


def _clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _stop(*_: object) -> NoReturn:
    raise SystemExit(143)  # so that `finally` is reached


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
