"""What `undrift learn` leaves, made by code: v1, v2, v3 and what was asked of each."""

from __future__ import annotations

import hashlib

from undrift.rundir import write_json, write_lines
from undrift.rundir.paths import LearnDir
from undrift.rundir.records import LEARNED_FROM

SCORES = {  # right answers of ten, before and after, by adapter and task
    "v1": {"charts": (4, 10)},
    "v2": {"charts": (10, 6), "words": (0, 8)},
    "v3": {"charts": (6, 3), "words": (8, 8), "boxes": (1, 9)},
}
GUARDED = {"v2": {"golden": (9, 7)}, "v3": {"golden": (7, 5)}}
OF = 10


def lines(task, count):
    """Ten answers, the first so many right; a wrong one is right but for its letter's case."""
    return [
        {
            "id": f"{task}-{i}", "question": f"{task}, number {i}?", "answers": ["Sandal"],
            "prediction": "Sandal" if i < count else "sandal",
            "strict": float(i < count), "caseless": 1.0,
        }
        for i in range(OF)
    ]  # fmt: skip


def write_lesson(root, start, scores, guards=(), *, learned=None, changed=(), weights=None):
    """Write what one lesson has left; `start` is the folder of the adapter before, or a model."""
    files, names = LearnDir(root), list(scores)
    learned = learned or names
    before = None if isinstance(start, str) else start
    said = start if before is None else str(before.resolve())
    root.mkdir(parents=True)
    (root / "learn.yaml").write_text(f"format: 1\nfrom: {said}\ntask: {{name: {names[-1]}}}\n")
    for when, side in (("before", 0), ("after", 1)):
        for number, (name, counts) in enumerate(scores.items(), 1):
            write_lines(files.answers(when, number, name), lines(name, counts[side]))
        for name, counts in dict(guards).items():
            write_lines(files.guard_answers(when, name), lines(name, counts[side]))
    rows = [
        {
            "task": name, "before": 100 * b / OF, "after": 100 * a / OF, "examples": OF,
            "new": name == names[-1], "changed": name in changed,
        }
        for name, (b, a) in scores.items()
    ]  # fmt: skip
    told = [
        {"task": n, "before": 100 * b / OF, "after": 100 * a / OF, "examples": OF, "drop": 0.0}
        for n, (b, a) in dict(guards).items()
    ]
    asked = [{"name": names[-1], "scorer": "exact", "train": 60, "test": OF}]
    write_json(
        files.manifest_file,
        {
            "method": "same", "benchmark": "folder", "order": "default", "seed": 0,
            "profile": "full", "backbone": "pocket", "protocol": {"tasks": asked},
        },
    )  # fmt: skip
    steps = [{"step": s, "loss": 2.0 / s} for s in (10, 20, 30)]
    write_lines(root / "train.jsonl", steps)
    files_there = {}
    if before is not None:
        digest = hashlib.sha256((before / "adapter_model.safetensors").read_bytes()).hexdigest()
        files_there = {LEARNED_FROM: {"adapter_model.safetensors": [digest[:16]]}}
    write_json(root / "data.json", {"rows": files_there, "files": {}, "base": {}})
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(weights or root.name.encode())
    note = {"images": "/x", "scorer": "exact", "max_new_tokens": 8, "skip_bad": False}
    notes = [{"name": n, "digest": n, "test": f"/x/{n}.jsonl", **note} for n in learned]
    write_json(
        adapter / "undrift.json",
        {
            "backbone": "pocket", "fingerprint": "f", "dtype": "float32", "method": "same",
            "options": {}, "benchmark": "folder", "after": len(learned), "learned": notes,
        },
    )  # fmt: skip
    content = {"adapter": str(adapter), "tasks": rows, "skipped": 0}
    write_json(files.result_file, {**content, **({"guards": told} if told else {})})
    return root


def write_chain(root):
    """Write v1, v2 and v3 below a folder, and return the last."""
    start = "pocket"
    for name, scores in SCORES.items():
        made = write_lesson(root / name, start, scores, GUARDED.get(name, {}))
        start = made / "adapter"
    return made
