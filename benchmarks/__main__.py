"""Hold the bars: `counts` are exact and the same on every machine, `times` are ratios of times.

The last line says how many hold. Exits 1 when one falls short, unless only `times` were asked for:
they depend on the machine and on what else it does, and decide nothing.
"""

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


def counted() -> list[Bar]:
    """Bytes, operations, synchronisations, tokens, accuracy."""
    return [*counts.bars(), *accuracy.bars()]


def timed() -> list[Bar]:
    """Ratios of times; a group that falls short is measured once more."""
    bars: list[Bar] = []
    for group, rounds in (*speed.GROUPS, *generation.GROUPS):
        found = group(rounds)
        if not all(bar.holds for bar in found):
            print(*found, "  once more", sep="\n", flush=True)
            found = group(rounds)
        bars += found
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("counts", "times", "all"), default="all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    begin = time.perf_counter()
    bars = counted() if args.what != "times" else []
    bars += timed() if args.what != "counts" else []
    print(*bars, sep="\n")
    if args.json is not None:
        rows = [asdict(bar) | {"holds": bar.holds} for bar in bars]
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    short = [bar.name for bar in bars if not bar.holds]
    verdict = f"{len(bars) - len(short)} of {len(bars)} bars hold"
    print(
        f"{verdict} ({time.perf_counter() - begin:.0f} s)" + "".join(f"; short: {n}" for n in short)
    )
    return 1 if short and args.what != "times" else 0


if __name__ == "__main__":
    sys.exit(main())
