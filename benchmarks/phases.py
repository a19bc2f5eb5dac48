"""Where the seconds of a command go: `python -m benchmarks.phases FILE.json run pocket ...`.

Functions of undrift and of the libraries it calls are wrapped from the outside and the command runs
in this process. CPU seconds of whatever runs inside a wrapped function count to the innermost one,
so that the parts add up to the whole. Nothing heavy is imported before the command is.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from typing import Any

PHASES: dict[str, tuple[str, ...]] = {
    "load": ("undrift.run.backbone:Backbone.load",),
    "attach": ("undrift.run.session:Session.open",),
    "read": (
        "undrift.run.load_tasks:read_benchmark",
        "undrift.run.load_tasks:check_answers",
        "undrift.run.input_changes:Inputs.__init__",
        "undrift.run.input_changes:Inputs.enter",
    ),
    "features": ("undrift.run.image_features:FeatureStore.prepare",),
    "render": ("undrift.data.prompts:Renderer.prompts",),
    "tokenise": ("undrift.data.prompts:Renderer.ids", "undrift.data.prompts:Renderer.answers"),
    "encode": ("undrift.data.collate:_Collator.encode",),
    "collate": (
        "undrift.data.collate:FeatureCollator.collate",
        "undrift.data.collate:TextCollator.collate",
    ),
    "trainer": ("undrift.run.trainer:train",),
    "forward": ("undrift.run.trainer:TaskTrainer.compute_loss",),
    "backward": ("accelerate:Accelerator.backward",),
    "statistics": (
        "undrift.tuner.input_statistics:LayerStatistics.observe",
        "undrift.tuner.input_statistics:LayerStatistics.flush",
        "undrift.tuner.input_statistics:LayerStatistics.rebase",
        "undrift.tuner.input_statistics:LayerStatistics.history_now",
        "undrift.tuner.input_statistics:LayerStatistics.end_task",
    ),
    "step": (
        "undrift.run.trainer:TaskTrainer._clip_grad_norm",
        "accelerate.optimizer:AcceleratedOptimizer.step",
        "torch.optim:Optimizer.zero_grad",
    ),
    "generate": ("undrift.run.answer:greedy", "undrift.run.answer:decode"),
    "general ability": ("undrift.run.general_ability:measure",),
    "read prompts": ("undrift.run.answer:read",),
    "score": ("undrift.run.answer:scored", "undrift.scoring:task_score"),
    "save": (
        "undrift.run.task_loop:Run._train",
        "undrift.run.task_loop:Run._write_card",
        "undrift.run.task_loop:Run._write_matrix",
        "undrift.run.task_loop:Run._write_seconds",
        "undrift.run.task_loop:Run._write_manifest",
        "undrift.rundir:RunDir.note_sums",
    ),
    "thumbnails": ("undrift.run.thumbnails:keep_pictures",),
    "report": ("undrift.cli.report:draw_page", "undrift.cli.report:report"),
}
"""What is timed, by the name of its part; what a training does besides teaching is saving."""

_seconds: dict[str, float] = defaultdict(float)
_open = ["other"]
_since = 0.0


def _turn() -> None:
    """Count the time since the last turn to the part that is on top."""
    global _since
    now = time.process_time()
    _seconds[_open[-1]] += now - _since
    _since = now


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function, its seconds going to a part."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        _turn()
        _open.append(name)
        try:
            return function(*args, **options)
        finally:
            _turn()
            _open.pop()

    return call


def wrap(name: str, place: str) -> None:
    """Put a timer around what a place names, wherever a module of undrift has it by name."""
    home, _, path = place.partition(":")
    owner: Any = import_module(home)
    *inside, last = path.split(".")
    for each in inside:
        owner = getattr(owner, each)
    found = vars(owner)[last]
    if isinstance(found, classmethod | staticmethod):
        setattr(owner, last, type(found)(timed(name, found.__func__)))
        return
    setattr(owner, last, made := timed(name, found))
    for module in [m for key, m in sys.modules.items() if key.startswith("undrift.")]:
        for key in [key for key, value in vars(module).items() if value is found]:
            setattr(module, key, made)


def main() -> None:
    """Run the command, then write the seconds by part."""
    global _since
    target, *words = sys.argv[1:]
    for loader in (SourceFileLoader, ExtensionFileLoader):
        for method in ("create_module", "exec_module"):
            setattr(loader, method, timed("import", getattr(loader, method)))
    try:
        for name, places in PHASES.items():
            for place in places:
                wrap(name, place)
        sys.argv = ["undrift", *words]
        from undrift.cli import main as undrift

        undrift()
    finally:
        _turn()
        Path(target).write_text(json.dumps(_seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
