"""The readers of instruction files, configurations and predictions, over whatever there may be."""

from __future__ import annotations

import io
import json

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.strange_values import anything, damaged_bytes, json_bytes, spoiled, texts
from tests.fuzz.within import held, many
from tests.strange import at_once, put
from undrift.data.benchmarks import folder
from undrift.data.doctor import read_split
from undrift.data.instructions import TaskFiles, read_examples
from undrift.data.picture_folder import PictureFolder
from undrift.data.published_benchmark import by_question_id
from undrift.errors import UndriftError
from undrift.run.config import load_yaml, overrides, read_order, resolve
from undrift.rundir import write_json
from undrift.scoring import read_predictions, score_file

NAMES = st.sampled_from(
    "a.png ./a.png sub/a.png link.png fifo.png to-fifo.png device.png socket.png sub gone.png "
    "../out.png /etc/passwd out.png sub/../a.png C:\\a.png loop.png".split()
)
PICTURES = st.one_of(NAMES, st.lists(NAMES, max_size=3), texts)
WORDS = st.sampled_from(["Which?", "<image>\nWhich?", "red", "B", "", " ", "<image><image>", "é"])
IDS = st.one_of(st.integers(0, 9), st.sampled_from(["1", "a#1", "b~2"]))
ANSWERS = st.one_of(WORDS, st.lists(WORDS, max_size=3), st.floats(0, 9), st.integers(0, 9))

