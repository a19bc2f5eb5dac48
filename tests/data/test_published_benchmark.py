"""The published benchmarks on their fixtures, and what the specification warns of, trap by trap."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from undrift.data.benchmarks import coin, mllm_dcl, trigap, ucit
from undrift.errors import ConfigError, DataError, UnknownName
from undrift.registry import BENCHMARKS
from undrift.scoring import TASKS, scores_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODULES = {"coin": coin, "ucit": ucit, "trigap": trigap, "mllm_dcl": mllm_dcl}
ORDERS = {
    "coin": ["ScienceQA", "TextVQA", "ImageNet", "GQA", "VizWiz", "REC", "VQAv2", "OCR-VQA"],
    "ucit": ["ImageNet-R", "ArxivQA", "VizWiz", "IconQA", "CLEVR-Math", "Flickr30k"],
    "trigap": ["PMCVQA", "DocVQA", "ChartQA", "IconQA", "InfographicVQA", "ArxivQA", "Roadside",
               "ChemVQA", "FloodNetVQA", "CLEVR"],
    "mllm_dcl": ["RS", "Med", "AD", "Sci", "Fin"],
}  # fmt: skip


def load(name, root=None, **options):
    made = BENCHMARKS.load(name)(root or FIXTURES / name, progress=False, **options)
    return made, {task.name: task for task in made.tasks}


@pytest.fixture
def copied(tmp_path):
    """Copy a fixture, to be spoiled."""

    def copy(name):
        return Path(shutil.copytree(FIXTURES / name, tmp_path / name))

    return copy


def home(root, task):
    """Return the folder of a task's instructions."""
    outer = {"coin": "Instructions_Original", "mllm_dcl": "."}.get(root.name, "instructions")
    return root / outer / (task.folders or (task.name,))[0]


def edit(path, change):
    """Change the rows of a file: `change` gets them and may give others back."""
    rows = json.loads(path.read_text())
    given = change(rows)
    path.write_text(json.dumps(given if isinstance(given, list) else rows))


# ---------------------------------------------------------------- all four


@pytest.mark.parametrize("name", ORDERS)
def test_tasks_come_in_the_published_order(name):
    made, tasks = load(name)
    assert made.name == name
    assert list(tasks) == ORDERS[name] == [task.name for task in MODULES[name].TASKS]
    assert [task.name for task in made.in_order("reversed")] == ORDERS[name][::-1]
    for task in made.tasks:
        assert len(task.train) >= 3 and len(task.test) >= 3


@pytest.mark.parametrize("name", ORDERS)
def test_every_example_can_be_trained_on_and_scored(name):
    for task in load(name)[0].tasks:
        for example in (*task.train, *task.test):
            assert "<image>" not in example.question
            assert all(isinstance(answer, str) for answer in example.answers)
            for path in example.images:
                Image.open(path).verify()
        for example in task.test:
            extra = {"question": example.question, **example.extra}
            truth, empty = (
                scores_of(task.scorer, said, example.answers, extra, "coin")
                for said in (example.answers[0], "")
            )
            captions = TASKS[task.scorer].kind == "caption"
            assert (truth["strict"] is None) if captions else (truth["strict"] or 0) >= 0.9
            assert truth["form"] == 1.0 and not empty["lenient"]


@pytest.mark.parametrize("name", ORDERS)
def test_the_fingerprint_is_the_data_not_its_place(name, copied):
    made, _ = load(name)
    root = copied(name)
    assert load(name, root)[0].fingerprint == made.fingerprint
    task = MODULES[name].TASKS[1]
    file = home(root, task) / task.train[0]
    edit(file, lambda rows: rows[0].update(image=rows[1]["image"]))
    other_picture = load(name, root)[0].fingerprint
    edit(file, lambda rows: rows[:-1])
    assert len({made.fingerprint, other_picture, load(name, root)[0].fingerprint}) == 3


@pytest.mark.parametrize("name", ORDERS)
def test_a_missing_folder_names_the_nearest_before_anything_is_read(name, copied, monkeypatch):
    root, task = copied(name), MODULES[name].TASKS[-1]
    folder = home(root, task)
    folder.rename(folder.with_name(folder.name + "_old"))
    monkeypatch.setattr("undrift.data.instructions.read_examples", lambda *_: pytest.fail("read"))
    with pytest.raises(DataError, match=f"nearest name is '{folder.name}_old'"):
        load(name, root)


@pytest.mark.parametrize("name", ORDERS)
def test_a_missing_file_names_the_nearest(name, copied):
    root, task = copied(name), MODULES[name].TASKS[0]
    file = home(root, task) / task.train[0]
    file.rename(file.with_name(f"{file.name}.part"))
    with pytest.raises(DataError, match=rf"does not exist.*nearest name is '{file.name}\.part'"):
        load(name, root)


