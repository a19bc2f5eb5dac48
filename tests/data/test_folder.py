"""Your own data: folders or a list, held-out parts, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from undrift.data import Example
from undrift.data.benchmarks.folder import benchmark, own_task
from undrift.data.subset import hold_out
from undrift.errors import ConfigError, DataError, UnknownName
from undrift.run.learned_tasks import from_files


def rows(count, *, each=2):
    """Rows of questions, `each` of them about one picture."""
    return [
        {"question_id": n, "image": f"photos/{n // each}.jpg", "text": f"Bird {n}?", "answer": "A"}
        for n in range(count)
    ]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, content)))
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def picture_files(folder, count=20):
    for n in range(count):
        write(folder / "photos" / f"{n}.jpg", "")


@pytest.fixture
def data(tmp_path):
    """Three tasks as folders; the second has no test file, the third JSON lines."""
    root = tmp_path / "data"
    for name in ("1-birds", "2-bees", "3-beetles"):
        picture_files(root / name)
    write(root / "1-birds" / "train.json", rows(6))
    write(root / "1-birds" / "test.json", rows(4))
    write(root / "1-birds" / "val.json", rows(2))
    write(root / "2-bees" / "train.json", rows(40))
    write(root / "3-beetles" / "train.jsonl", rows(6))
    write(root / "3-beetles" / "test.jsonl", rows(6))
    (root / "unused pictures").mkdir()
    return root


def load(root, **options):
    return benchmark(root, progress=False, **options)


def listed(data, text):
    write(data / "tasks.yaml", text)
    return load(data)


def test_folders_are_tasks_in_the_order_of_their_names(data):
    made = load(data)
    assert [task.name for task in made.tasks] == ["1-birds", "2-bees", "3-beetles"]
    assert next(task.name for task in made.in_order("reversed")) == "3-beetles"
    birds, bees, beetles = made.tasks
    assert (len(birds.train), len(birds.validation), len(birds.test)) == (6, 2, 4)
    assert (len(bees.train), len(bees.test)) == (36, 4)
    assert (len(beetles.train), len(beetles.test)) == (6, 6)
    assert (birds.scorer, birds.max_new_tokens) == ("exact", 128)


def test_parquet(data):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    before = load(data).fingerprint
    (data / "1-birds" / "train.json").unlink()
    parquet.write_table(
        pyarrow.Table.from_pylist(rows(6)), data / "1-birds" / "train.parquet"
    )  # fmt: skip
    assert load(data).fingerprint == before


def test_a_list_decides_order_scorer_and_folders(data):
    made = listed(
        data,
        """
        - {name: bees, train: 2-bees/train.json, images: 2-bees, scorer: letter, max_new_tokens: 4}
        - {name: birds, train: 1-birds/train.json, test: 1-birds/test.json, images: 1-birds}
        """,
    )
    assert [(t.name, t.scorer, t.max_new_tokens) for t in made.tasks] == [
        ("bees", "letter", 4), ("birds", "exact", 128),
    ]  # fmt: skip
    assert load(data / "tasks.yaml").fingerprint == made.fingerprint


def test_pictures_of_test_questions_lie_beside_their_own_file(data):
    own = own_task(data / "2-bees" / "train.json", test=data / "1-birds" / "test.json")
    task = own.source().task()
    assert {path.parents[1].name for e in task.test for path in e.images} == {"1-birds"}
    assert {path.parents[1].name for e in task.train for path in e.images} == {"2-bees"}
    note = from_files(own, task, 0.1, 0, skip_bad=False)
    assert note["images"] == str((data / "1-birds").resolve())  # where they are asked again
    one_place = own_task(own.train, test=own.test, images=data / "3-beetles").source().task()
    assert {path.parents[1].name for e in one_place.test for path in e.images} == {"3-beetles"}
    birds = "- {name: a, train: 1-birds/train.json, test: 3-beetles/test.jsonl, images: 1-birds, "
    (task,) = listed(data, birds + "test_images: 3-beetles}").tasks
    assert {path.parents[1].name for e in task.test for path in e.images} == {"3-beetles"}


def test_the_fingerprint_does_not_depend_on_the_place(data, tmp_path):
    shutil.copytree(data, tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").fingerprint == load(data).fingerprint
    assert load(data, seed=1).fingerprint != load(data).fingerprint


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("name: birds", ConfigError, "should hold a list of tasks"),
        ("- [", ConfigError, "(?s)cannot read .*tasks.yaml: .*line \\d"),
        ("- {name: a}", ConfigError, "task 1 in .* has no train"),
        ("- {train: 2-bees/train.json}", ConfigError, "task 1 in .* has no name"),
        ("- {name: 3, train: 2-bees/train.json}", ConfigError, "name of task 1 in .* is no text"),
        ("- {name: a, train: x, max_new_tokens: yes}", ConfigError, "is no whole number"),
        ("- {name: a, trian: x}", UnknownName, "'trian'; did you mean 'train'"),
        ("- {name: a, train: 2-bees/trian.json}", DataError, "nearest name is 'train.json'"),
        ("- {name: a, train: 2-bees/train.json, images: 2-bes}", DataError, "name is '2-bees'"),
        ("- {name: a, train: 2-bees/train.json, images: 2-bees, scorer: leter}", UnknownName,
         "did you mean 'letter'"),
        ("[]", DataError, "holds no task"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_used(data, text, error, message):
    with pytest.raises(error, match=message):
        listed(data, text)


def test_a_misspelt_file_is_no_reason_to_leave_a_task_out(data):
    (data / "2-bees" / "train.json").rename(data / "2-bees" / "trian.json")
    with pytest.raises(DataError, match=r"nearest name is 'trian\.json'"):
        load(data)


def test_a_folder_without_tasks(tmp_path):
    with pytest.raises(DataError, match=r"holds no task; expected folders with a train\.json"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="add --data DIR"):
        load(None)


def test_bad_rows_are_collected_where_asked(data):
    write(data / "1-birds" / "train.json", [*rows(4), {"question_id": 9}])
    with pytest.raises(DataError, match=r"train\.json, row 5"):
        load(data)
    bad = []
    assert len(load(data, bad=bad).tasks[0].train) == 4 and len(bad) == 1


# ---------------------------------------------------------------- held out


def examples(count, *, each):
    root = Path("/data")
    return [
        Example(str(n), f"Bird {n}?", ("A",), (root / f"{n // each}" / "image.png",))
        for n in range(count)
    ]


def held(made, share=0.1, seed=0):
    return hold_out(made, share, seed, Path("/data"))


def test_a_picture_is_never_on_both_sides():
    kept, out = held(examples(120, each=4), 0.25)
    assert not {e.images for e in kept} & {e.images for e in out}
    assert len(kept) + len(out) == 120 and 30 <= len(out) < 34


def test_what_is_held_out_depends_on_names_and_seed_alone():
    made = examples(100, each=1)
    _, out = held(made)
    assert len(out) == 10
    assert set(held(made[::-1])[1]) == set(out)
    assert set(held(made, seed=1)[1]) != set(out)
    assert set(out) < set(held(made, 0.3)[1])
    moved = [
        Example(
            e.id,
            e.question,
            e.answers,
            tuple(Path("/mnt") / p.relative_to("/data") for p in e.images),
        )
        for e in made
    ]
    assert {e.id for e in hold_out(moved, 0.1, 0, Path("/mnt"))[1]} == {e.id for e in out}


def test_turns_of_one_conversation_without_picture_stay_together():
    made = [Example(f"{n // 3}#{n % 3}", "Why?", ("so",)) for n in range(60)]
    kept, out = held(made)
    assert len(out) == 6
    assert not {e.id.split("#")[0] for e in kept} & {e.id.split("#")[0] for e in out}


@pytest.mark.parametrize("share", [1.0, -1])
def test_shares_that_cannot_be(share):
    with pytest.raises(ConfigError, match="held_out is"):
        held(examples(10, each=1), share)
