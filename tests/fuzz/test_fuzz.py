"""A bounded part of what ``python -m tests.fuzz`` does, the same at every run; and that the judge sees what is wrong.

Cases are read in a process of their own, so that one that ends it fails a test and not the run.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxviz.errors import ModelError, UsageError
from tests.fuzz.__main__ import keep
from tests.fuzz.kinds import KINDS, changed
from tests.fuzz.worker import Worker

EXAMPLES = {
    "models": 150,
    "nodes": 100,
    "images": 300,
    "archives": 100,
    "arrays": 150,
    "weights": 150,
    "atlases": 40,
    "scans": 150,
    "texts": 150,
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.close()


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "nodes"]
)  # of which some cannot be analysed
def test_good_files_are_read(kind: str, worker: Worker) -> None:
    found = {name: worker.judge(KINDS[kind].read, case) for name, case in KINDS[kind].seeds().items()}
    assert {name: one.outcome for name, one in found.items()} == dict.fromkeys(found, "fine")


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_read_or_refused_in_words(
    kind: str, worker: Worker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(
        max_examples=EXAMPLES.get(kind, 100),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(KINDS[kind].seeds())), st.randoms(use_true_random=False))
    def check(name: str, rng: Random) -> None:
        case = changed(KINDS[kind], name, rng)
        verdict = worker.judge(KINDS[kind].read, case)
        if verdict.bad:
            folder = tmp_path_factory.mktemp(f"{kind}-{name}")
            keep(folder, kind, case, verdict)
            pytest.fail(f"{verdict.outcome}: {verdict.message}\nThe case is in {folder}.")

    check()


# What a judge must see


def _hangs(path: Path, out: Path) -> None:
    time.sleep(600)


def _crashes(path: Path, out: Path) -> None:
    os.abort()


def _explodes(path: Path, out: Path) -> None:
    np.ones(400 << 20, np.uint8)


def _stumbles(path: Path, out: Path) -> None:
    raise KeyError("x")


def _writes(path: Path, out: Path) -> None:
    path.with_name("more.txt").write_text("x")


def _writes_where_it_works(path: Path, out: Path) -> None:
    Path("more.txt").write_text("x")


def _removes(path: Path, out: Path) -> None:
    path.unlink()


def _warns(path: Path, out: Path) -> None:
    warnings.warn("x", stacklevel=1)


def _leaves_open(path: Path, out: Path) -> None:
    path.open("rb")


def _runs_on(path: Path, out: Path) -> None:
    raise ModelError("\n".join("abcdef"))


def _writes_out(path: Path, out: Path) -> None:
    (out / "x.txt").write_text("x")


def _refuses(path: Path, out: Path) -> None:
    raise UsageError("in words")


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (_hangs, "HANG"),
        (_crashes, "CRASH"),
        (_explodes, "MEMORY"),
        (_stumbles, "TRACEBACK"),
        (_writes, "WRITTEN"),
        (_writes_where_it_works, "WRITTEN"),
        (_removes, "WRITTEN"),
        (_warns, "WARNING"),
        (_leaves_open, "WARNING"),
        (_runs_on, "LONG"),
        (_writes_out, "fine"),
        (_refuses, "UsageError"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_judge_sees(read, outcome):
    worker = Worker(seconds=60 if outcome != "HANG" else 3, memory=200 << 20)
    try:
        assert worker.judge(read, {"x.bin": b"x"}).outcome == outcome
    finally:
        worker.close()
