"""Rows that nobody can use: each is left out or named with its place, and no other suffers."""

from __future__ import annotations

import json

import pytest

from tests.strange import at_once
from undrift.data.benchmarks import folder
from undrift.data.instructions import read_examples
from undrift.data.picture_folder import PictureFolder
from undrift.data.row_files import BadRow, read_json, read_rows
from undrift.data.types import Example
from undrift.errors import ConfigError, DataError, UndriftError, one_line, unknown
from undrift.run.config import load_yaml, overrides, parse_mapping, read_order
from undrift.scoring import read_predictions, score_file
from undrift.untrusted import NotJson, Refused, json_elements, parse_json

DEEP = "[" * 3000 + "]" * 3000
GOOD = '{"id": %d, "text": "Which?", "answer": "red", "note": "\\ud83d\\ude00"}'
NOTED = '{"id": 2, "text": "Which?", "answer": "red", "note": '
BAD = {
    "deep": (f"{NOTED}{DEEP}}}", "inside one another"),
    "deep, and Python could": (f"{NOTED}{'[' * 300}{']' * 300}}}", "inside one another"),
    "digits": ('{"id": ' + "7" * 5000 + ', "text": "Which?", "answer": "red"}', "5,000 digits"),
    "digits of an answer": (
        '{"id": 2, "text": "Which?", "answer": -' + "7" * 400 + "}", "400 digits",
    ),
    "surrogate in question": ('{"id": 2, "text": "\\ud800?", "answer": "red"}', "surrogate"),
    "surrogate in answer": ('{"id": 2, "text": "Which?", "answer": "\\uDFFF"}', "surrogate"),
    "surrogate in id": ('{"id": "\\udc80", "text": "Which?", "answer": "red"}', "surrogate"),
    "surrogate in picture": (
        '{"id": 2, "image": "\\ud800.png", "text": "Which?", "answer": "red"}', "surrogate",
    ),
    "surrogate in extra": (
        '{"id": 2, "text": "Which?", "answer": "red", "note": {"\\ud800": 1}}', "surrogate",
    ),
    "not a number": ('{"id": 2, "text": "Which?", "answer": NaN}', "NaN"),
    "infinity": ('{"id": 2, "text": "Which?", "answer": -Infinity}', "Infinity"),
    "beyond floats": ('{"id": 2, "text": "Which?", "answer": 1e999}', "1e999"),
}  # fmt: skip
FORMS = {
    ".json": lambda rows: "[" + ",\n".join(rows) + "]",
    ".jsonl": lambda rows: "\n".join(rows) + "\n",
}


def written(folder, suffix, bad):
    path = folder / f"train{suffix}"
    path.write_text(FORMS[suffix]([GOOD % 1, bad, GOOD % 3, GOOD % 4]))
    return path


@pytest.mark.foreign("2.6")
@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize("case", BAD)
def test_such_a_row_is_named_or_left_out(tmp_path, case, suffix):
    row, reason = BAD[case]
    path = written(tmp_path, suffix, row)
    with at_once(), pytest.raises(DataError, match=rf"train{suffix}, row 2: .*{reason}") as raised:
        read_examples(path, PictureFolder(tmp_path))
    assert "\n" not in str(raised.value)
    bad: list[BadRow] = []
    assert [e.id for e in read_examples(path, PictureFolder(tmp_path), bad=bad)] == ["1", "3", "4"]
    assert [row.row for row in bad] == [2]


@pytest.fixture
def undrift(monkeypatch, command_line):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        with at_once(60):
            return command_line(*words)

    return run


@pytest.mark.foreign("2.6")
@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize("case", BAD)
def test_doctor_counts_it_and_can_write_what_it_found(tmp_path, undrift, case, suffix):
    (tmp_path / "data/birds").mkdir(parents=True)
    written(tmp_path / "data/birds", suffix, BAD[case][0])
    found = tmp_path / "found.json"
    status, out, err = undrift("doctor", "folder", "--data", tmp_path / "data", "--out", found)
    assert status == 1, err
    assert "1 row that cannot be used" in out and "row 2" in out and "train 4" in out
    (finding,) = [f for f in json.loads(found.read_text())["findings"] if f["check"] == "row"]
    assert finding["items"][0]["row"] == 2 and BAD[case][1] in finding["items"][0]["reason"]


