"""All questions put to one run: each answer is a file, and a second call asks what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from undrift.diagnose.adapter_series import AdapterSeries, Scope, does_not_apply, nothing_later
from undrift.diagnose.causes import causes
from undrift.diagnose.experts import expert_drift
from undrift.diagnose.routes import route_drift
from undrift.report import Results, load
from undrift.run.ranks import alone_in
from undrift.run.thumbnails import keep_pictures
from undrift.rundir import read_record, write_json
from undrift.rundir.files import remove
from undrift.rundir.records import PARTS

READ = 0.5  # what reading a prompt costs, in answers to it

Found = dict[str, Any]
Question = tuple[Callable[[], Found], float]
"""How to ask it, and what the answer costs, in answers to an example."""


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
        folder: The run's folder, or that of the last adapter of a chain.
        adapters: Compare these two adapters alone, by task or number of tasks, and keep the
            answers in a folder of their own there; every task with all later ones where None.
        rerouted: Also train routers anew on this task.
        probe: How many test prompts of each task show where they go.
        again: Ask anew what was asked before.
        **opening: How to open the run, see `AdapterSeries`.

    Returns:
        By file: routes, experts, causes and, if asked for, reroute.

    Raises:
        RunDirError: If the run is not finished, or its adapters are gone, or if another process
            works in its folder.
        ConfigError: If it has no such task.
    """
    results = load(folder)
    with alone_in(results.folder):
        return _answers(results, adapters, rerouted, probe, again, opening)


def _answers(
    results: Results,
    adapters: tuple[str, str] | None,
    rerouted: str | None,
    probe: int,
    again: bool,
    opening: Mapping[str, Any],
) -> dict[str, Found]:
    files = results.files.paths
    files.check_folders()
    kept = files.root / "diagnose"
    if again:
        files.check_ours("diagnose")
        remove(kept)
    if why := nothing_later(results):
        names: list[str] = ["routes", "experts", "causes"]
        nothing = dict.fromkeys(names, does_not_apply(why))
        for name, answer in nothing.items():
            write_json(kept / f"{name}.json", answer)
        return nothing
    run = AdapterSeries(files.root, **opening)
    if run.limit is None:  # an older run has kept no pictures of what it asked
        for index, each in enumerate(run.tasks, start=1):
            if run.results.files.asked(run.last, index):
                keep_pictures(run.files.pictures(index, each.name), each)
    scope = Scope(run.last, start=run.first)
    if adapters is not None:
        first, last = map(run.number, adapters)
        scope, kept = Scope(last, first), kept / f"adapters-{first:02d}-{last:02d}"
    task = run.number(rerouted) if rerouted is not None else None
    questions = _questions(run, scope, task, probe)
    asked = {"probe": probe, "limit": run.limit, "task": task}
    missing = {n: q for n, q in questions.items() if not _answered(kept / f"{n}.json", n, asked)}
    run.progress.plan(sum(work for _, work in missing.values()) or 1)
    for name, (question, _) in missing.items():
        write_json(kept / f"{name}.json", question() | {"asked": asked})
    return {name: read_record(kept / f"{name}.json", PARTS[name]) for name in questions}


def _questions(
    run: AdapterSeries, scope: Scope, task: int | None, probe: int
) -> dict[str, Question]:
    tests = {each: len(run.tasks[each - 1].test) for each in scope.tasks}
    reads = {each: min(probe, count) for each, count in tests.items()}
    routed = sum(count * len(scope.afters(each)) for each, count in reads.items())
    mixed = 2 * sum(tests.values()) if run.method.parts == "router and experts" else 0

    def reading(ask: Callable[..., Found], title: str, prompts: int) -> Question:
        def question() -> Found:
            run.progress.stage(title, prompts, READ * prompts)
            return ask(run, scope, probe)

        return question, READ * prompts

    questions = {
        "routes": reading(route_drift, "where inputs go", routed),
        "experts": reading(expert_drift, "how far experts moved", sum(reads.values())),
        "causes": (lambda: causes(run, scope), mixed),
    }
    if task is not None:
        from undrift.diagnose.reroute import reroute  # it trains: what that needs takes seconds
        from undrift.run.trainer import training_work

        chosen, stages = run.tasks[task - 1], len(scope.afters(task))
        training = training_work(chosen, run.config.train)
        work = stages * (training + len(chosen.test) + READ * probe)
        questions["reroute"] = (lambda: reroute(run, scope, task, probe), work)
    return questions


def _answered(file: Path, name: str, asked: Mapping[str, Any]) -> bool:
    """Whether a question was asked before in the same way; only re-routing is about one task."""
    if not file.is_file():
        return False
    before = read_record(file, PARTS[name]).get("asked", {})
    keys = asked if name == "reroute" else asked.keys() - {"task"}
    return all(before.get(key) == asked[key] for key in keys)
