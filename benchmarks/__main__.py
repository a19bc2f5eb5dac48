"""Hold the bars; exits 1 when one falls short, and the last line says which hold."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import accuracy, counts, generation, speed
from benchmarks.meter import Bar


def held() -> list[Bar]:
    """Measure everything; a group of timed bars that falls short is measured once more."""
    bars = [*counts.bars(), *accuracy.bars()]
    for group, rounds in (*speed.GROUPS, *generation.GROUPS):
        found = group(rounds)
        if not all(bar.holds for bar in found):
            print(*found, "  once more", sep="\n", flush=True)
            found = group(rounds)
        bars += found
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    begin = time.perf_counter()
    bars = held()
    print(*bars, sep="\n")
    if args.json is not None:
        rows = [asdict(bar) | {"holds": bar.holds} for bar in bars]
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    short = [bar.name for bar in bars if not bar.holds]
    verdict = f"{len(bars) - len(short)} of {len(bars)} bars hold"
    print(
        f"{verdict} ({time.perf_counter() - begin:.0f} s)" + "".join(f"; short: {n}" for n in short)
    )
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
