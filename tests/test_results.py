"""What is committed of studies: tables are those of their numbers, and rates are those chosen."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from undrift.report.study_table import study_markdown
from undrift.run.config import overrides, resolve
from undrift.run.session import make_method
from undrift.run.study_plan import load_study

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
STUDIES = [
    path
    for path in sorted(RESULTS.glob("*.json"))
    if "undrift study" in json.loads(path.read_text()).get("command", "")
]
METHODS = {"pocket": 12, "desk": 7}  # tuned on that benchmark, at least
TUNING = {
    benchmark: json.loads((RESULTS / f"{benchmark}-tuning.json").read_text())
    for benchmark in METHODS
}
FORGETS = 5  # points, at most, of what finetune-low has just learned


def study_of(results: dict) -> Path:
    return ROOT / shlex.split(results["command"])[2]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_table_is_that_of_its_numbers(path):
    results = json.loads(path.read_text())
    assert study_of(results).is_file()
    assert path.with_suffix(".md").read_text() == study_markdown(results)


def low_rates(benchmark: str) -> dict[float, float]:
    """Give the last average at each rate at which finetune forgets little."""
    found: dict[float, list[tuple[float, float]]] = {}
    for run in TUNING[benchmark]["runs"]:
        if run["label"] == "finetune":
            found.setdefault(run["learning_rate"], []).append((run["last"], run["mft"]))
    means = {r: (fmean(a for a, _ in v), fmean(b for _, b in v)) for r, v in found.items()}
    return {rate: last for rate, (last, mft) in means.items() if mft - last <= FORGETS}


@pytest.mark.parametrize("benchmark", METHODS)
def test_rates_are_those_that_tuning_chose(benchmark):
    rows = {row["label"]: row for row in TUNING[benchmark]["runs"]}
    chosen = TUNING[benchmark]["chosen"]
    assert len(chosen) >= METHODS[benchmark]
    for label, rate in chosen.items():
        options = {key: value for key, value in rows[label]["options"].items() if "rate" not in key}
        if options:  # a row that trains longer, say; a preset has the usual one
            continue
        method = rows[label]["method"]
        config = resolve({"benchmark": benchmark, "method": method})
        assert config.train.learning_rate == rate, label


@pytest.mark.parametrize("name", ["pocket-orders", "pocket-shared"])
def test_finetune_low_has_the_best_rate_of_those_that_forget_little(name):
    low = low_rates("pocket")
    rows = yaml.safe_load((ROOT / "studies" / f"{name}.yaml").read_text())["rows"]
    (row,) = (r for r in rows if isinstance(r, dict) and r.get("label") == "finetune-low")
    assert row["set"]["train.learning_rate"] == max(low, key=low.__getitem__)
    assert row["set"]["train.learning_rate"] < TUNING["pocket"]["chosen"]["finetune"]


def test_no_rate_of_finetune_forgets_little_on_the_desk():
    """So its tables have no row finetune-low: down to a rate at which little is learned."""
    assert not low_rates("desk")
    lowest = min(
        (run for run in TUNING["desk"]["runs"] if run["label"] == "finetune"),
        key=lambda run: run["learning_rate"],
    )
    assert lowest["learning_rate"] <= TUNING["desk"]["chosen"]["finetune"] / 4


@pytest.mark.parametrize(
    "path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_study_names_methods_and_options_that_there_are(path):
    study = load_study(path)
    for row in study.rows:
        changes = {**study.run, "benchmark": study.benchmark, "method": row.method}
        texts = [f"{key}={yaml.safe_dump(v, default_flow_style=True).splitlines()[0]}"
                 for key, v in row.options.items()]  # fmt: skip
        changes.pop("reading", None)
        config = resolve(changes, overrides(texts))
        assert make_method(config.method.name, config.method.options)