@pytest.mark.parametrize("name", ORDERS)
def test_data_is_asked_for(name):
    with pytest.raises(ConfigError, match="add --data DIR, with"):
        BENCHMARKS.load(name)(None)
    with pytest.raises(DataError, match=f"nearest name is '{name}'"):
        load(name, FIXTURES / f"{name}x")


@pytest.mark.parametrize("name", ORDERS)
def test_a_part_of_the_tasks_needs_a_part_of_the_data(name, copied):
    root, first, last = copied(name), MODULES[name].TASKS[0], MODULES[name].TASKS[-1]
    shutil.rmtree(home(root, last))
    made, _ = load(name, root, only=[first.name])
    assert [task.name for task in made.in_order("reversed")] == [first.name]
    with pytest.raises(UnknownName, match="unknown task 'Scineceqa'"):
        load(name, only=["Scineceqa"])


@pytest.mark.parametrize("name", ORDERS)
def test_bad_rows_are_collected_where_asked(name, copied):
    root, task = copied(name), MODULES[name].TASKS[0]
    file = home(root, task) / task.train[0]
    edit(file, lambda rows: rows[1].update(image="absent.jpg"))
    with pytest.raises(DataError, match=r"row 2: there is no picture .*absent\.jpg"):
        load(name, root)
    bad = []
    _, tasks = load(name, root, bad=bad)
    assert [(problem.file, problem.row) for problem in bad] == [(file, 2)]
    assert len(tasks[task.name].train) == len(load(name)[1][task.name].train) - 1


def test_published_numbers():
    rows = {n: {t.name: (t.train_rows, t.test_rows) for t in m.TASKS} for n, m in MODULES.items()}
    assert rows["coin"]["ScienceQA"] == (12_726, 4_241)
    assert rows["coin"]["GQA"] == (72_140, 12_578)
    assert rows["coin"]["REC"] == (None, None), "unverified numbers are not stated"
    assert sum(train for train, _ in rows["trigap"].values()) == 235_000
    assert {test for _, test in rows["ucit"].values()} == {3_000}


# ---------------------------------------------------------------- CoIN


def test_text_only_rows_of_scienceqa_have_no_picture():
    _, tasks = load("coin")
    task = tasks["ScienceQA"]
    assert Counter(len(e.images) for e in task.train) == {1: 2, 0: 2}
    assert Counter(len(e.images) for e in task.test) == {1: 2, 0: 1}


def test_a_letter_beyond_the_number_of_choices_can_be_told(copied):
    """Prism does not check it; the choices are kept beside each test example."""
    assert all(len(e.extra["choices"]) == 3 for e in load("coin")[1]["ScienceQA"].test)
    root = copied("coin")
    (root / "ScienceQA" / "problems.json").unlink()
    assert "choices" not in load("coin", root)[1]["ScienceQA"].test[0].extra


def test_the_suffix_stands_once():
    """HiDe and Prism append ScienceQA's format line to questions that end with it already."""
    _, tasks = load("coin")
    line = "Answer with the option's letter from the given choices directly."
    for example in (*tasks["ScienceQA"].train, *tasks["ScienceQA"].test):
        assert example.question.count(line) == 1 and example.question.endswith(line)


def test_conversations_of_several_turns_are_one_example_a_question():
    _, tasks = load("coin")
    ids = [example.id for example in tasks["GQA"].train]
    assert ids == ["2331#1", "2331#2", "2331#3", "2332#1", "2332#2", "2333"]
    assert len({e.images for e in tasks["GQA"].train[:3]}) == 1
    for name in ("REC", "VQAv2", "OCR-VQA"):
        assert sum(example.id.endswith("#2") for example in tasks[name].train) == 1


def test_ids_are_texts_whatever_the_file_holds():
    _, tasks = load("coin")
    files = FIXTURES / "coin" / "Instructions_Original"
    assert isinstance(json.loads((files / "VQAv2/val.json").read_text())[0]["question_id"], int)
    assert isinstance(json.loads((files / "GQA/test.json").read_text())[0]["question_id"], str)
    for task in tasks.values():
        assert all(type(example.id) is str for example in (*task.train, *task.test))


def test_textvqa_has_ten_answers_matched_by_id(copied):
    root = copied("coin")
    official = root / "TextVQA" / "TextVQA_0.5.1_val.json"
    edit(official, lambda content: content["data"].reverse())
    test = load("coin", root)[1]["TextVQA"].test
    assert [len(e.answers) for e in test] == [10, 10, 10]
    assert [e.answers[0] for e in test] == [e.extra["answer"] for e in test]
    edit(official, lambda content: content["data"].pop())
    with pytest.raises(DataError, match=r"row 1: the official .* nothing about question '100'"):
        load("coin", root)
    official.unlink()
    with pytest.raises(DataError, match=r"'TextVQA' is scored by TextVQA_0\.5\.1_val\.json"):
        load("coin", root)


