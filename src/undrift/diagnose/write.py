"""All questions put to one run: each answer is a file, and a second call asks what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from undrift.diagnose.causes import causes
from undrift.diagnose.experts import expert_drift
from undrift.diagnose.reroute import reroute
from undrift.diagnose.routes import route_drift
from undrift.diagnose.snapshots import Snapshots, Watched, nothing_later
from undrift.report import load
from undrift.run import plan
from undrift.run.thumbnails import keep_pictures
from undrift.rundir import RunDir, read_record, write_json
from undrift.rundir.files import remove
from undrift.rundir.records import PARTS

READ = 0.5  # what reading a prompt costs, in answers to it

Found = dict[str, Any]


def diagnose(
    folder: Path,
    *,
    adapters: tuple[str, str] | None = None,
    rerouted: str | None = None,
    probe: int = 64,
    again: bool = False,
    **opening: Any,
) -> dict[str, Found]:
    """Ask what drifted in a run, and keep the answers in RUN/diagnose/.

    Args:
        folder: The run's folder.
        adapters: Compare these two snapshots alone, by task or number of tasks, and keep the
            answers in a folder of their own there; every task with all later ones where None.
        rerouted: Also train routers anew on this task.
        probe: How many test prompts of each task show where they go.
        again: Ask anew what was asked before.
        **opening: How to open the run, see `Snapshots`.

    Returns:
        By file: routes, experts, causes and, if asked for, reroute.

    Raises:
        RunDirError: If the run is not finished, or its adapters are gone.
        ConfigError: If it has no such task.
    """
    files = RunDir.existing(folder)
    files.check_folders()
    kept = files.root / "diagnose"
    if again:
        files.check_ours("diagnose")
        remove(kept)
    if why := nothing_later(load(folder)):
        nothing: Found = {"applies": False, "why": why, "probe": None, "cells": []}
        names: list[str] = ["routes", "experts", "causes"]
        for name in names:
            write_json(kept / f"{name}.json", nothing)
        return dict.fromkeys(names, nothing)
    run = Snapshots(folder, **opening)
    if run.limit is None:  # an older run has kept no pictures of what it asked
        for index, each in enumerate(run.tasks, start=1):
            keep_pictures(run.files, index, each)
    watched, kept = _watched(run, adapters, kept)
    task = run.number(rerouted) if rerouted is not None else None
    questions = _questions(run, watched, task, probe)
    asked = {"probe": probe, "limit": run.limit, "task": task}
    missing = {n: q for n, q in questions.items() if not _answered(kept / f"{n}.json", n, asked)}
    run.progress.plan(sum(work for _, work in missing.values()) or 1)
    for name, (question, _) in missing.items():
        write_json(kept / f"{name}.json", question() | {"asked": asked})
    return {name: read_record(kept / f"{name}.json", PARTS[name]) for name in questions}


def _watched(run: Snapshots, adapters: tuple[str, str] | None, kept: Path) -> tuple[Watched, Path]:
    if adapters is None:
        return Watched(run.last), kept
    first, last = map(run.number, adapters)
    return Watched(last, first), kept / f"adapters-{first:02d}-{last:02d}"


def _questions(
    run: Snapshots, watched: Watched, task: int | None, probe: int
) -> dict[str, tuple[Callable[[], Found], float]]:
    """Say what is asked, and what each answer costs, in answers to an example."""
    tests = {each: len(run.tasks[each - 1].test) for each in watched.tasks}
    reads = {each: min(probe, count) for each, count in tests.items()}
    routed = sum(count * len(watched.afters(each)) for each, count in reads.items())
    mixed = 2 * sum(tests.values()) if run.method.parts == "router and experts" else 0

    def routes() -> Found:
        run.progress.stage("where inputs go", routed, READ * routed)
        return route_drift(run, watched, probe)

    def experts() -> Found:
        run.progress.stage("how far experts moved", sum(reads.values()), READ * sum(reads.values()))
        return expert_drift(run, watched, probe)

    questions: dict[str, tuple[Callable[[], Found], float]] = {
        "routes": (routes, READ * routed),
        "experts": (experts, READ * sum(reads.values())),
        "causes": (lambda: causes(run, watched), mixed),
    }
    if task is not None:
        chosen, stages = run.tasks[task - 1], len(watched.afters(task))
        training = plan.training_work(chosen, run.config.train)
        work = stages * (training + len(chosen.test) + READ * probe)
        questions["reroute"] = (lambda: reroute(run, watched, task, probe), work)
    return questions


def _answered(file: Path, name: str, asked: Mapping[str, Any]) -> bool:
    """Whether a question was asked before in the same way; only re-routing is about one task."""
    if not file.is_file():
        return False
    before = read_record(file, PARTS[name]).get("asked", {})
    keys = asked if name == "reroute" else asked.keys() - {"task"}
    return all(before.get(key) == asked[key] for key in keys)
