"""Our own JSON and YAML files, spoilt: every reader says so in a line, or reads what is right."""

from __future__ import annotations

import json
import os
import random as standard
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given

from tests.fuzz.mutation import as_text, seeds, spoilt
from tests.fuzz.within import held, many
from undrift.methods.replay import ReplayMemory
from undrift.report import load
from undrift.run.adapters import origin_of
from undrift.run.checkpoint import (
    latest,
    load_optimizer,
    load_random,
    load_schedule,
    save_optimizer,
    save_random,
)
from undrift.run.config import load_yaml
from undrift.run.evaluate import claim
from undrift.run.session import make_method
from undrift.run.study_plan import load_study
from undrift.rundir import read_record, write_json
from undrift.rundir.records import PARTS, Asked, Memory, Result, StudyResults

NOTES: list[dict[str, Any]] = [
    {"name": "birds", "digest": "0", "test": "/nowhere/a.json", "images": "/nowhere",
     "scorer": "exact", "max_new_tokens": 8, "skip_bad": False},
    {"name": "charts", "digest": "0", "train": "/nowhere/a.json", "held_out": 0.1, "seed": 0,
     "images": "/nowhere", "scorer": "exact", "max_new_tokens": 8, "skip_bad": True},
    {"name": "digits", "digest": "0", "benchmark": "coin", "data": "/nowhere", "reading": {},
     "skip_bad": False, "profile": {"name": "full"}, "split": "test"},
]  # fmt: skip
ORIGIN = {
    "format": 1, "backbone": "pocket", "fingerprint": "ab", "dtype": "auto", "quantize": "none",
    "method": "same", "options": {"experts": 8, "rank": 4}, "benchmark": "folder", "after": 3,
    "learned": NOTES, "run": {"benchmark": "folder", "seed": 0},
}  # fmt: skip
MATRIX = {
    "format": 1, "tasks": ["birds", "charts"], "zero_shot": [10.0, None],
    "matrix": [[90.0, None], [80.0, 70.0]],
    "metrics": {"last": 75.0, "mft": 80.0, "bwt": -10.0, "forgetting": 10.0, "maa": 80.0,
                "avg": 80.0, "fwt": None},
}  # fmt: skip
MANIFEST = {
    "format": 1, "method": "same", "benchmark": "folder", "order": "default", "seed": 0,
    "profile": "full", "backbone": "pocket", "settings": {"experts": 8, "learning_rate": 0.001},
    "protocol": {"tasks": [{"name": n, "train": 8, "test": 2, "scorer": "exact",
                            "max_new_tokens": 8} for n in ("birds", "charts")], "scoring": "coin"},
    "data": {"version": "own", "fingerprint": "cd", "licence": "own"},
    "weights": {"fingerprint": "ab", "dtype": "float32", "parameters": 9}, "commit": None,
    "versions": {"python": "3.11", "torch": "2"}, "hardware": {"device": "cpu", "cores": 2},
    "match_budget": "none", "seconds": {"train": 1.0}, "skipped": 0,
    "budget": [{"task": "birds", "trainable": 1, "active": 1, "stored": 1, "state_bytes": 1,
                "steps": 2, "seconds": 1.0, "cpu_seconds": 1.0, "tokens": 9, "peak_bytes": None,
                "resting": {"a": 1}}],
}  # fmt: skip
ANSWERS = [
    {"id": str(i), "question": "which?", "answers": ["red"], "prediction": "red", "strict": 1.0,
     "caseless": 1.0} for i in range(2)
]  # fmt: skip
CELL = {"task": 1, "name": "birds", "after": 2, "before": 1}
DIAGNOSED: dict[str, Any] = {
    "routes": {"linears": ["a"], "experts": 2, "cells": [CELL | dict.fromkeys(
        ("overlap", "js", "tv", "top1", "entropy", "spread", "balance"), 0.5)
        | {"use": [[0.5, 0.5]], "alone": None}]},
    "experts": {"cells": [CELL | {"moved": 0.1, "per_linear": [0.1]}]},
    "causes": {"cells": [CELL | {"parts": "experts", "router": 0.0, "expert": 1.0, "form": 0.0,
        "lost": {"strict": 1.0, "lenient": 1.0}, "corners": {
            name: {"strict": 1.0, "lenient": None}
            for name in ("old_old", "old_new", "new_old", "new_new")}}]},
    "reroute": {"task": 1, "name": "birds", "cells": [
        {"after": 1, "strict": 1.0, "lenient": 1.0, "form": 1.0, "as_is": 1.0, "entropy": 9.0}]},
}  # fmt: skip
RESULT = {"adapter": "a", "skipped": 0, "tasks": [
    {"task": "birds", "before": 1.0, "after": 2.0, "examples": 3, "new": True, "changed": False,
     "drop": 0.0}]}  # fmt: skip
STUDY = {"command": "undrift study a", "chosen": {"same": 0.1}, "runs": [
    {"label": "same", "method": "same", "seed": 0, "order": "default", "last": 1.0,
     "learning_rate": None}]}  # fmt: skip