def test_one_file_cannot_be_both_questions_and_annotation(copied):
    """Prism's TextVQA names the question array as the annotation file, which holds an object."""
    root = copied("coin")
    questions = root / "Instructions_Original" / "TextVQA" / "val.json"
    shutil.copy(questions, root / "TextVQA" / "TextVQA_0.5.1_val.json")
    with pytest.raises(DataError, match=r"val\.json cannot be the annotation file of TextVQA"):
        load("coin", root)


def test_boxes_of_rec_keep_their_size_and_the_unpadded_box():
    example = load("coin")[1]["REC"].test[0]
    assert example.answers == ("[0.52,0.23,0.76,0.83]",)
    assert example.extra["size"] == [640, 480]
    assert example.extra["origin_answer_bbox"] == "[0.52,0.14,0.76,0.94]"


def test_vizwiz_is_asked_on_val_since_test_has_no_answers(copied):
    assert load("coin")[1]["VizWiz"].test[0].images[0].name == "VizWiz_val_00000100.jpg"
    root = copied("coin")
    (root / "Instructions_Original" / "VizWiz" / "val.json").unlink()
    with pytest.raises(DataError, match=r"test\.json, row 1: no answer beside 'text'"):
        load("coin", root)


def test_gqa_takes_answers_from_the_official_file_where_it_must(copied):
    root = copied("coin")
    before = [e.answers for e in load("coin", root)[1]["GQA"].test]
    official = root / "GQA" / "testdev_balanced_questions.json"
    edit(official, lambda content: content["201307251"].update(answer="of the official file"))
    assert [e.answers for e in load("coin", root)[1]["GQA"].test] == before, "its own answer wins"
    edit(official, lambda content: content["201307251"].update(answer="no"))
    file = root / "Instructions_Original" / "GQA" / "test.json"
    edit(file, lambda rows: [{k: v for k, v in r.items() if k != "answer"} for r in rows])
    assert [e.answers for e in load("coin", root)[1]["GQA"].test] == before
    official.unlink()
    with pytest.raises(DataError, match="no answer beside 'text'"):
        load("coin", root)


@pytest.mark.parametrize("name", ["valid.json", "test.json"])
def test_val_files_go_by_their_other_names(copied, name):
    root = copied("coin")
    folder = root / "Instructions_Original" / "TextVQA"
    (folder / "val.json").rename(folder / name)
    assert load("coin", root)[0].fingerprint == load("coin")[0].fingerprint


def test_the_wording_of_instructions_is_an_option(copied):
    original, diverse = load("coin")[0], load("coin", instructions="Diverse")[0]
    assert (original.version, diverse.version) == ("Original", "Diverse")
    assert original.fingerprint != diverse.fingerprint
    assert diverse.tasks[4].test[0].question.endswith("Reply with one word or a short phrase.")
    root = copied("coin")
    (root / "Instructions_Diverse").rename(root / "Instructions_10Type")
    assert load("coin", root, instructions="10Type")[0].fingerprint == diverse.fingerprint
    with pytest.raises(UnknownName, match="unknown instructions 'diverse'; did you mean 'Diverse'"):
        load("coin", instructions="diverse")


def test_a_ten_percent_subset_is_never_taken_for_the_whole(copied):
    """Prism ships paths to Instructions_Original_0.1."""
    root = copied("coin")
    (root / "Instructions_Original").rename(root / "Instructions_Original_0.1")
    with pytest.raises(DataError, match=r"nearest name is 'Instructions_Original_0\.1'"):
        load("coin", root)


def test_pictures_may_lie_in_cl_dataset(copied):
    root = copied("coin")
    (root / "cl_dataset").mkdir()
    for folder in root.iterdir():
        if not folder.name.startswith(("Instructions", "cl_")):
            folder.rename(root / "cl_dataset" / folder.name)
    assert load("coin", root)[0].fingerprint == load("coin")[0].fingerprint


# ---------------------------------------------------------------- UCIT, TriGap, MLLM-DCL


def test_captions_are_matched_by_picture_not_by_line(copied):
    """Public code numbers the predictions 1, 2, 3 ... in the order of their lines."""
    root = copied("ucit")
    before = {e.id: (e.answers, e.extra["image_id"]) for e in load("ucit", root)[1]["VizWiz"].test}
    assert all(len(answers) == 2 for answers, _ in before.values())
    folder = root / "instructions" / "VizWiz"
    edit(folder / "test_3000.json", lambda rows: rows.reverse())
    edit(folder / "val_coco_type_3000.json", lambda content: content["annotations"].reverse())
    after = {e.id: (e.answers, e.extra["image_id"]) for e in load("ucit", root)[1]["VizWiz"].test}
    assert {k: (set(a), i) for k, (a, i) in after.items()} == {
        k: (set(a), i) for k, (a, i) in before.items()
    }


