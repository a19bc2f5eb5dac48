"""Kill commands at many points and run them again.

python -m tests.kill --points 200 --seed 17
python -m tests.kill --seed 17 --only 42 --keep
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from tests.kill.points import Harness, Point


def table(done: list[tuple[Point, list[str]]]) -> str:
    """Count the points by command, ranks and kind."""
    counted = Counter[tuple[str, int, str]]()
    failed = Counter[tuple[str, int, str]]()
    for point, wrong in done:
        row = (point.command, point.ranks, point.kind)
        counted[row] += 1
        failed[row] += bool(wrong)
    lines = ["| command | processes | points | failed | kinds |", "|---|---|---|---|---|"]
    for command, ranks in sorted({row[:2] for row in counted}):
        own = {row[2]: n for row, n in sorted(counted.items()) if row[:2] == (command, ranks)}
        bad = sum(n for row, n in failed.items() if row[:2] == (command, ranks))
        kinds = ", ".join(f"{kind} {n}" for kind, n in own.items())
        lines.append(f"| {command} | {ranks} | {sum(own.values())} | {bad} | {kinds} |")
    return "\n".join(lines)


def main() -> None:
    """Draw the points, kill at each, print what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.kill")
    parser.add_argument("--points", type=int, default=200)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--stop", action="store_true", help="SIGTERM and SIGINT, not SIGKILL")
    how.add_argument("--fault", action="store_true", help="a full or broken disk, no kill")
    parser.add_argument("--seed", default="17")
    parser.add_argument("--only", type=int, action="append", help="points by number (repeatable)")
    parser.add_argument("--keep", action="store_true", help="leave the folders of failed points")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="undrift-kill-")).resolve()
    harness = Harness(place)
    count = max([given.points, *(given.only or ())])
    draw = harness.stops if given.stop else harness.faults if given.fault else harness.points
    drawn = draw(count, given.seed)
    points = [point for point in drawn if not given.only or point.number in given.only]
    done: list[tuple[Point, list[str]]] = []
    for point in points:
        start = time.monotonic()
        try:
            wrong = harness.check(point)
        except AssertionError as error:
            wrong = [str(error)]
        done.append((point, wrong))
        said = "FAILED" if wrong else "ok"
        print(f"{point.number:4d} {said} {time.monotonic() - start:4.1f} s  {point}", flush=True)
        for line in wrong[:12]:
            print(f"       {line}", flush=True)
        if wrong:
            mode = " --stop" * given.stop + " --fault" * given.fault
            again = f"python -m tests.kill{mode} --seed {given.seed} --only {point.number} --keep"
            print(f"       {again}", flush=True)
    bad = [point for point, wrong in done if wrong]
    twice = sum(point.again > 0 for point, _ in done)
    print(f"\n{table(done)}\n")
    print(f"{len(done)} points (seed {given.seed}; {twice} killed twice), {len(bad)} failed, "
          f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    if given.keep and bad:
        print(f"kept: {place}")
    else:
        import shutil

        shutil.rmtree(place)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
