"""``python -m tests.fuzz.guided --seconds 60``: the same readers, steered by what parts of onnxviz a case reaches.

Needs ``pip install -e '.[fuzz]'``. Atheris (libFuzzer) keeps every case that reaches new code and changes it further:
half of the time as `tests.fuzz.kinds` does, else byte by byte. Failures are kept in a folder, and
``--again FILE --kind KIND`` reads one once more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

_LEAST = 5
_LONGEST = 1 << 17  # bytes


def main() -> int:
    """Fuzz each kind for its share of the time, in a process of its own; 1 if something failed."""
    given = _arguments()
    if given.one:
        return _fuzz(given.kind[0], given.seconds, given.keep, given.again)
    from tests.fuzz.kinds import KINDS

    kinds = given.kind or list(KINDS)
    each = max(_LEAST, given.seconds // len(kinds))
    failed = []
    for kind in kinds:
        more = ["--again", str(given.again)] if given.again else []
        command = [sys.executable, "-m", "tests.fuzz.guided", "--one", "--kind", kind]
        command += ["--seconds", str(each), "--keep", str(given.keep), *more]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        lines = done.stderr.splitlines()
        count = next((line for line in reversed(lines) if line.startswith(("stat::number_of", "Done"))), "")
        reached = next((line for line in reversed(lines) if "cov:" in line), "").partition("cov:")[2].split()
        print(
            f"{kind}: {count.strip() or 'ended'}; {reached[0] if reached else '?'} places reached", flush=True
        )
        if done.returncode:
            failed.append(kind)
            print(done.stdout[-4000:], *lines[-8:], sep="\n")
    print(f"{len(failed)} of {len(kinds)} kinds failed" + (f", see {given.keep}" if failed else ""))
    return int(bool(failed))


def _fuzz(name: str, seconds: int, keep: Path, again: Path | None) -> int:
    import atheris

    with atheris.instrument_imports(include=["onnxviz"]):
        from tests.fuzz.kinds import KINDS
    from tests.fuzz.worker import judged, watch_writes

    kind = KINDS[name]
    seeds = sorted(kind.seeds())
    root = Path(tempfile.mkdtemp(prefix="onnxviz-guided-"))
    watch_writes()

    def case_of(data: bytes) -> dict[str, bytes]:
        """The first byte says which seed the rest stands in the main file of."""
        case = dict(kind.seeds()[seeds[data[0] % len(seeds)] if data else seeds[0]])
        return case | {next(iter(case)): data[1:]}

    def one(data: bytes) -> None:
        verdict = judged(kind.read, case_of(data), root)
        if verdict.bad:
            raise RuntimeError(f"{verdict.outcome}: {verdict.message}")

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        rng = Random(seed)
        if len(data) < 2 or rng.random() < 0.5:
            return bytes(atheris.Mutate(data, longest))
        file = next(iter(kind.seeds()[seeds[data[0] % len(seeds)]]))
        try:
            changed = data[:1] + kind.mutate(file, data[1:], rng)
        except Exception:  # what is no JSON, protobuf or archive any more
            changed = bytes(atheris.Mutate(data, longest))
        return changed[:longest]

    corpus = root / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        first = next(iter(kind.seeds()[seed].values()))
        (corpus / seed).write_bytes(bytes([number]) + first)
    keep.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=6144", f"-max_len={_LONGEST}"]
    options += ["-print_final_stats=1", f"-artifact_prefix={keep.resolve()}/{name}-"]
    where = [str(again)] if again else [str(corpus)]
    _run(atheris, [sys.argv[0], *options, *where], one, mutate)
    return 0


def _run(atheris: Any, arguments: Sequence[str], one: Any, mutate: Any) -> None:
    atheris.Setup(list(arguments), one, custom_mutator=mutate)
    atheris.Fuzz()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=main.__doc__)
    parser.add_argument(
        "--seconds", type=int, default=60, help="for all kinds together; default: %(default)s"
    )
    parser.add_argument("--kind", action="append", help="default: all")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="where failures go; default: %(default)s"
    )
    parser.add_argument("--again", type=Path, metavar="FILE", help="read a kept case once more")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
