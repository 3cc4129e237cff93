"""``python -m tests.fuzz``: read many changed files, in child processes, and say what came of them.

Every failure is kept as a folder of the case's files, with what went wrong in FAILURE.txt;
``python -m tests.fuzz --again FOLDER`` reads it once more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Lock, local

from tests.fuzz.kinds import KINDS, changed
from tests.fuzz.seeds import Case
from tests.fuzz.worker import Verdict, Worker

_NOTE = "FAILURE.txt"
_SHARES = {
    "models": 10,
    "nodes": 10,
    "images": 10,
    "archives": 3,
    "arrays": 4,
    "weights": 4,
    "atlases": 2,
    "texts": 3,
}
"""How the cases are shared out; a kind that is not named has 3."""


def main() -> int:
    """Run a campaign, or a kept case once more; 1 if something failed."""
    given = _arguments()
    if given.again:
        return _again(given.again)
    kinds = given.kind or list(KINDS)
    shares = [_SHARES.get(kind, 3) for kind in kinds]
    threads, lock, kept = local(), Lock(), Counter[str]()
    outcomes: Counter[tuple[str, str]] = Counter()
    workers: list[Worker] = []
    slowest = (0.0, "")
    start = time.monotonic()

    def one(number: int) -> None:
        nonlocal slowest
        if not hasattr(threads, "worker"):
            threads.worker = Worker(given.timeout)
            workers.append(threads.worker)
        kind, name, case = case_of(given.seed, number, kinds, shares)
        verdict = threads.worker.judge(KINDS[kind].read, case)
        title = f"{kind}-{name}-{given.seed}-{number}"
        with lock:
            outcomes[kind, verdict.outcome] += 1
            slowest = max(slowest, (verdict.seconds, title))
            if verdict.bad:
                last = verdict.message.strip().splitlines()
                print(f"{title}: {verdict.outcome}: {last[-1][:200] if last else ''}", flush=True)
                kept[verdict.outcome] += 1
                keep(given.keep / title, kind, case, verdict)

    with ThreadPoolExecutor(given.workers) as pool:
        list(pool.map(one, range(given.first, given.first + given.count)))
    for worker in workers:
        worker.close()
    for kind in kinds:
        found = ", ".join(f"{n:,} {what}" for (k, what), n in sorted(outcomes.items()) if k == kind)
        print(f"{kind}: {found or 'none'}")
    print(
        f"{given.count:,} cases in {time.monotonic() - start:.0f} s; the slowest took {slowest[0]:.1f} s: {slowest[1]}"
    )
    print(f"{kept.total():,} failures" + (f", kept in {given.keep}" if kept else ""))
    return 1 if kept else 0


def case_of(seed: int, number: int, kinds: list[str], shares: list[int]) -> tuple[str, str, Case]:
    """A case by its number: kind, seed file, and the changed files."""
    rng = Random(f"{seed}/{number}")
    kind = rng.choices(kinds, shares)[0]
    name = rng.choice(sorted(KINDS[kind].seeds()))
    return kind, name, changed(KINDS[kind], name, rng)


def keep(folder: Path, kind: str, case: Case, verdict: Verdict) -> None:
    """Write a case that failed into a folder."""
    for name, data in case.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    files = "\n".join(case)
    (folder / _NOTE).write_text(
        f"{kind}\n{files}\n\n{verdict.outcome}\n{verdict.message}\n", encoding="utf-8"
    )


def _again(folder: Path) -> int:
    kind, *files = (folder / _NOTE).read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    worker = Worker()
    verdict = worker.judge(KINDS[kind].read, {name: (folder / name).read_bytes() for name in files})
    worker.close()
    print(f"{verdict.outcome} after {verdict.seconds:.1f} s\n{verdict.message}")
    return int(verdict.bad)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=main.__doc__)
    parser.add_argument("--count", type=int, default=1000, help="cases; default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first case; default: %(default)s")
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases; default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes at once; default: %(default)s")
    parser.add_argument(
        "--timeout", type=float, default=60, help="seconds a case may take; default: %(default)s"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="where failures go; default: %(default)s"
    )
    parser.add_argument("--again", type=Path, metavar="FOLDER", help="read a kept case once more")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
