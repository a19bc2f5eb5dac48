from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from undrift.run import processes


def python(text, *words):
    return [sys.executable, "-S", "-c", text, *words]


def wait(process):
    process.child.wait(20)
    process.log.close()
    return process.status


def test_a_process_has_one_thread_and_a_log(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("old\n")
    text = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit('broken')"
    process = processes.begin("a", python(text), log)
    assert process is not None and wait(process) == 1
    assert sorted(process.tail(5).splitlines()) == ["1", "broken"]
    assert process.tail(1) in ("1", "broken")


def test_a_log_is_locked_while_its_process_lives(tmp_path):
    log = tmp_path / "a.log"
    first = processes.begin("a", python("input()"), log)
    assert first is not None
    first.child.wait(20)  # its input is empty
    sleeper = processes.begin("b", python("import time; time.sleep(60)"), tmp_path / "b.log")
    assert sleeper is not None
    sleeper.log.close()  # as if we had been killed: the child still holds the lock
    assert processes.begin("b", python("pass"), tmp_path / "b.log") is None
    processes.stop([sleeper])
    assert sleeper.status == -signal.SIGTERM
    again = processes.begin("b", python("pass"), tmp_path / "b.log")
    assert again is not None and wait(again) == 0
    first.log.close()


def test_a_child_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_PATIENCE", 0.2)
    text = "import signal, time; signal.signal(15, signal.SIG_IGN); print('.', flush=True)\n"
    process = processes.begin("a", python(text + "time.sleep(60)"), tmp_path / "a.log")
    assert process is not None
    while not process.tail(1):
        time.sleep(0.01)
    processes.stop([process])
    assert process.status == -signal.SIGKILL
    process.log.close()


def test_a_polite_kill_stops_the_children(tmp_path):
    running = []
    with pytest.raises(KeyboardInterrupt), processes.stopped_with_us(running):
        process = processes.begin("a", python("import time; time.sleep(60)"), tmp_path / "a.log")
        assert process is not None
        running.append(process)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    assert running[0].status == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    running[0].log.close()


def test_a_study_in_a_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def inside():
        with processes.stopped_with_us([]):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
