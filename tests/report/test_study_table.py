from __future__ import annotations

import json
from random import Random

import pytest

from undrift.report.study_table import bootstrap, by_seed, pairs, study_markdown
from undrift.rundir.study_results import compact


def entry(label, seed, last, order="default", rate=0.01, **more):
    return {
        "label": label,
        "seed": seed,
        "order": order,
        "last": last,
        "mft": None if rate is None else last + 5,
        "bwt": None if rate is None else -5.0,
        "learning_rate": rate,
        **more,
    }


def test_an_interval_is_where_the_mean_of_many_values_lies():
    random = Random(1)
    values = [random.gauss(50, 10) for _ in range(400)]  # the mean's deviation is 0.5
    low, high = bootstrap(values)
    mean = sum(values) / len(values)
    assert mean - low == pytest.approx(0.98, abs=0.12)
    assert high - mean == pytest.approx(0.98, abs=0.12)


def test_an_interval_of_two_values_is_their_range():
    # a quarter of the resamples holds one value only, so both percentiles lie at the ends
    assert bootstrap([1.0, 3.0]) == (1.0, 3.0)
    assert bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_an_interval_of_three_values_against_all_resamples():
    # of the 27 resamples one has the mean 0, three 1/3 ... : 2.5 % lies in the first step (3.7 %)
    assert bootstrap([0.0, 1.0, 5.0]) == (0.0, 5.0)
    # of 4^4 = 256 one is all zeros (0.4 %), four have the sum 1 (2.0 % in all): the next is 2
    low, _ = bootstrap([0.0, 1.0, 10.0, 100.0])
    assert low == 0.5


def test_the_same_values_give_the_same_interval():
    values = [61.0, 63.5, 59.0, 64.0, 62.0]
    assert bootstrap(values) == bootstrap(list(values))


def test_pairs_share_seed_and_order():
    ours = [entry("a", seed, last) for seed, last in ((0, 60.0), (1, 70.0), (2, 50.0), (9, 0.0))]
    theirs = [entry("b", seed, 55.0) for seed in (0, 1, 2, 3)]
    found = pairs(ours, theirs)
    assert found is not None and found.interval is not None
    assert (found.mean, found.wins, found.count) == (5.0, 2, 3)  # +5, +15, -5
    assert found.interval == bootstrap([5.0, 15.0, -5.0])
    assert pairs(ours, [entry("b", 0, 55.0, order="second")]) is None
    assert pairs([], theirs) is None


def test_orders_of_a_seed_are_no_seeds_of_their_own():
    orders = {"default": 1.0, "second": 3.0}
    ours = [entry("a", s, 50 + d + s, o) for s in (0, 1) for o, d in orders.items()]
    theirs = [entry("b", s, 50.0, o) for s in (0, 1) for o in orders]
    found = pairs(ours, theirs)
    assert found is not None
    assert (found.mean, found.wins, found.count) == (2.5, 4, 4)
    low, high = found.interval  # differences of 1, 3 under seed 0, of 2, 4 under seed 1
    # MS of orders 4, of seeds 1, of the rest 0: V = 5 / 4, freedom 25 / 17
    assert (high - low) / 2 == pytest.approx(12.706 * 1.25**0.5)
    assert (high + low) / 2 == pytest.approx(2.5)
    assert by_seed(ours, "last") == {0: 52.0, 1: 53.0}
    one = pairs(ours[:2], theirs)  # one seed: orders alone, MS 2 over 2
    assert one is not None and one.count == 2
    assert one.interval == pytest.approx((2.0 - 12.706, 2.0 + 12.706))


def test_what_is_not_trained_is_the_same_on_every_seed():
    zero = [entry("zeroshot", 0, 40.0, rate=None)]
    found = pairs(zero, [entry("b", seed, 50.0 + seed) for seed in range(3)])
    assert found is not None
    assert (found.mean, found.wins, found.count) == (-11.0, 0, 3)


def results(runs, **more):
    return {"command": "undrift study s.yaml", "runs": runs, **more}


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table():
    runs = [entry("zeroshot", 0, 40.0, rate=None)]
    runs += [entry("b", seed, 50.0) for seed in (0, 1)]
    runs += [entry("a", seed, 60.0 + 2 * seed) for seed in (0, 1)]
    text = study_markdown(results(runs, against="b"))
    assert rows_of(text) == [
        ["row", "last", "just learned", "BWT", "rate", "runs", "last − b", "wins"],
        ["---", *["---:"] * 7],
        ["zeroshot", "40.0", "", "", "", "1", "-10.0 [-10.0, -10.0]", "0 of 2"],
        ["b", "50.0 [50.0, 50.0]", "55.0", "-5.0", "0.01", "2", "", ""],
        ["a", "61.0 [60.0, 62.0]", "66.0", "-5.0", "0.01", "2", "+11.0 [+10.0, +12.0]", "2 of 2"],
    ]
    assert "seeds 0, 1; order default" in text and "`undrift study s.yaml`" in text


