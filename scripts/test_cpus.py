"""Run the numerical tests as other CPUs would: under each instruction set that this one has.

The libraries below torch choose their kernels by what the processor can do, and each kernel adds up
in an order of its own. Environment variables make them choose as an older processor would; a set
that this one lacks is never forced. A last round has torch's own choice and two threads.

    python scripts/test_cpus.py            # what is numerical of the four folders below
    python scripts/test_cpus.py tests/core # or whatever else pytest understands

Numerical is a file of tests that imports torch. The others (plans, studies, settings, whole runs)
look at no tensor themselves; `make test` runs them.

Every round runs, even after one has failed; the table at the end has a line for each. Exits 1 if
one of them failed.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
FOLDERS = ("tests/core", "tests/tuner", "tests/methods", "tests/run")
X86 = ("x86_64", "amd64", "i686")
# torch's own kernels, MKL's products and oneDNN's, from the oldest processor to the newest
SETS: Mapping[str, Mapping[str, str]] = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_CBWR": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    },
}
FORCING = {name for forced in SETS.values() for name in forced}


@dataclass(frozen=True)
class Round:
    """One run of the tests.

    Attributes:
        name: For the table.
        forced: Environment variables that decide the instruction set; none for torch's own choice.
        threads: How many torch uses.
    """

    name: str
    forced: Mapping[str, str]
    threads: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of a round."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    status: int

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        verdict = "" if self.status == 0 else f"  FAILED (pytest's exit status {self.status})"
        return f"{counts}, {self.seconds:.0f} s{verdict}"


def unforced() -> dict[str, str]:
    """The environment without anything that forces an instruction set."""
    return {name: value for name, value in os.environ.items() if name not in FORCING}


def numerical() -> list[str]:
    """The files of tests that look at tensors: those that import torch."""
    found = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("test_*.py"))
    return [
        str(file.relative_to(ROOT))
        for file in found
        if re.search(r"^(import|from) torch\b", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def capability() -> str:
    """Ask torch, in a process of its own, which instruction set it takes when nothing is forced."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=unforced(), capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1].lower()


def rounds(own: str, machine: str) -> tuple[list[Round], list[str]]:
    """Choose the rounds for a processor.

    Args:
        own: What `capability` says of it.
        machine: Its kind, as `platform.machine` has it.

    Returns:
        The rounds, and the names of the sets that it lacks.
    """
    names = list(SETS)
    last = Round(f"{own}, 2 threads", {}, threads=2)
    if machine.lower() not in X86 or own not in names:
        return [Round(own, {}), last], names
    has = names[: names.index(own) + 1]
    return [*(Round(name, SETS[name]) for name in has), last], names[len(has) :]


def run(each: Round, arguments: list[str]) -> Outcome:
    """Run pytest in two processes under a round's environment.

    Args:
        each: The round.
        arguments: For pytest.

    Returns:
        What it counted.
    """
    threads = str(each.threads)
    environment = unforced() | each.forced
    environment |= {"OMP_NUM_THREADS": threads, "UNDRIFT_TEST_THREADS": threads}
    # Two workers of two threads share the cores: who waits must not spin on one that another needs.
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "2", "-q", f"--junit-xml={report}"]
        start = time.monotonic()
        status = subprocess.run([*command, *arguments], cwd=ROOT, env=environment).returncode
        seconds = time.monotonic() - start
        counts = ElementTree.parse(report).getroot().find("testsuite") if report.is_file() else None
    found = {} if counts is None else counts.attrib
    total, failures, errors, skipped = (
        int(found.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return Outcome(total - failed - skipped, failed, skipped, seconds, status)


def main() -> int:
    """Run all rounds and print the table."""
    own, arguments = capability(), sys.argv[1:] or numerical()
    what = " ".join(sys.argv[1:]) or f"the {len(arguments)} files that import torch"
    chosen, lacking = rounds(own, platform.machine())
    outcomes = {}
    for each in chosen:
        print(f"=== {each.name}", flush=True)
        outcomes[each.name] = run(each, arguments)
    print(f"\n{platform.machine()}, torch takes {own} by itself; {what}:")
    for name, outcome in outcomes.items():
        print(f"  {name:<18} {outcome}")
    for name in lacking:
        print(f"  {name:<18} not run: this CPU lacks it")
    return int(any(outcome.status for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
