"""The small pictures that a run keeps for its report."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from undrift.data.types import Example, Task
from undrift.errors import DataError, RunDirError
from undrift.run import thumbnails
from undrift.run.thumbnails import keep_pictures
from undrift.rundir import RunDir, read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def task(tmp_path):
    """Four questions: about a wide picture, about two, about none, about the wide one again."""
    wide, tall = tmp_path / "wide.jpg", tmp_path / "tall.png"
    Image.effect_noise((800, 400), 60).save(wide)
    Image.new("RGB", (20, 40), "red").save(tall)
    shown = [(wide,), (tall, wide), (), (wide,)]
    test = tuple(Example(str(i), "what?", ("it",), images) for i, images in enumerate(shown))
    return Task("things", test, (), test, "exact", 4)


def test_the_pictures_of_every_line(tmp_path, task):
    files = RunDir(tmp_path / "run")
    keep_pictures(files.pictures(3, "things"), task)
    folder = tmp_path / "run" / "pictures" / "03-things"
    names = ["0001.webp", "0002-2.webp", "0002.webp", "0004.webp"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert files.picture(3, "things", 2, 2) == folder / "0002-2.webp"
    with Image.open(files.picture(3, "things", 1)) as small:
        assert (small.format, small.size, small.mode) == ("WEBP", (160, 80), "RGB")
    with Image.open(folder / "0002.webp") as small:
        assert small.size == (20, 40)  # not made larger
    assert all(path.stat().st_size < 12_000 for path in folder.iterdir())  # even of pure noise


def test_they_are_made_once_and_not_without_bound(tmp_path, task, monkeypatch):
    monkeypatch.setattr(thumbnails, "AT_MOST", 1)
    files = RunDir(tmp_path / "run")
    keep_pictures(files.pictures(1, "things"), task)
    folder = files.pictures(1, "things")
    assert [path.name for path in folder.iterdir()] == ["0001.webp"]
    monkeypatch.undo()
    keep_pictures(files.pictures(1, "things"), task)  # there already
    assert [path.name for path in folder.iterdir()] == ["0001.webp"]
    keep_pictures(
        files.pictures(2, "things"), replace(task, test=task.test[2:3])
    )  # nothing to show
    assert not files.pictures(2, "things").exists()


def test_a_picture_that_cannot_be_read_is_named_and_no_half_is_left(tmp_path, task):
    (tmp_path / "wide.jpg").write_bytes(b"no picture")
    files = RunDir(tmp_path / "run")
    with pytest.raises(DataError, match=r"wide\.jpg: it is no picture"):
        keep_pictures(files.pictures(1, "things"), task)
    assert not list((tmp_path / "run").rglob("*.webp")) and not files.pictures(1, "things").exists()


def test_pictures_that_cannot_be(tmp_path):
    for line, k in ((0, 1), (1, 0)):
        with pytest.raises(RunDirError, match="count from 1"):
            RunDir(tmp_path).picture(1, "things", line, k)


def test_a_run_keeps_the_pictures_of_what_it_asks(make_run, tmp_path):
    make_run("zeroshot").go()
    run = RunDir(tmp_path / "run")
    for on, name in ((1, "lower"), (2, "upper")):
        lines = read_lines(run.predictions(0, on))
        kept = [run.picture(on, name, line) for line in range(1, len(lines) + 1)]
        assert all(path.is_file() for path in kept)
        assert len(kept) == len(list(kept[0].parent.iterdir())) == 6
