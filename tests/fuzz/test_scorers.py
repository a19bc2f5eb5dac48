"""Every scorer over whatever may be said: a finite score in its range, in less than a second."""

from __future__ import annotations

import json
import math

from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.strange_values import anything, characters
from tests.fuzz.within import held, many
from undrift.data.types import Example
from undrift.scoring import (
    KINDS,
    PROFILES,
    SCORERS,
    TASKS,
    AnswerStyle,
    caption_scores,
    error_kind,
    find_task,
    form,
    rules_of,
    score,
    score_all,
    score_file,
    scores_of,
)

PIECES = """
B (C) d. the answer is The answer is C. [0.1, 0.2, 0.9, 0.8] 0.5 12% 1,200 $7 seven none yes no '
" ` . ... , : ? can't u.s. 10:30 1/2 Unanswerable [ ] ( ) { } 1e999 nan inf -inf ²  İ ß 𝟙 ٣ \\n
{"bbox_2d": [100, 10, 200, 500]} [[1,2],[3,4]] <box>(1,1),(2,2)</box>
""".split(" ")
piece = st.one_of(st.sampled_from(PIECES), st.text(characters, max_size=5))
number = st.one_of(st.floats(), st.integers(), st.integers(10**300, 10**320)).map(str)
box = st.lists(number, min_size=3, max_size=5).map(lambda corners: f"[{', '.join(corners)}]")
short = st.one_of(
    piece,
    st.lists(piece, max_size=8).map(" ".join),
    st.lists(piece, max_size=8).map("".join),
    number,
    box,
    anything.map(json.dumps),
)
LONG = 100_000
long = st.tuples(piece, piece, st.integers(0, LONG)).map(
    lambda made: (made[0] * made[2])[:LONG] + made[1]
)
said = st.one_of(short, short, short, long)
several = st.one_of(
    st.lists(said, min_size=1, max_size=3), st.lists(short, min_size=10, max_size=10)
)
extras = st.fixed_dictionaries(
    {},
    optional={
        "choices": anything | st.lists(short, max_size=5),
        "human_answers": anything | st.lists(short, min_size=10, max_size=10),
        "subset": anything | st.sampled_from(["AI2D", "MapQA"]),
        "question": anything | st.just("Which states?"),
    },
)
names = st.sampled_from([*SCORERS, *TASKS])


def sound(value):
    assert value is None or (math.isfinite(value) and 0 <= value <= 1), value


@many(4)
@given(names, said, several, extras, st.booleans())
@example("trigap/DocVQA", "a" * 30_000, ["b" * 30_000], {}, False)
@example("coin/Grounding", "[" + "1" * 100_000, ["[0, 0, 1, 1]"], {}, False)
@example("box", "0 0 " + "9" * 300 + " 1", ["[0, 0, 1, 1]"], {}, False)
@example("mllm_dcl/Sci", "a,b," * 25_000, ["c,d," * 25_000],
         {"subset": "MapQA", "question": "Which states?"}, False)  # fmt: skip
@example("ucit/IconQA", "'." * 50_000, ["the answer is " * 7_000], {"choices": 5}, False)
def test_one_line_by_every_profile(name, prediction, answers, extra, right):
    prediction = answers[-1] if right else prediction
    for profile in PROFILES if name in TASKS else ("coin",):
        with held():
            found = scores_of(name, prediction, answers, extra, profile)
            for value in found.values():
                sound(value)
    with held():
        line = {"prediction": prediction, "answers": answers, "strict": 0.0, "caseless": 1.0}
        for value in rules_of(name, line)[:3]:
            sound(value)
    if name in TASKS:
        with held():
            sound(form(find_task(name).kind, prediction, answers))
            for value in score_all(name, prediction, answers, extra, "lenient")[:3]:
                sound(value)
    else:
        with held():
            strict, caseless = score(name, prediction, answers)
            assert strict <= caseless


@many(4)
@given(st.sampled_from(list(KINDS)), said, several)
def test_the_form_of_anything(kind, prediction, answers):
    with held():
        error_kind(kind, prediction, answers)
        if (mif := KINDS[kind].mif) is not None:
            sound(mif(prediction, answers))
        later = {"later": AnswerStyle([answers[::-1], [prediction]])}
        AnswerStyle([answers]).borrowed_from(prediction, later)


@many(4)
@given(st.lists(st.tuples(said, st.lists(short, min_size=1, max_size=3)), min_size=1, max_size=3))
@example([("word " * 20_000, ["word " * 20_000 + "."])])
@example([("İ" * 100_000, ["a"])] * 3)
def test_captions(pairs):
    with held():
        found = caption_scores(
            {str(n): text for n, (text, _) in enumerate(pairs)},
            {str(n): truths for n, (_, truths) in enumerate(pairs)},
        )
    for name, value in found.items():
        top = 1000 if name == "cider" else 100
        assert math.isfinite(value) and 0 <= value <= top * (1 + 1e-6), (name, value)


@many(4)
@given(st.sampled_from(list(TASKS)), st.lists(said, max_size=2), several, extras)
def test_whole_files(task, predictions, answers, extra):
    rows = [{"question_id": number, "text": text} for number, text in enumerate(predictions)]
    with held():
        asked = [Example(str(n), "?", tuple(answers), (), extra) for n in range(2)]
        found = score_file(task, rows, asked, "coin", partial=True)
        for value in (found.strict, found.lenient, found.form, found.official):
            top = 1000 if found.captions else 100
            assert value is None or (math.isfinite(value) and 0 <= value <= top * (1 + 1e-6))
