"""Measure undrift on this machine's processor, and hold it to bars.

NAME is one of the benchmarks, `times` for those that compare seconds, or `all`. A benchmark prints
its table and its bars; with --json FOLDER it writes them to FOLDER/NAME.json as well, with hardware
and commit. Counts are the same on every machine: exits 1 when one of their bars falls short. Ratios
of times depend on the machine and on what else it does: they are told, and decide nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.table import Table

EXACT = ("counts",)
TIMED = (
    "layer",
    "step",
    "growth",
    "activation",
    "precision",
    "compiled",
    "answering",
    "sequence",
    "large_data",
)
NAMES = (*EXACT, *TIMED)


def tables(name: str, *, long: bool) -> list[Table]:
    """Run a benchmark: the function `tables` of its file."""
    return import_module(f"benchmarks.{name}").tables(long=long)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="NAME", help=", ".join((*NAMES, "times", "all")))
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write the numbers there")
    parser.add_argument("--long", action="store_true", help="more rounds, larger sizes")
    args = parser.parse_args()
    what: list[str] = args.what or ["all"]
    groups = {"times": TIMED, "all": NAMES} | {name: (name,) for name in NAMES}
    for name in what:
        if name not in groups:
            parser.error(f"{name!r} is none of {', '.join(groups)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    begin, bars, failed = time.perf_counter(), [], False
    for name in dict.fromkeys(each for group in what for each in groups[group]):
        for table in tables(name, long=args.long):
            print(table, flush=True)
            if args.json is not None:
                long = " --long" if args.long else ""
                table.write(args.json, f"python -m benchmarks {name}{long} --json {args.json}")
            bars += table.bars
            failed |= name in EXACT and not all(bar.holds for bar in table.bars)
    short = [bar.name for bar in bars if not bar.holds]
    verdict = f"{len(bars) - len(short)} of {len(bars)} bars hold"
    print(f"\n{verdict} ({time.perf_counter() - begin:.0f} s)", *short, sep="; short: ")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