@pytest.mark.foreign("2.6")
def test_a_line_that_is_not_utf8_spoils_no_other(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"id": 1}\n{"id": "caf\xe9"}\n{"id": 3}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, row 2: it is not UTF-8 .byte 0xe9 at 11"):
        list(read_rows(path))
    bad: list[BadRow] = []
    assert list(read_rows(path, bad)) == [(1, {"id": 1}), (3, {"id": 3})]
    assert [row.row for row in bad] == [2]


@pytest.mark.foreign("2.6")
@pytest.mark.parametrize("text", [DEEP, "[" * 100_000, '{"a": %s}' % ("1" * 5000), '["\\ud800"]'])
def test_a_second_file_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "problems.json"
    path.write_text(text)
    with at_once(), pytest.raises(DataError, match=r"problems\.json") as raised:
        read_json(path)
    assert "\n" not in str(raised.value)


@pytest.mark.foreign("2.6")
@pytest.mark.parametrize("case", BAD)
def test_predictions_are_refused_with_their_line(tmp_path, case):
    path = tmp_path / "said.jsonl"
    path.write_text('{"question_id": 1, "text": "red"}\n' + BAD[case][0])
    with at_once(), pytest.raises(DataError, match=rf"said\.jsonl, line 2: .*{BAD[case][1]}"):
        read_predictions(path)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{one}: &{one} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "nested": "a: " + "[" * 5000 + "]" * 5000,
    "nested mappings": "".join(f"{' ' * n}a:\n" for n in range(500)),
    "a bomb": BOMB,
    "a bomb of merges": MERGES,
    "a bomb where it is shown": BOMB + "method: *i\n",
    "holds itself": "a: &a [*a]",
    "digits": f"seed: {'7' * 5000}",
    "no date": "a: 2024-13-45",
    "no number": 'a: !!int ""',
    "no truth": "a: !!bool maybe",
    "no time": "a: !!timestamp now",
    "half a character": '"\\uD800": 1',
    "a NUL": 'data: "a\\0b"',
    "infinite": "train: {learning_rate: .inf}",
    "not a number": "train: {learning_rate: .nan}",
    "two documents": "a: 1\n---\nb: 2",
    "an object": "a: !!python/object:os.system {}",
    "latin-1": b"a: caf\xe9",
    "enormous": "a: " + "x" * 2**19,
}
EASY_BEFORE = {"two documents", "an object", "latin-1"}


@pytest.mark.foreign("2.6")
@pytest.mark.parametrize("case", sorted(YAML.keys() - EASY_BEFORE))
def test_a_configuration_is_refused_in_one_line(tmp_path, case):
    refused_by_all(tmp_path, YAML[case])


@pytest.mark.parametrize("case", sorted(EASY_BEFORE))
def test_so_are_these(tmp_path, case):
    refused_by_all(tmp_path, YAML[case])


def refused_by_all(tmp_path, content):
    path = tmp_path / "tasks.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for enter in (load_yaml, folder.sources):
        with at_once(), pytest.raises(ConfigError, match=r"tasks\.yaml") as raised:
            enter(path)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


@pytest.mark.foreign("2.6")
@pytest.mark.parametrize(
    "setting",
    [f"seed={'7' * 5000}", f"seed={DEEP}", "seed=.nan", f"{'a.' * 5000}b=1", "seed=2024-13-45",
     'reading.x="\\uD800"'],
)  # fmt: skip
def test_a_setting_is_refused_in_one_line(setting):
    with at_once(), pytest.raises(ConfigError, match="--set") as raised:
        overrides([setting])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


