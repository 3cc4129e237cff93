"""``python -m tests.benchmarks``: measure onnxviz beside its peers and print a table.

Needs ``pip install -e '.[bench]'``, a quiet machine and, in full, most of an hour and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.benchmarks import jobs, memory, projections, scanning, table
from tests.benchmarks.bench import Bench
from tests.benchmarks.peers import like_onnxviz
from tests.benchmarks.timing import Row, machine

BENCHMARKS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "scan-arrays": scanning.arrays,
    "scan-jpegs": scanning.jpegs,
    "forward": scanning.forward,
    "alexnet": projections.alexnet,
    "vgg16": projections.vgg16,
    "resnet50": projections.resnet50,
    "middle": projections.middle_layers,
    "arithmetic": projections.arithmetic,
    "scan-memory": memory.scanning,
    "projection-memory": memory.projecting,
    "job": jobs.whole,
    "report": jobs.report,
    "start": jobs.start,
}


def main() -> None:
    """Measure what is asked for, print each row as it is there, and write the table."""
    given = _arguments()
    like_onnxviz()
    facts = [*machine(), _how(given)]
    print("\n".join(f"- {fact}" for fact in facts), "", table.HEAD, sep="\n", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="onnxviz-bench-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(
            folder.resolve(), given.rounds, quick=given.quick, cut=given.cut_peer, provider=given.provider
        )
        for name in given.only or BENCHMARKS:
            start = time.perf_counter()
            for row in BENCHMARKS[name](bench):
                rows.append(row)
                print(table.line(row), flush=True)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    for path in given.out:
        table.write(path, facts, rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=main.__doc__)
    parser.add_argument(
        "--only", action="append", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--rounds", type=int, default=None, help="default 5; 2 with --quick")
    parser.add_argument(
        "--quick", action="store_true", help="little work: to see that it runs, not to be quoted"
    )
    parser.add_argument(
        "--cut-peer", action="store_true", help="give Captum networks cut off after the layer"
    )
    parser.add_argument("--provider", choices=["cpu", "cuda"], default="cpu", help="of both sides")
    parser.add_argument("--folder", type=Path, help="keep models and pictures here for the next run")
    parser.add_argument("--out", type=Path, action="append", default=[], help="write the table: .md or .json")
    given = parser.parse_args()
    given.rounds = given.rounds or (2 if given.quick else 5)
    return given


def _how(given: argparse.Namespace) -> str:
    """How the table was measured, in a line."""
    reach = "cut off after the layer" if given.cut_peer else "whole, without classifiers"
    quick = "; quick: not to be quoted" if given.quick else ""
    return (
        f"medians of {given.rounds} rounds, both sides in turn on all cores; seeded random weights; "
        f"Captum is given networks {reach}{quick}"
    )


if __name__ == "__main__":
    main()