def test_a_picture_without_captions_is_told(copied):
    """The released VizWiz captions had 2,999 ids for 3,000 pictures until October 2025."""
    root = copied("ucit")
    file = root / "instructions" / "VizWiz" / "val_coco_type_3000.json"
    edit(file, lambda content: content["images"].pop(1))
    with pytest.raises(DataError, match=r"row 2: .* no caption of the picture 'VizWiz_val_0000010"):
        load("ucit", root)
    bad = []
    assert len(load("ucit", root, bad=bad)[1]["VizWiz"].test) == 2 and len(bad) == 1


def test_two_pictures_of_one_name_among_the_captions_are_refused(copied):
    root = copied("ucit")
    file = root / "instructions" / "VizWiz" / "val_coco_type_3000.json"
    edit(file, lambda content: content["images"].append({**content["images"][0], "id": 9}))
    with pytest.raises(
        DataError, match=r"coco_type_3000\.json cannot be .* two pictures of the caption file"
    ):
        load("ucit", root)


def test_training_rows_may_share_an_id_but_test_rows_may_not(copied):
    """Captions of one picture share the picture's id in training."""
    ids = [example.id for example in load("ucit")[1]["Flickr30k"].train]
    assert ids == ["Flickr30k_1", "Flickr30k_2", "Flickr30k_3", "Flickr30k_1~2"]
    root = copied("ucit")
    edit(root / "instructions/IconQA/test_3000.json", lambda rows: rows[1].update(question_id=100))
    with pytest.raises(DataError, match="row 2: the id '100' is that of row 1 as well"):
        load("ucit", root)


def test_number_answers_of_clevr_math_are_texts():
    assert [e.answers for e in load("ucit")[1]["CLEVR-Math"].test] == [("4",), ("0",), ("7",)]


def test_ucit_as_mcitlib_lays_it_out(copied):
    root = copied("ucit")
    for folder in (root / "instructions").iterdir():
        name = "CLEVR-Math" if folder.name == "CLEVR" else folder.name
        shutil.move(folder, root / name)
        for file in (root / name).iterdir():
            if file.name.startswith(("train_", "test_")):
                file.rename(file.with_name(f"{file.name.partition('_')[0]}.json"))
    (root / "instructions").rmdir()
    assert load("ucit", root)[0].fingerprint == load("ucit")[0].fingerprint


def test_documents_have_several_answers():
    _, tasks = load("trigap")
    for name in ("DocVQA", "InfographicVQA"):
        assert all(len(example.answers) == 2 for example in tasks[name].test)


def test_roadside_of_an_older_revision(copied):
    root = copied("trigap")
    folder = root / "instructions" / "Roadside"
    (folder / "train_standard_4w.json").rename(folder / "train_standard_4w_sub.json")
    assert load("trigap", root)[0].fingerprint == load("trigap")[0].fingerprint


def test_pictures_of_a_domain_are_relative_to_the_domain(copied):
    root = copied("mllm_dcl")
    for example in load("mllm_dcl", root)[1]["RS"].test:
        assert example.images[0].parent == root / "RS" / "images"
    shutil.move(root / "RS" / "images" / "test100.png", root / "Med" / "images" / "test100.png")
    with pytest.raises(DataError, match="there is no picture"):
        load("mllm_dcl", root)


def test_domains_may_lie_in_domain(copied):
    root = copied("mllm_dcl")
    (root / "domain").mkdir()
    for name in ORDERS["mllm_dcl"]:
        (root / name).rename(root / "domain" / name)
    assert load("mllm_dcl", root)[0].fingerprint == load("mllm_dcl")[0].fingerprint


def test_the_part_of_sci_stays_readable_from_the_picture_s_name():
    parts = [e.images[0].name.partition("_")[0] for e in load("mllm_dcl")[1]["Sci"].test]
    assert parts == ["AI2D", "VQA", "TQA"]


# ---------------------------------------------------------------- the fixtures


def test_fixtures_are_small():
    files = [path for name in ORDERS for path in (FIXTURES / name).rglob("*.*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000


def test_fixtures_are_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FIXTURES))
    make = pytest.importorskip("make")
    monkeypatch.setattr(make, "HERE", tmp_path)
    for name in ORDERS:
        getattr(make, name)()
        written = {p.relative_to(tmp_path): p for p in (tmp_path / name).rglob("*.*")}
        kept = {p.relative_to(FIXTURES): p for p in (FIXTURES / name).rglob("*.*")}
        assert set(written) == set(kept)
        for place, path in written.items():
            if path.suffix == ".json":
                assert path.read_text() == kept[place].read_text(), place