MEMORY = {
    "seen": 9,
    "tasks": [
        [{"id": "1", "question": "which?", "answers": ["red"], "images": ["/nowhere/1.png"]}]
    ],
}
YAML = b"""benchmark: coin
method: {name: same, experts: 4}
seed: 1
order: [a, b]
train: {epochs: 1, learning_rate: 1e-3}
rows: [same, {method: finetune, label: plain, set: {method.rank: 2}}]
seeds: [0, 1]
results: docs/x
"""


@pytest.fixture(scope="module")
def folder() -> Any:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def put(folder: Path, name: str, value: Any, random: Random) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(as_text(value, random))
    return file


@many(5)
@given(seed=seeds)
def test_records_of_adapters_and_of_learning(folder, seed):
    random = Random(seed)
    with held():
        put(folder, "undrift.json", ORIGIN, random)
        origin = origin_of(folder)
        assert all("/" not in note["name"] for note in origin.get("learned", ()))
        make_method(origin["method"], origin["options"])
    with held():
        read_record(put(folder, "result.json", RESULT, random), Result)
    with held():
        read_record(put(folder, "study.json", STUDY, random), StudyResults)
    with held():
        ReplayMemory.of(read_record(put(folder, "memory.json", MEMORY, random), Memory))


@many(5)
@given(seed=seeds)
def test_files_of_a_run(folder, seed):
    random = Random(seed)
    run = folder / "run"
    (run / "eval/after-02").mkdir(parents=True, exist_ok=True)
    (run / "run.yaml").write_text("format: 1\nbenchmark: folder\n")
    (run / "matrix.json").write_text(json.dumps(MATRIX))
    (run / "manifest.json").write_text(json.dumps(MANIFEST))
    for on in (1, 2):
        lines = "".join(json.dumps(line) + "\n" for line in ANSWERS)
        (run / f"eval/after-02/on-0{on}.jsonl").write_text(lines)
    spoil = random.randrange(4)
    if spoil == 0:
        put(run, "matrix.json", MATRIX, random)
    elif spoil == 1:
        put(run, "manifest.json", MANIFEST, random)
    elif spoil == 2:
        put(run, "eval/after-02/on-01.jsonl", ANSWERS[0], random)
    for name, whole in DIAGNOSED.items() if spoil == 3 else ():
        value = {"format": 1, "applies": True, "why": "", "probe": 64, "asked": {}} | whole
        file = put(run, f"diagnose/{name}.json", value, random)
        with held():
            read_record(file, PARTS[name])
    with held():
        load(run).files.diagnosis("routes")


@pytest.fixture(scope="module")
def whole(folder) -> Any:
    """A snapshot: optimiser and schedule that it is of, and its files."""
    linear = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    snapshot = folder / "checkpoint-2"
    snapshot.mkdir()
    save_optimizer(optimizer, snapshot)
    save_random(snapshot)
    write_json(snapshot / "schedule.json", schedule.state_dict())
    counters = {"epoch": 1.0, "global_step": 2, "max_steps": 4, "num_train_epochs": 1,
                "log_history": [{"loss": 1.0, "step": 1}], "stateful_callbacks": {}}  # fmt: skip
    write_json(snapshot / "trainer_state.json", counters)
    files = {file.name: file.read_bytes() for file in snapshot.iterdir()}
    return lambda: (optimizer, schedule, files)


@many(5)
@given(seed=seeds)
@example(seed=529722621)  # a schedule without its lambdas
@example(seed=435199)  # a schedule whose lambdas were a text
def test_snapshots(folder, whole, seed):
    random = Random(seed)
    states = standard.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()
    (optimizer, schedule, files), snapshot = whole(), folder / "checkpoint-2"
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    file = snapshot / random.choice(sorted(os.listdir(snapshot)))
    if file.suffix == ".json":
        put(snapshot, file.name, json.loads(file.read_text()), random)
    else:
        file.write_bytes(spoilt(file.read_bytes(), random))
    try:
        with held():
            latest(folder)
            load_optimizer(optimizer, snapshot)
            load_schedule(schedule, snapshot)
            load_random(snapshot)
            optimizer.step()
    finally:
        standard.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@many(5)
@given(seed=seeds)
def test_configurations(folder, seed):
    random = Random(seed)
    file = folder / "any.yaml"
    file.write_bytes(spoilt(YAML, random))
    with held():
        load_yaml(file)
    with held():
        load_study(file)


@many(5)
@given(seed=seeds)
def test_a_folder_of_answers(folder, seed):
    random = Random(seed)
    out = folder / "out"
    mark = put(out, "asked.json", {"adapter": "a", "files": ["birds.jsonl", "birds.part"]}, random)
    (out / "mine.part").write_text("mine")
    name = random.choice(["birds", "../../birds", "/etc/birds", "con", "b" * 300, "mine"])
    with held():
        claim(out, [name], "b")
        assert name == "birds"
        read_record(mark, Asked)
    assert (out / "mine.part").read_text() == "mine"
