from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undrift.errors import DataError
from undrift.scoring import FORMULAS, metrics, stage_averages

# A public UCIT run of another group (a HiDe-type method), with the numbers printed for it.
GOLDEN = [
    [91.73],
    [90.40, 94.23],
    [89.37, 94.07, 61.37],
    [87.07, 94.10, 57.40, 86.00],
    [87.37, 94.27, 56.70, 78.73, 79.70],
    [86.67, 94.00, 58.71, 79.03, 64.33, 58.20],
]


def squares():
    percent = st.floats(0, 100)
    return st.integers(2, 6).flatmap(
        lambda n: st.lists(st.lists(percent, min_size=n, max_size=n), min_size=n, max_size=n)
    )


def test_golden_matrix():
    found = metrics(GOLDEN)
    expected = {
        "mft": 78.54,
        "last": 73.49,
        "maa": 83.27,
        "avg": 75.49,
        "bwt": -6.06,
        "forgetting": 6.07,
    }
    assert {name: round(found[name], 2) for name in expected} == expected
    assert found["fwt"] is None


def test_the_stages_of_the_golden_matrix():
    found = stage_averages(GOLDEN)
    assert [round(a, 2) for a in found] == [91.73, 92.31, 81.60, 81.14, 79.35, 73.49]
    assert sum(found) / 6 == pytest.approx(metrics(GOLDEN)["maa"])
    assert found[-1] == pytest.approx(metrics(GOLDEN)["last"])
    assert stage_averages([[80.0], [None, 90.0]]) == [80.0, None]


def test_bwt_is_six_fifths_of_the_fall_in_the_golden_matrix():
    found = metrics(GOLDEN)
    assert found["bwt"] == pytest.approx((found["last"] - found["mft"]) * 6 / 5)
    # two tasks rose after they were learned, so that forgetting is more than what BWT says
    assert found["forgetting"] > -found["bwt"]


def test_bwt_as_disco_prints_it_follows_from_its_averages():
    # Only the averages are published: 75.87 when just learned, 69.66 at the end, over six tasks.
    diagonal = [75.87 + d for d in (-3, -2, -1, 1, 2, 3)]
    final = [69.66 * 6 / 5 - diagonal[5] / 5] * 5 + [diagonal[5]]
    rows = [[None] * i + [diagonal[i]] for i in range(5)] + [final]
    found = metrics(rows)
    assert found["mft"] == pytest.approx(75.87)
    assert found["last"] == pytest.approx(69.66)
    assert found["bwt"] == pytest.approx(-7.45, abs=0.005)


def test_by_hand_with_forward_transfer():
    matrix = [[80, 30, 10], [70, 90, 20], [75, 60, 100]]
    found = metrics(matrix, zero_shot=[5, 10, 0])
    assert found == {
        "last": pytest.approx((75 + 60 + 100) / 3),
        "mft": pytest.approx(90),
        "bwt": pytest.approx(((75 - 80) + (60 - 90)) / 2),
        "forgetting": pytest.approx(((80 - 75) + (90 - 60)) / 2),
        "maa": pytest.approx((80 + (70 + 90) / 2 + (75 + 60 + 100) / 3) / 3),
        "avg": pytest.approx(((80 + 70 + 75) / 3 + (90 + 60) / 2 + 100) / 3),
        "fwt": pytest.approx(((30 - 10) + (20 - 0)) / 2),
    }


def test_a_task_that_is_best_at_the_end_has_negative_forgetting():
    assert metrics([[80], [90, 70]])["forgetting"] == -10


@given(squares())
def test_bwt_is_the_fall_of_the_averages(matrix):
    found, tasks = metrics(matrix), len(matrix)
    fall = (found["last"] - found["mft"]) * tasks / (tasks - 1)
    assert found["bwt"] == pytest.approx(fall, abs=1e-9)
    assert found["forgetting"] >= -found["bwt"] - 1e-9


@given(squares(), st.data())
def test_the_upper_triangle_only_matters_to_forward_transfer(matrix, data):
    zero = data.draw(st.lists(st.floats(0, 100), min_size=len(matrix), max_size=len(matrix)))
    full = metrics(matrix, zero)
    lower = metrics([row[: t + 1] for t, row in enumerate(matrix)], zero)
    assert {**full, "fwt": None} == lower


def test_the_lite_profile_has_the_diagonal_and_the_final_row():
    found = metrics([[80], [None, 90], [70, 85, 60]], zero_shot=[1, 2, 3])
    assert found["last"] == pytest.approx(215 / 3)
    assert found["mft"] == pytest.approx(230 / 3)
    assert found["bwt"] == pytest.approx(-7.5)
    assert [found[name] for name in ("forgetting", "maa", "avg", "fwt")] == [None] * 4


def test_one_row_for_all_tasks_has_a_last_average_only():
    assert metrics([[60.0, 80.0]]) == {**dict.fromkeys(FORMULAS), "last": 70.0}


def test_an_unfinished_run_has_nothing_to_say_about_the_end():
    assert metrics([[80, 10, None], [70, 90, 20]])["last"] == 60.0  # measured on all tasks
    assert metrics([[80, 10, None]])["last"] is None
    assert metrics([[80, 10]], zero_shot=[1, 2, 3])["last"] is None


def test_one_task():
    assert metrics([[80.0]], [10.0]) == {
        **dict.fromkeys(FORMULAS, 80.0),
        "bwt": None,
        "forgetting": None,
        "fwt": None,
    }


@pytest.mark.parametrize(
    ("matrix", "zero", "message"),
    [
        ([], None, "0 rows"),
        ([[]], None, "0 columns"),
        ([[1.0], [2.0]], None, "2 rows and 1 columns"),
        ([[float("nan")]], None, "finite"),
        ([[1.0]], [float("inf")], "finite"),
        ([], [1.0], "0 rows and 1 columns"),
    ],
)
def test_bad_matrices(matrix, zero, message):
    with pytest.raises(DataError, match=message):
        metrics(matrix, zero)