def test_the_table_says_what_rows_cost():
    cost = {"trainable": 100, "active": 92_160, "stored": 184_320, "state_bytes": 380_120}
    runs = [entry("zeroshot", 0, 40.0, rate=None, cost=None)]
    runs += [entry("a", i, 50.0, cost={**cost, "step_cpu_ms": 100.0 + i * 20}) for i in (0, 1)]
    runs += [entry("b", 0, 50.0, cost={**cost, "step_cpu_ms": None})]
    text = study_markdown(results(runs))
    assert [row[6:] for row in rows_of(text)] == [
        ["stored", "active", "state", "ms/step"],
        ["---:"] * 4,
        [""] * 4,
        ["184 k", "92.2 k", "380 k", "110"],
        ["184 k", "92.2 k", "380 k", ""],
    ]
    assert "bytes of all that answering and learning on need" in text
    assert "ms/step" not in study_markdown(results(runs, chosen={"a": 0.01}))


def test_streams_are_told_against_time():
    def streamed(*rows):
        points = [{"step": 5 * (i + 1), "scores": list(row)} for i, row in enumerate(rows)]
        return {"metrics": {"anytime": rows[0][0] + 1, "forgetting": 2.0}, "points": points}

    runs = [entry("a", 0, 50.0, stream=streamed((10.0, None), (30.0, 50.0)))]
    runs += [entry("a", 1, 50.0, stream=streamed((20.0, 40.0), (20.0, 40.0)))]
    runs += [entry("told", 0, 60.0)]
    found = rows_of(study_markdown(results(runs)))
    assert [row[:4] for row in found if row[0] in ("row", "a", "told")][:3] == [
        ["row", "last", "anytime", "forgetting"],
        ["a", "50.0 [50.0, 50.0]", "16.0", "2.0"],
        ["told", "60.0", "", ""],
    ]
    start = next(i for i, row in enumerate(found) if row[0].startswith("seen so far"))
    assert [found[start][1:], *found[start + 2 :]] == [
        ["5", "10"],
        ["a", "20.0", "35.0"],
        ["told", "", ""],
    ]


def test_a_table_of_rates():
    runs = [entry("a", 0, 50.0 + i, rate=rate) for i, rate in enumerate((1e-3, 2e-3))]
    runs += [entry("b", 0, 50.0 - i, rate=rate) for i, rate in enumerate((1e-3, 2e-3))]
    failed = [{"label": "a", "seed": 0, "order": ["x", "y"], "learning_rate": 4e-3, "error": "nan"}]
    text = study_markdown(results(runs, chosen={"a": 2e-3, "b": 1e-3}, failed=failed))
    assert [row[0] + row[4] for row in rows_of(text)[2:]] == [
        "a0.001",
        "**a**0.002 (chosen)",  # the one beyond it was tried and failed
        "**b**0.001 (chosen, at the edge)",
        "b0.002",
    ]
    assert "Failed: a (seed 0, order x, y, rate 0.004)." in text


def test_numbers_in_a_row_are_one_line():
    value = {"command": 'x "[1, 2]"', "matrix": [[1.0, None], [2.0, 3.0]], "none": [], "d": {}}
    text = compact(value)
    assert json.loads(text) == {"format": 1, **value}
    assert "\n  [1.0, null],\n" in text and text.endswith("}\n")


def test_orders_have_a_table_of_their_own():
    names = ("report-1", "report-2", "default", "fresh-1", "fresh-2")
    runs = [entry("b", s, 50.0 + i, o) for s in (0, 1) for i, o in enumerate(names)]
    runs += [entry("a", 0, 60.0 + 4 * i, o) for i, o in enumerate(names)]
    paired = [{"label": "a", "learning_rate": 0.01, "detectable": 3.21}]
    text = study_markdown(results(runs, against="b", paired=paired))
    main, orders = rows_of(text)[:4], rows_of(text)[4:]
    assert main[0][-1] == "could show" and [row[-1] for row in main[2:]] == ["", "3.2"]
    assert orders == [
        [
            "last, by order",
            "rate",
            "mean of report orders",
            "worst",
            "spread",
            "mean of fresh orders",
            "worst",
            "spread",
            *names,
        ],
        ["---", *["---:"] * 12],
        [
            "b",
            "0.01",
            "50.5",
            "50.0",
            "0.7",
            "53.5",
            "53.0",
            "0.7",
            "50.0",
            "51.0",
            "52.0",
            "53.0",
            "54.0",
        ],
        [
            "a",
            "0.01",
            "62.0",
            "60.0",
            "2.8",
            "74.0",
            "72.0",
            "2.8",
            "60.0 (+10.0)",
            "64.0 (+13.0)",
            "68.0 (+16.0)",
            "72.0 (+19.0)",
            "76.0 (+22.0)",
        ],
    ]
    assert "orders and seeds are separate sources" in text and "80 of 100" in text
