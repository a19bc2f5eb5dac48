"""What the machine refuses, what is not there and what is stopped ends in one line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest

from tests.run.own import write_task
from tests.run.tiny import save_tiny
from undrift.cli.stopping import GRACE

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one-line")
    save_tiny(folder / "model")
    write_task(folder / "mine", "colours")
    return folder


def begin(place: Path, *words: object, **environment: str) -> subprocess.Popen:
    """Start the program as its console script does."""
    program = "from undrift.__main__ import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=place,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "UNDRIFT_CACHE": str(place / "cache"),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def forked(place: Path, *words: object, largest_file: int | None = None) -> tuple[int, str]:
    """Run the command line in a fork of this process, which has all imports done."""
    import undrift.run.learn  # noqa: F401 (here, and not in every fork)

    resource = pytest.importorskip("resource")
    with tempfile.TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.dup2(said.fileno(), 2)
                os.chdir(place)
                os.environ["UNDRIFT_CACHE"] = str(place / "cache")
                if largest_file is not None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, -1))
                sys.argv, sys.stderr = ["undrift", *map(str, words)], open(2, "w")  # noqa: SIM115
                from undrift import cli

                cli.main()
            except SystemExit as over:
                status = int(over.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        error = said.read().decode()
    assert "Traceback" not in error, error
    return os.waitstatus_to_exitcode(status), error


def wait_for_handlers(process: subprocess.Popen) -> None:
    """Wait until the program hears SIGTERM, which Python by itself does not."""
    status, deadline = Path(f"/proc/{process.pid}/status"), time.monotonic() + 60
    if not status.parent.parent.is_dir():  # not Linux
        time.sleep(2)
        return
    heard = False
    while not heard:
        assert process.poll() is None and time.monotonic() < deadline
        caught = status.read_text().partition("SigCgt:")[2].split(maxsplit=1)[0]
        heard = bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
        time.sleep(0.01)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, error = process.communicate(timeout=120)
    assert "Traceback" not in error, error
    return process.returncode, error


def learn(place: Path, out: str) -> list[object]:
    return ["learn", "model", "--data", "mine/colours.jsonl", "--out", out, "--quiet"]


@pytest.fixture
def said(place, monkeypatch, command_line):
    """Run the command line in this process; return its exit status and what it said on stderr."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.chdir(place)
        status, _, err = command_line(*words)
        assert len(err.strip().splitlines()) == 1, err
        return status, err.strip()

    return run


@pytest.mark.foreign("8.1")
def test_a_full_disk_ends_in_one_line_and_the_same_command_then_goes_on(place):
    status, error = forked(place, *learn(place, "full"), largest_file=20_000)
    assert status == 1 and len(error.strip().splitlines()) == 1, error
    assert "cannot write" in error and "free some space" in error and "same command" in error
    assert not (place / "full" / "result.json").exists()
    status, error = forked(place, *learn(place, "full"))
    assert status == 0, error
    assert (place / "full" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.foreign("8.1")
def test_what_a_library_says_of_a_full_disk_is_told_and_a_fault_of_ours_is_not(monkeypatch):
    from undrift.cli.failures import refusal

    full = OSError(errno.ENOSPC, "No space left on device", "/some/file")
    assert "cannot write /some/file" in str(refusal(full, "run"))
    rust = RuntimeError("I/O error: No space left on device (os error 28)")
    assert "free some space" in str(refusal(rust, "run"))
    assert "batch_size" in str(refusal(RuntimeError("CUDA out of memory"), "run"))
    assert refusal(ValueError("a fault"), "run") is None
    assert refusal(RuntimeError("shapes do not fit"), "run") is None
    gone = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:2957")
    assert refusal(gone, "run") is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "another process has ended" in str(refusal(gone, "run"))


@pytest.mark.foreign("8.2")
@pytest.mark.parametrize("out", ["/proc/x", "mine/colours.jsonl/x", "n" * 300])
@pytest.mark.parametrize("command", ["learn", "run", "eval", "doctor"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_loaded(
    said, place, out, command, monkeypatch
):
    from undrift.run.backbone import Backbone

    monkeypatch.setattr(Backbone, "load", lambda *_: pytest.fail("a model was loaded"))
    words = {
        "learn": learn(place, out),
        "run": ["run", "pocket", "--out", out],
        "eval": ["eval", "model", "--out", out],
        "doctor": ["doctor", "folder", "--data", "mine", "--out", out],
    }
    status, error = said(*words[command])
    assert status in (1, 2) and "cannot write" in error and "--out" in error


@pytest.mark.foreign("8.3")
@pytest.mark.parametrize("device", ["cuda:77", "gpu", "cpu:-1", "-1"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(said, place, device):
    status, error = said(*learn(place, "device"), f"--device={device}")
    assert status == 2 and "there are: auto, cpu" in error


@pytest.mark.foreign("8.4")
@pytest.mark.parametrize("name", ["mine/w1", "./w1", "a/b/c", "~/no-such-adapter", "w1/"])
def test_a_path_that_is_not_there_is_said_to_be_missing_before_the_hub_is_asked(
    name, place, monkeypatch
):
    from undrift.errors import ConfigError
    from undrift.run import load_model

    monkeypatch.chdir(place)
    monkeypatch.setattr(load_model, "check_hub", lambda *_: pytest.fail("the Hub was asked"))
    with pytest.raises(ConfigError, match="does not exist") as told:
        load_model.source(name)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.foreign("8.4")
@pytest.mark.parametrize("command", ["eval", "predict", "diagnose"])
def test_an_adapter_that_is_not_there_is_said_to_be_missing(said, command):
    more = ["--question", "what?"] if command == "predict" else []
    status, error = said(command, "adapters/w1", *more)
    assert status in (1, 2) and "adapters/w1" in error


@pytest.mark.foreign("8.4")
def test_a_name_of_the_hubs_that_is_not_cached_fails_at_once_without_a_network(monkeypatch):
    from huggingface_hub import constants

    from undrift.errors import ConfigError
    from undrift.run import load_model

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"cannot load the backbone 'org/model'.*Hub's cache"):
        load_model.source("org/model")


def test_until_it_can_be_stopped_the_program_imports_next_to_nothing():
    text = f"""
import __future__, os, signal, sys
sys.path.insert(0, {str(ROOT / "src")!r})
before = {{*sys.modules}}
import undrift.__main__
print(*{{*sys.modules}} - before)
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", text], capture_output=True, text=True)
    assert {*done.stdout.split()} == {"undrift", "undrift.__main__"}, done.stderr


@pytest.mark.foreign("8.5")
@pytest.mark.parametrize(
    ("number", "delay"),
    [
        (signal.SIGINT, 0.3),
        (signal.SIGTERM, 4.0),
        *(
            pytest.param(number, delay, marks=pytest.mark.slow)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            for delay in (1.0, 2.0, 6.0, 10.0)
        ),
    ],
)
def test_a_stop_at_any_moment_is_one_line(place, number, delay):
    out = f"stopped-{number}-{delay}"
    process = begin(place, *learn(place, out))
    wait_for_handlers(process)  # before that it is Python's, which is not up yet
    time.sleep(delay)
    process.send_signal(number)
    start = time.monotonic()
    status, error = ended(process)
    assert time.monotonic() - start < GRACE  # where the exception is lost it takes that long
    if status != 0:  # else it was done already
        assert status == 128 + number
        assert error.strip().splitlines() == ["stopped; the same command goes on where it was"]
    assert not list((place / out).glob("**/*.writing"))
