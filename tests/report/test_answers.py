"""The data of the answer browser, and which pictures find room in a page."""

from __future__ import annotations

import base64

import pytest

from undrift.report import load
from undrift.report.answers import answers
from undrift.report.pictures import Pictures

from .complete import complete, line


@pytest.fixture
def run(tmp_path):
    return load(complete(tmp_path / "runs" / "moelora", examples=3, diagnosed=False))


def test_every_example_once_with_all_that_was_said(run, tmp_path):
    same = load(complete(tmp_path / "same", "same", examples=2, forgets=False, pictures=False))
    found = answers([run, same])
    assert found["runs"] == ["moelora", "same"]
    assert found["errors"] == ["sentence instead of letter", "case", "extra words"]
    charts = found["tasks"][0]["examples"]
    assert [example["id"] for example in charts] == ["charts-000", "charts-001", "charts-002"]
    assert charts[2]["said"] == [(("C", "right", None), ("C", "right", None)), None]
    assert all(len(example["pictures"]) == 1 for example in charts)
    assert found["tasks"][2]["boxes"]


def test_a_run_trained_once_was_never_just_learned(write_run):
    tasks = ["words", "more"]
    rows = [[line(task, "exact", 0, later=False)] for task in tasks]
    joint = load(write_run("joint", "joint", [[95.0] * 2], tasks=tasks, zero_shot=[], lines=rows))
    (example,) = answers([joint])["tasks"][0]["examples"]
    assert example["said"] == [(None, ("sandal", "right", None))]
    assert example["pictures"] == []


def test_boxes_in_pixels_are_not_drawn(write_run):
    row = line("boxes", "box", 0, later=False)
    rows = [[{**row, "answers": ["[10,20,300,400]"]}]]
    run = load(write_run("px", "joint", [[95.0]], tasks=["boxes"], zero_shot=[1], lines=rows))
    assert answers([run])["tasks"][0]["boxes"] is False


def test_early_lines_find_room_and_the_rest_is_referred_to(run, tmp_path):
    file = run.folder / "pictures" / "01-charts" / "0001.webp"
    url = f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
    for page, later in (
        (tmp_path / "report.html", "runs/moelora/pictures/01-charts/0002.webp"),
        (tmp_path / "pages" / "report.html", None),
        (None, None),
    ):
        pictures = Pictures(page, room=2 * len(url))
        for number in (2, 1):
            for task, name in enumerate(("charts", "words"), 1):
                pictures.offer((name, str(number)), run.folder, task, name, number)
        found = pictures.addresses()
        assert found["charts", "1"] == [url]
        assert found["words", "1"][0].startswith("data:image/webp;base64,")
        assert found["charts", "2"] == [later]


def test_a_second_picture_stands_behind_the_first(run):
    folder = run.folder / "pictures" / "01-charts"
    (folder / "0001-2.webp").write_bytes(b"second")
    found = answers([run])["tasks"][0]["examples"][0]["pictures"]
    assert len(found) == 2
    assert base64.b64decode(found[1].partition(",")[2]) == b"second"
