"""What a run tells where nobody watches: lines for a log, comments above YAML."""

from __future__ import annotations

import io

from rich.console import Console

from undrift.run.progress import Comments, JsonLines, Lines


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def lines_of(made: io.StringIO) -> list[str]:
    return made.getvalue().splitlines()


def test_a_log_has_a_line_every_half_minute_with_loss_rate_and_time_left():
    out, clock = io.StringIO(), Clock()
    told = Lines(Console(file=out, width=20), now=clock)
    told.stage("learning plates", 100)
    for step in range(1, 101):
        clock.at += 2.0
        if step % 10 == 0:
            told.figures(loss=1.0 / step, learning_rate=0.009)
        told.advance()
    said = lines_of(out)
    assert said[0] == "learning plates: 15 of 100, loss 0.1, rate 0.009, about 2:50 left"
    assert len(said) == 7  # every 15 steps, and the last
    assert said[-1] == "learning plates: 100 of 100, loss 0.01, rate 0.009, 3:20 taken"


def test_what_was_done_before_a_stop_takes_no_time():
    out, clock = io.StringIO(), Clock()
    told = Lines(Console(file=out), now=clock)
    told.stage("learning plates", 100)
    told.resume(40)
    for _ in range(30):
        clock.at += 1.0
        told.advance()
    assert lines_of(out) == ["learning plates: 70 of 100, about 0:30 left"]


def test_an_event_is_one_line_and_a_stage_that_is_short_too():
    out = io.StringIO()
    told = Lines(Console(file=out, width=10), now=Clock())
    told.event("x", "a longer text than ten letters\nwith a [bold]break")
    told.stage("asking", 2)
    told.advance(2)
    assert lines_of(out) == [
        r"a longer text than ten letters\nwith a [bold]break",
        "asking: 2 of 2, 0:00 taken",
    ]


def test_a_block_is_comments_or_one_object():
    out = io.StringIO()
    Comments(Console(file=out, width=10)).block("plan", ["one", "  two words of it"], steps=3)
    assert lines_of(out) == ["# one", "#   two words of it"]
    out = io.StringIO()
    JsonLines(Console(file=out, width=10)).block("plan", ["one", "two"], steps=3)
    (line,) = lines_of(out)
    assert '"event": "plan"' in line and '"steps": 3' in line