def test_a_few_aliases_and_merges_are_fine():
    text = "base: &base {lr: 1e-3}\na: {<<: *base, x: 2}\nb: *base\n"
    assert parse_mapping(text, "x")["a"] == {"lr": 0.001, "x": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {a: 1}\nseed: 2\ntrain: {b: 1}", "'train' twice, in lines 1 and 3; leave one"),
        ("- name: a\n  test: x.json\n  test: y.json", "'test' twice, in lines 2 and 3"),
        ("runs: [{set: {seed: 1, seed: 2}}]", "'seed' twice, in line 1;"),
        ("yes: 1\ntrue: 2", "'true' twice"),
        ("1: a\n0x1: b", "'0x1' twice"),
        ('a: 1\n"a": 2', "'a' twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "'<<' twice, in line 2"),
        ("a: &a {x: 1, x: 2}\nb: {<<: *a, x: 3}", "'x' twice, in line 1"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, text, said):
    path = tmp_path / "tasks.yaml"
    path.write_text(text)
    for enter in (load_yaml, folder.sources, lambda path: parse_mapping(path.read_text(), "x")):
        with pytest.raises(ConfigError) as raised:
            enter(path)
        assert f"the key {said}" in str(raised.value) and "\n" not in str(raised.value)


def test_a_key_of_ones_own_wins_over_a_merged_one():
    text = "a: &a {x: 1}\nb: {c: &b {<<: *a, x: 2, y: 2}}\nd: {<<: *b, x: 3}\ne: {<<: [*a, *b]}"
    found = parse_mapping(text, "x")
    assert found["b"]["c"] == {"x": 2, "y": 2} and found["d"] == {"x": 3, "y": 2}
    assert found["e"] == {"x": 1, "y": 2}
    assert parse_mapping("'1': a\n1: b\n=: c", "x") == {"1": "a", 1: "b", "=": "c"}


@pytest.mark.foreign("2.6")
def test_an_order_is_a_name_or_a_file_of_text(tmp_path):
    assert read_order("x" * 5000) == "x" * 5000
    path = tmp_path / "order.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match=r"order\.txt: it is not UTF-8"):
        read_order(str(path))


@pytest.mark.foreign("2.6")
def test_an_argument_that_is_not_utf8_is_refused_in_one_line(undrift):
    for words in (
        ("predict", "x", "--question", "caf\udce9?"),
        ("doctor", "folder", "--data", "caf\udce9"),
        ("run", "pocket", "--set", "seed=\udce9"),
        ("score", "coin/ScienceQA", "caf\udce9.jsonl", "--answers", "x.json"),
    ):
        status, _, err = undrift(*words)
        assert status == 2 and r"\udce9" in err and "is not UTF-8" in err
        assert err.count("\n") == 1


@pytest.mark.foreign("2.6")
def test_an_example_holds_no_half_character():
    for texts in (("\ud800", "?", ("!",)), ("1", "\udce9", ("!",)), ("1", "?", ("!", "\udfff"))):
        with pytest.raises(DataError, match="half a character"):
            Example(*texts)


@pytest.mark.foreign("2.6")
def test_a_folder_whose_name_is_not_utf8_can_be_looked_into(tmp_path, undrift, monkeypatch):
    """Only what is typed must be UTF-8."""
    inner = tmp_path / "caf\udce9"
    (inner / "birds").mkdir(parents=True)
    written(inner / "birds", ".json", "[1]")
    monkeypatch.chdir(inner)
    found = inner / "found.json"
    status, out, err = undrift("doctor", "folder", "--data", ".", "--out", "found.json")
    assert status == 1 and "row 2" in out, err
    assert json.loads(found.read_text())["findings"]
    status, out, err = undrift("doctor", "folder", "--data", ".", "--json")
    assert json.loads(out)["benchmark"] == "folder"


ESCAPES = "a\n\x1b[31mred\x1b[0m\u2028\u202e.png"


@pytest.mark.foreign("2.6")
def test_a_name_gives_the_terminal_no_commands(tmp_path, undrift):
    task = tmp_path / "data/birds"
    task.mkdir(parents=True)
    row = {"id": "1\x1b[2J\n", "image": ESCAPES, "text": "Which?", "answer": "red"}
    (task / "train.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"\\x1b\[31mred") as raised:
        read_examples(task / "train.json", PictureFolder(task))
    assert str(raised.value).isprintable()
    status, out, _ = undrift("doctor", "folder", "--data", tmp_path / "data")
    assert status == 1 and "\x1b[31m" not in out and r"a\n\x1b[31mred" in out
    (tmp_path / "data" / ESCAPES).mkdir()
    (tmp_path / "data" / ESCAPES / "train.json").write_text("[")
    _, out, _ = undrift("doctor", "folder", "--data", tmp_path / "data")
    assert "\x1b[31m" not in out and "[/" not in out


@pytest.mark.foreign("2.6")
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": ["user"], "content": "?"}]},
        {"messages": [{"role": "user", "content": [{"type": ["text"], "text": "?"}]}]},
        {"messages": [{"role": "user", "content": "?"}], "images": 5},
        {"id": 1, "conversations": [{"from": ["human"], "value": "?"}]},
        {"id": 1, "image": {"bytes": 3}, "text": "?", "answer": "!"},
        {"id": 1, "image": "a/" * 50_000 + "x", "text": "?", "answer": "!"},
        {"id": 1, "image": "x" * 100_000, "text": "?", "answer": "!"},
    ],
)
def test_values_of_another_kind_make_a_bad_row(tmp_path, row):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row]))
    with at_once(), pytest.raises(DataError, match="row 1") as raised:
        read_examples(path, PictureFolder(tmp_path))
    assert len(str(raised.value)) < 2000


