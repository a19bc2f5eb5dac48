"""Add a process's share of some features to a task matcher and write down the prototypes.

python -m tests.distributed.prototypes DIRECTORY
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from tests.methods.matching import WEIGHTS, chosen, random_features
from undrift.methods.shared.task_matcher import Matching, TaskMatcher
from undrift.tuner import summed

EXAMPLES, SIZE = 60, 8


def main(directory: Path) -> None:
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if ranks > 1:
        dist.init_process_group("gloo")
    matcher = TaskMatcher(Matching(WEIGHTS, 0.1), SIZE)
    for task in (1, 2):
        matcher.start_task()
        for batch in range(6):
            whole = random_features(EXAMPLES // 6, SIZE, seed=10 * task + batch)
            matcher.see(chosen(whole, slice(rank, None, ranks)))
            if batch == 3:  # a checkpoint on the way must not count anything twice
                with summed([matcher.state()]):
                    pass
        matcher.end_task()
    directory.mkdir(parents=True, exist_ok=True)
    save_file(matcher.state().tensors, directory / f"rank{rank}.safetensors")
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