conversations = st.fixed_dictionaries(
    {
        "id": IDS,
        "conversations": st.lists(
            st.tuples(WORDS, WORDS).map(
                lambda pair: [
                    {"from": "human", "value": pair[0]},
                    {"from": "gpt", "value": pair[1]},
                ]
            ),
            max_size=3,
        ).map(lambda pairs: [turn for pair in pairs for turn in pair]),
    },
    optional={"image": PICTURES, "question_id": IDS, "note": anything},
)
evaluations = st.fixed_dictionaries(
    {"question_id": IDS, "text": WORDS, "answer": ANSWERS},
    optional={"image": PICTURES, "answers": ANSWERS, "answer_bbox": ANSWERS, "choices": anything},
)
PARTS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}),
        st.just({"type": "image"}),
        st.fixed_dictionaries({"type": st.just("image"), "image": PICTURES | anything}),
        st.fixed_dictionaries({"type": st.just("image_url"), "image_url": PICTURES | anything}),
    ),
    max_size=3,
)
messages = st.fixed_dictionaries(
    {
        "messages": st.tuples(WORDS | PARTS, WORDS | PARTS).map(
            lambda said: [
                {"role": "user", "content": said[0]},
                {"role": "assistant", "content": said[1]},
            ]
        )
    },
    optional={"images": PICTURES, "image": PICTURES, "id": IDS, "system": WORDS | anything},
)
pairs = st.one_of(
    st.fixed_dictionaries(
        {question: WORDS, answer: ANSWERS},
        optional={
            "images": PICTURES, "input": WORDS, "video": PICTURES,
            "history": st.lists(st.lists(WORDS, min_size=2, max_size=2), max_size=2),
        },
    )
    for question, answer in (
        ("question", "answer"), ("query", "response"), ("instruction", "output"),
        ("prompt", "completion"), ("problem", "solution"),
    )
)  # fmt: skip
rows = st.lists(conversations | evaluations | messages | pairs, max_size=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of pictures, some of which are none."""
    resolve({"benchmark": "pocket"})  # what this imports is no case's time
    root = tmp_path_factory.mktemp("strange")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDRIFT_CACHE", str(root / "cache"))
        data = root / "data"
        (data / "sub").mkdir(parents=True)
        for name in ("a.png", "sub/a.png", "../out.png"):
            Image.new("RGB", (2, 2)).save(data / name)
        for kind in ("fifo", "device", "socket"):
            put(data / f"{kind}.png", kind)
        (data / "to-fifo.png").symlink_to("fifo.png")
        (data / "link.png").symlink_to("a.png")
        (data / "out.png").symlink_to("../out.png")
        (data / "loop.png").symlink_to("loop.png")
        yield data


def read(path, root):
    """Read a file as a run does, as a run with --skip-bad does, and as doctor does."""
    bad = []
    with held():
        made = read_examples(path, PictureFolder(root))
        usable(made)
    try:
        with held():
            usable(read_examples(path, PictureFolder(root), number_repeats=True, bad=bad))
            assert all(row.file == path and row.row > 0 for row in bad)
    finally:
        join = by_question_id({"1": {"choices": ["a"]}}, "second file")
        source = TaskFiles("x", {"test": path}, PictureFolder(root), "exact", 8, join=join)
        with held():
            split, findings = read_split(source, "test")
            assert not bad or findings or split.rows
            write_json(
                root / "found.json", {"findings": [finding.content() for finding in findings]}
            )


def usable(examples):
    """Whatever is let through can be written, and its pictures are files."""
    for one in examples:
        "\n".join([one.id, one.question, *one.answers]).encode()
        assert one.question.strip() and all(answer.strip() for answer in one.answers)
        assert all(path.is_file() for path in one.images)


@many(5)
@given(st.data(), spoiled(rows), st.booleans())
def test_rows_with_something_wrong_in_them(root, data, made, lines):
    values = made if lines and isinstance(made, list) else [made]
    content = b"\n".join(data.draw(json_bytes(value)) for value in values)
    path = root / ("x.jsonl" if lines else "x.json")
    path.write_bytes(content)
    with at_once(60):
        read(path, root)


@many(5)
@given(st.one_of(st.binary(max_size=200), anything.map(lambda v: json.dumps(v).encode())))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"[" + b"9" * 100_000 + b"]")
@example(b'[{"id": "\\ud800"}]')
@example(b"[NaN, -Infinity, 1e999, -0]")
@example(b"\xff\xfe[\x00]\x00")
@example(b"\xef\xbb\xbf[{}]")
@example(b'["' + b"\\" * 100_001)
@example(b" " * 500_000)
@example(b"\n" * 100_000)
@example(b"question,answer\n" + b'"' * 100_001)
@example(b"question,answer\nWhich?,red\n")
@example("question\tanswer\nWhich?\tred\n".encode("utf-16"))
@example(b'{"question": "?", "answer": "!"}' * 1000)
@example(b"\0\0\xfe\xff[")
def test_any_bytes(root, content):
    for suffix in ("json", "jsonl", "csv", "tsv", "parquet", "txt"):
        path = root / f"y.{suffix}"
        path.write_bytes(content)
        with at_once(60):
            read(path, root)


@many(5)
@given(st.data(), spoiled(st.lists(conversations | messages, min_size=1, max_size=3)))
def test_tables(root, data, made):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    written = io.BytesIO()
    try:
        parquet.write_table(pyarrow.Table.from_pylist(made), written)
    except Exception:  # no table holds such rows; an empty one is as good
        parquet.write_table(pyarrow.Table.from_pylist([{"id": 1}]), written)
    path = root / "z.parquet"
    path.write_bytes(data.draw(damaged_bytes(written.getvalue())))
    with at_once(60):
        read(path, root)


SETTINGS = st.fixed_dictionaries(
    {"benchmark": st.sampled_from(["pocket", "folder"])},
    optional={
        "method": st.sampled_from(["same", "same-paper", {"name": "moelora", "rank": 4}]),
        "profile": st.sampled_from(["lite", {"limit": 3}]),
        "train": st.just({"epochs": 1, "learning_rate": 0.1}),
        "order": st.sampled_from(["default", ["digits"]]),
        "data": st.just("x"),
    },
)
TASKS = st.lists(
    st.fixed_dictionaries(
        {"name": st.just("a"), "train": st.just("x.json")},
        optional={"images": NAMES, "scorer": st.just("exact"), "max_new_tokens": st.just(4)},
    ),
    max_size=2,
)


def as_yaml(value):
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


@many(5)
@given(st.data(), st.one_of(spoiled(SETTINGS), spoiled(TASKS), anything), texts, texts)
@example(None, {"a": [1]}, "a.b", "*x")
@example(None, {"a": [1]}, "method", "{name: [1]}")
@example(None, {"a": "9" * 200_000}, "method", "9" * 200_000)
@example(None, {"a": int("9" * 4_000)}, "method", "1." + "9" * 200_000)
def test_configurations(root, data, value, key, text):
    content = as_yaml(value)
    path = root / "x.yaml"
    path.write_bytes(content if data is None else data.draw(damaged_bytes(content)))
    (root / "x.json").write_text('[{"id": 1, "text": "?", "answer": "!"}]')
    with at_once(60):
        with held():
            resolve(load_yaml(path))
        with held():
            [source.name for source in folder.sources(path)]
        with held():
            resolve({"benchmark": "pocket"}, overrides([f"{key}={text}"]))
        with held():
            read_order(key)


@many(5)
@given(
    st.data(),
    spoiled(st.lists(st.fixed_dictionaries({"question_id": IDS, "text": WORDS}), max_size=3)),
)
def test_predictions(root, data, made):
    values = made if isinstance(made, list) else [made]
    path = root / "said.jsonl"
    path.write_bytes(b"\n".join(data.draw(json_bytes(value)) for value in values))
    with held():
        found = read_predictions(path)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
        score_file("coin/GQA", found, (), "coin")


def test_what_is_made_here_is_valid_often_enough(root):
    """A fuzz over rows that are all refused at the first look would prove little."""
    good = []

    @many(5)
    @given(spoiled(rows))
    def count(made):
        path = root / "x.json"
        path.write_text(json.dumps(made))
        try:
            good.append(len(read_examples(path, PictureFolder(root), bad=[])))
        except UndriftError:
            good.append(0)

    count()
    assert sum(map(bool, good)) > len(good) / 20