def test_cells_of_a_table_that_cannot_be_read_make_a_bad_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array([b"1", b"caf\xe9", b"3"]).cast(pyarrow.binary())
    spoiled = pyarrow.StringArray.from_buffers(3, *texts.buffers()[1:])
    times = pyarrow.array([1, 2, 2**62], pyarrow.int64()).cast(pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"id": spoiled, "when": times}), tmp_path / "x.parquet")
    bad: list[BadRow] = []
    assert [row["id"] for _, row in read_rows(tmp_path / "x.parquet", bad)] == ["1"]
    assert [row.row for row in bad] == [2, 3]


class TestJson:
    def test_what_may_be_read(self):
        assert parse_json(' {"a": [1, -0, 1.5e3, "\\ud83d\\ude00", null]}\n') == {
            "a": [1, 0, 1500.0, "\U0001f600", None]
        }
        assert parse_json("[" * 100 + "]" * 100)
        assert parse_json(f"[{'[],' * 500}[]]")  # many, but not inside one another
        assert parse_json("9" * 300) == int("9" * 300)
        assert parse_json('{"a": 1, "a": 2}') == {"a": 2}

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("[" * 101 + "]" * 101, "more than 100"),
            ("[" * 10**6, "more than 100"),
            ("9" * 301, "301 digits"),
            ('{"a": {"b": 1, "b": 2}}', "'b' twice"),
            ("[1] 2", "Extra data at line 1, column 5"),
            ("", "Expecting value"),
            ('"a\x00"', "Invalid control character"),
        ],
    )
    def test_what_may_not(self, text, reason):
        with pytest.raises(NotJson, match=reason):
            parse_json(text, unique=True)

    def test_elements_one_by_one(self):
        text = f'[1, {DEEP}, "]", {{"a": NaN}}, "x{DEEP}"]'
        first, deep, text, constant, last = json_elements(text)
        assert (first, text, last) == (1, "]", f"x{DEEP}")
        assert isinstance(deep, Refused) and isinstance(constant, Refused)
        assert list(json_elements(" [ ] ")) == []

    @pytest.mark.parametrize("text", ["[", "[1", "[1,", "[1,]", "[1 2]", "[1] x", "[" + "[" * 3000])
    def test_a_damaged_array(self, text):
        with pytest.raises(NotJson):
            list(json_elements(text))


def test_errors_are_one_line_whatever_they_name():
    assert one_line("a\nb\x1b[0m\u2028\ud800é") == r"a\nb\x1b[0m\u2028\ud800é"
    assert str(DataError("cannot read a\nb")) == r"cannot read a\nb"
    assert str(UndriftError("first", "second")) == "first\nsecond"
    assert len(str(unknown("key", "x" * 10**6, ["a"]))) < 300


@pytest.mark.foreign("2.6")
@pytest.mark.parametrize("extra", [{"choices": 5}, {"human_answers": 5}, {"choices": {"a": 1}}])
def test_what_is_beside_an_example_may_be_of_another_kind(extra):
    examples = [Example("1", "?", ("A",), (), extra)]
    said = [{"question_id": "1", "text": "B"}]
    with pytest.raises(DataError, match="should be a list of texts"):
        score_file("coin/ScienceQA", said, examples, "coin")
        score_file("coin/TextVQA", said, examples, "coin")
